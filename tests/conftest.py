"""A tiny model made on the spot, and configurations that run the whole chain on it in seconds."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # what the tiny model learns depends a little on the threads
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import pytest
import yaml

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.data.loading import load_prompts

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)

# A random model answers few prompts with whole sentences. These are the pools of which it answers some.
FEW_PROMPTS = [
    "data.red_team.limit=264",
    "data.ordinary.limit=264",
    "data.look_alike.limit=227",
    "data.held_out_manners=[]",
]
TINY = [
    *FEW_PROMPTS,
    "constitution=minimal",
    "tracking=none",
    "model.precision=fp32",
    "model.lora.upper_share=1",
    "critique.num_red_team=5",
    "critique.num_ordinary=3",
    "critique.num_look_alike=2",
    "critique.max_reply_tokens=16",
    "critique.max_critique_tokens=16",
    "critique.max_revision_tokens=16",
    "sft.num_epochs=1",
    "sft.global_batch_size=2",
    "sft.save_every_steps=1",
    "preferences.num_red_team=4",
    "preferences.num_ordinary=2",
    "preferences.num_look_alike=2",
    "preferences.max_reply_tokens=16",
    "preferences.num_contrasts=2",
    "preferences.num_checked=3",
    "reward.num_epochs=1",
    "reward.global_batch_size=2",
    "reward.save_every_steps=1",
    "align.global_batch_size=2",
    "align.save_every_steps=1",
    "evaluate.red_team.num_requests=4",
    "evaluate.red_team.num_attacked=1",
    "evaluate.over_refusal.num_requests=3",
    "evaluate.helpfulness.num_requests=3",
    "evaluate.bias.num_templates=2",
    "evaluate.pairs.num_pairs=3",
    "evaluate.max_reply_tokens=16",
    "evaluate.probe.num_prompts=20",
    "launch.batch_rows=2",
]

TINY_ROLLOUTS = [
    "align.rollout.num_red_team=4",
    "align.rollout.num_ordinary=2",
    "align.rollout.num_look_alike=2",
    "align.rollout.max_reply_tokens=8",
    "align.rollout.num_held_out=4",
    "align.num_minibatches=2",
    "align.trust=true",  # a tiny reward model is no better than chance
]
TINY_METHODS = {
    "align=kto": ["align.kl_batch_size=2"],
    "align=ppo": TINY_ROLLOUTS,
    "align=rloo": [*TINY_ROLLOUTS, "align.num_replies=2"],
    "align=grpo": [*TINY_ROLLOUTS, "align.num_replies=2"],
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with a tokenizer of its own that babbles short sentences: real code paths, no sense."""
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
    # A fixed number, so that adding prompts does not change what it babbles.
    texts = [prompt.request for prompt in load_prompts(compose_config(FEW_PROMPTS).data).prompts][:660]
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
    model.generation_config.eos_token_id = fast.eos_token_id
    model.generation_config.pad_token_id = fast.eos_token_id
    _teach_to_babble(model, fast, texts)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model untrained, with weights so large that every token of the context changes what it says."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("random-model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5, generator=generator)
    model.save_pretrained(folder)
    return folder


def _teach_to_babble(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    """A second of training, so that it ends sentences and turns as the pipeline expects of a chat model."""
    import torch

    rng = random.Random(0)
    words = sorted({word for text in texts for word in text.lower().split() if word.isalpha() and len(word) < 5})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        rows = []
        for text in rng.sample(texts, 8):
            babble = " ".join(f"{rng.choice(words)} {rng.choice(words)}." for _ in range(rng.randint(1, 3)))
            turns = [{"role": "user", "content": text[:40]}, {"role": "assistant", "content": babble}]
            rows.append(tokenizer.apply_chat_template(turns, tokenize=False))
        batch = tokenizer(rows, return_tensors="pt", padding=True, add_special_tokens=False)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.fixture
def tiny(tiny_model: Path, tmp_path: Path) -> Callable[..., Config]:
    """Compose a configuration for the tiny model, writing under ``tmp_path``."""

    def make(*overrides: str) -> Config:
        method = next((override for override in overrides if override.startswith("align=")), "")
        return compose_config([*tiny_overrides(tiny_model, tmp_path, method), *overrides])

    return make


def tiny_overrides(model: Path, out: Path, method: str = "") -> list[str]:
    """``method`` is the override that names it (``align=ppo``), where it is not the default."""
    chosen = [method, *TINY_METHODS.get(method, [])] if method else []
    return [*chosen, *TINY, f"model.path={model}", "model.name=tiny", f"output_dir={out / 'outputs'}"]


def tiny_groups(folder: Path) -> Path:
    """``align=tiny_ppo`` and so on: a sweep sets the same overrides for every method, and DPO has no rollouts."""
    (folder / "align").mkdir(parents=True)
    for name, overrides in TINY_METHODS.items():
        method = name.removeprefix("align=")
        group: dict[str, Any] = {"defaults": [method]}
        for override in overrides:
            key, _, value = override.removeprefix("align.").partition("=")
            inside = group.setdefault("rollout", {}) if key.startswith("rollout.") else group
            inside[key.removeprefix("rollout.")] = yaml.safe_load(value)
        (folder / "align" / f"tiny_{method}.yaml").write_text(yaml.safe_dump(group))
    return folder


@pytest.fixture(autouse=True)
def _no_leftover_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def load_script(name: str) -> Any:
    """A file of ``scripts/`` as a module."""
    path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
