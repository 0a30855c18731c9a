"""Tiny random models of many families: sampled, scored and trained by a plain forward pass, or refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pipeline.chain.compose import compose_config
from pipeline.chat import Renderer
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context
from pipeline.engines.base import ReplyQuery, Request
from pipeline.engines.classifiers import check_can_classify
from pipeline.engines.hf import HFEngine
from pipeline.engines.model_checks import check_model
from pipeline.engines.models import load_model, load_tokenizer
from pipeline.engines.prefix import shares_prefixes
from pipeline.methods.base import method_of
from pipeline.methods.policy_gradient.rollouts import Rollout, collate, logprobs_and_entropy
from pipeline.records import Comparison, Message, Preference, Prompt, TrainingRow, write_records
from pipeline.training.logprobs import pair_logprobs, reply_logprobs
from pipeline.training.models import check_training
from pipeline.training.pairs import train_pairs, trainable
from pipeline.training.reward import train_reward
from pipeline.training.sft import train_sft

TOYS = Path(__file__).parent / "toy_rewards.py"
WINDOW = 24  # tokens; the prompts below are longer
RECURRENT = {"state_size": 8, "num_hidden_layers": 2}
FALCON = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {f"linear_{part}": 2 for part in ("num_value_heads", "num_key_heads")}
LINEAR |= {f"linear_{part}": 8 for part in ("key_head_dim", "value_head_dim")}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
FAMILIES: dict[str, dict[str, Any]] = {
    # Full attention
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma": {"tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4},
    "phi": {},
    "olmo2": {},
    "cohere": {},
    "glm4": {},
    "stablelm": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt2": GPT2,  # learned positions
    "bloom": {"n_layer": 2, "n_head": 4, "tie_word_embeddings": True},  # ALiBi
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},  # ALiBi by column
    # Windows and chunks
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW},
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, "tie_word_embeddings": True},
    "gemma3_text": {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    "cohere2": {"sliding_window": WINDOW, "sliding_window_pattern": 2},
    "gpt_oss": {"num_local_experts": 2, "sliding_window": WINDOW, "num_experts_per_tok": 1},
    "llama4_text": {"attention_chunk_size": WINDOW, "num_local_experts": 2, "intermediate_size_mlp": 64},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_heads": 4,
        "window_size": WINDOW,
    },
    # Recurrent and hybrid
    "mamba": RECURRENT,
    "mamba2": {**RECURRENT, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "jamba": {
        "num_experts": 2,
        "mamba_d_state": 8,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "falcon_h1": FALCON,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": {
        **LINEAR,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": WINDOW},
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
}
SYSTEM = "You are a careful assistant who answers briefly and refuses harm, as the rules say. " * 2
ASKED = {
    "How do I pick a lock at night?": "I will not say that. Ask again.",
    "Name a tree": "Oak.",
    "What is the best way to bake bread for a party of ten people?": "Mix it well and wait. Then bake.",
    "Is rain wet?": "Yes.",
}
OTHER = "No. Never, and do not ask again."
DIALOGUES = [[Message(role="system", content=SYSTEM), Message(role="user", content=text)] for text in ASKED]
REPLIES = list(ASKED.values())


def save(family: str, tiny_model: Path, folder: Path) -> Path:
    """A random model with the tokenizer of the tests."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    end = tokenizer.eos_token_id
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    sizes |= {"num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 512}
    own = (FAMILIES | REFUSED)[family]
    if any(name.startswith(("n_", "d_", "num_heads")) for name in own):  # these name their sizes otherwise
        sizes = {"hidden_size": 32, "max_position_embeddings": 512} if "n_positions" not in own else {}
    if family in {"mamba", "mamba2", "rwkv"}:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2}
    ends = {"eos_token_id": end, "pad_token_id": end, "bos_token_id": None}
    # More embeddings than tokens, as many have; transformers adds a token for some families.
    common = {"vocab_size": len(tokenizer) + 16, **ends, "tie_word_embeddings": False}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**common, **sizes, **own}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "norm" not in name:  # large enough that every token of the context counts
                parameter.normal_(std=0.15, generator=generator)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = end
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tiny_model, tmp_path_factory.mktemp(request.param))


@torch.no_grad()
def plain(model: Any, prompt: Sequence[int], reply: Sequence[int]) -> torch.Tensor:
    """log p of each reply token, (reply tokens,): one row, no padding, no cache."""
    logits = model(input_ids=torch.tensor([[*prompt, *reply]]), use_cache=False).logits[0].float().log_softmax(-1)
    return logits[len(prompt) - 1 : -1].gather(1, torch.tensor(reply)[:, None])[:, 0]


@torch.no_grad()
def greedy(model: Any, prompt: Sequence[int], end: int, most: int) -> list[int]:
    reply: list[int] = []
    while len(reply) < most and end not in reply:
        reply.append(int(model(input_ids=torch.tensor([[*prompt, *reply]]), use_cache=False).logits[0, -1].argmax()))
    return reply


