"""A tiny model made on the spot, and configurations that run the whole chain on it in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import pytest

from pipeline.compose import compose_config
from pipeline.config import Config
from pipeline.data.loading import load_prompts

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)

TINY = [
    "constitution=minimal",
    "tracking=none",
    "critique.num_red_team=5",
    "critique.num_ordinary=3",
    "critique.num_look_alike=2",
    "critique.max_reply_tokens=12",
    "critique.max_critique_tokens=8",
    "critique.max_revision_tokens=12",
    "sft.num_epochs=1",
    "sft.global_batch_size=2",
    "sft.save_every_steps=1",
    "preferences.num_red_team=4",
    "preferences.num_ordinary=2",
    "preferences.num_look_alike=2",
    "preferences.max_reply_tokens=12",
    "align.global_batch_size=2",
    "align.save_every_steps=1",
    "evaluate.num_red_team=4",
    "evaluate.num_ordinary=3",
    "evaluate.num_look_alike=3",
    "evaluate.max_reply_tokens=12",
    "launch.batch_rows=2",
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with a word-piece tokenizer and random weights: real code paths, no sense.

    It ends sentences often, because replies cut at their length limit are kept only up to a sentence end.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from tokenizers.decoders import ByteLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [prompt.request for prompt in load_prompts(compose_config([]).data).prompts]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Weights large enough that the context matters, and full stops likely enough that sentences end.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
        full_stop = fast.convert_tokens_to_ids(".")
        model.lm_head.weight[full_stop] += 0.6 * model.lm_head.weight.std()
    model.generation_config.eos_token_id = fast.eos_token_id
    model.generation_config.pad_token_id = fast.eos_token_id
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_model: Path, tmp_path: Path) -> Callable[..., Config]:
    """Compose a configuration for the tiny model, writing under ``tmp_path``."""

    def make(*overrides: str) -> Config:
        return compose_config([*tiny_overrides(tiny_model, tmp_path), *overrides])

    return make


def tiny_overrides(model: Path, out: Path) -> list[str]:
    return [*TINY, f"model.path={model}", "model.name=tiny", f"output_dir={out / 'outputs'}"]


@pytest.fixture(autouse=True)
def _no_leftover_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