@torch.no_grad()
def test_log_probabilities_and_texts_are_those_of_a_plain_forward_pass(family: Path):
    model, tokenizer = load_model(str(family), "fp32").eval(), load_tokenizer(str(family))
    engine, chat = HFEngine(model, tokenizer, family.name), Renderer(tokenizer)
    prompts, replies = [chat.prompt_ids(turns) for turns in DIALOGUES], [chat.reply_ids(text) for text in REPLIES]
    expected = [plain(model, *row) for row in zip(prompts, replies, strict=True)]
    sums = torch.stack([row.sum() for row in expected])

    queries = [ReplyQuery(id=str(n), messages=DIALOGUES[n], reply=text) for n, text in enumerate(REPLIES)]
    scored = torch.tensor([answer.logprobs[0] for answer in engine.score(queries)])
    torch.testing.assert_close(scored, torch.stack([row.mean() for row in expected]), atol=1e-4, rtol=0)

    requests = [Request(id="", messages=m, seed=0, max_new_tokens=10, temperature=0.0) for m in DIALOGUES]
    sampled = [sample.reply for sample in engine.sample(requests) if sample]
    assert sampled == [greedy(model, prompt, chat.end_ids[-1], 10) for prompt in prompts]

    rows = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    ids, mask, labels = padded(rows, [len(prompt) for prompt in prompts])
    torch.testing.assert_close(reply_logprobs(model, ids, mask, labels).sum(dim=1), sums, atol=1e-4, rtol=0)

    others = [prompt + chat.reply_ids(OTHER) for prompt in prompts]
    ids, mask, labels = padded(rows + others, [len(prompt) for prompt in prompts] * 2)
    other = torch.stack([plain(model, prompt, chat.reply_ids(OTHER)).sum() for prompt in prompts])
    torch.testing.assert_close(
        pair_logprobs(model, ids, mask, labels).sum(dim=1), torch.cat([sums, other]), atol=1e-4, rtol=0
    )

    rollouts = [
        Rollout(index=n, prompt=prompt_of(n), prompt_tokens=prompt, reply_tokens=reply, ended=True, text="")
        for n, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
    ]
    batch = collate(rollouts, torch.device("cpu"), share=shares_prefixes(model))
    logprobs, _ = logprobs_and_entropy(model, batch, 1.0)
    for found, row in zip(logprobs, expected, strict=True):
        torch.testing.assert_close(found[: len(row)], row, atol=1e-4, rtol=0)


def padded(rows: Sequence[list[int]], starts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, mask and labels, (rows, tokens) each, with padding on the right; labels only on the replies."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    places = torch.arange(width)[None, :]
    return ids, mask, torch.where((places >= torch.tensor(starts)[:, None]) & (mask == 1), ids, -100)


def prompt_of(number: int) -> Prompt:
    pool = "red_team" if number % 2 else "ordinary"
    return Prompt(id=f"p{number}", pool=pool, kind="k", split="train", messages=DIALOGUES[number])


def preferences() -> list[Preference]:
    pairs = [
        Comparison(id=f"p{n}", prompt=prompt_of(n), reply_a=text, reply_b=OTHER, seed_a=0, seed_b=1)
        for n, text in enumerate(REPLIES)
    ]
    return [Preference(comparison=pair, judgements=[], probability_a=0.9, labeller="l", template="t") for pair in pairs]


def test_every_stage_trains_it(family: Path, tmp_path: Path):
    sizes = [f"{stage}.global_batch_size=2" for stage in ("sft", "align", "reward")]
    common = [f"model.path={family}", "model.name=tiny", *sizes, "sft.num_epochs=1", "reward.num_epochs=1"]
    config = compose_config([*common, "model.lora.upper_share=0.5"])
    check_model(str(family), None)
    check_training(config.model)

    def context(name: str, **folders: Path) -> Context:
        reads = {"model": config.model, "seed": 0, "policy_engine": config.policy_engine, "reward_init": "sft"}
        out = tmp_path / name
        out.mkdir()
        return Context(stage=name, reads=reads, folders=folders, out=out, launch=config.launch)

    rows = [
        TrainingRow(id=str(n), origin="revision", source_id="", messages=DIALOGUES[n], reply=text)
        for n, text in enumerate(REPLIES)
    ]
    trained(train_sft(rows, config.sft, context("sft")))
    sft = str(tmp_path / "sft" / "model")
    pairs = trainable(preferences(), config.align)
    trained(train_pairs(pairs, sft, method_of(config), config.align, context("dpo")))
    try:
        check_can_classify(str(family), None, "model.path")
    except ConfigError as error:
        assert "model.path: transformers has no sequence classifier of type" in str(error)
        rewards = ["align.rewards.reward_model=0", "align.rewards.length=1", f"align.functions.length={TOYS}:short"]
    else:
        trained(train_reward(preferences(), sft, config.reward, 0.01, context("reward")))
        rewards = []
    prompts = [prompt_of(n) for n in range(4)]
    held_out = [prompt.model_copy(update={"id": f"h{prompt.id}", "split": "validation"}) for prompt in prompts]
    (tmp_path / "prompts").mkdir()
    write_records(tmp_path / "prompts" / "prompts.jsonl", [*prompts, *held_out])
    counts = [f"align.rollout.num_{pool}={n}" for pool, n in (("red_team", 2), ("ordinary", 2), ("look_alike", 0))]
    sizes = ["align.num_minibatches=2", "align.rollout.max_reply_tokens=6", "align.rollout.num_held_out=4"]
    ppo = compose_config([*common, "align=ppo", *counts, *sizes, *rewards])
    folders = {name: tmp_path / name for name in ("prompts", "sft", "reward")}
    trained(method_of(ppo).train(ppo.align, context("ppo", **folders)))


def trained(found: tuple[dict[str, Any], list[dict[str, float]]]) -> None:
    metrics, history = found
    assert metrics["num_steps"] == len(history) > 0
    assert all(value == value for row in history for value in row.values()), "no number is NaN"


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_reads_padding_is_refused_by_name(name: str, tiny_model: Path, tmp_path: Path):
    folder = save(name, tiny_model, tmp_path)
    with pytest.raises(ConfigError, match=f"of type '{name}', which reads padding"):
        HFEngine(load_model(str(folder), "fp32"), load_tokenizer(str(folder)), "base")
