"""PPO, RLOO and GRPO on a tiny model: resuming, costs and settings are exact."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from pydantic import BaseModel

from pipeline.core.log import Usage
from pipeline.core.settings import Settings
from pipeline.methods.policy_gradient.actors import load_actors
from pipeline.methods.policy_gradient.base import prompts_of_step
from pipeline.training.models import lora_config
from pipeline.training.reward import load_reward_base, reward_tokenizer, save_reward_model
from tests.ppo_bench import NAMES, QUICK, STEEP, Bench, PowerCutError, epochs, killed_at_call, weights


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}, full" for name in NAMES)])
def test_killed_and_resumed_equals_undisturbed_bit_for_bit(tiny_model: Path, tmp_path: Path, name: str):
    method, _, tuning = name.partition(", ")
    overrides = [
        *QUICK,
        f"model.tuning={tuning or 'lora'}",
        epochs(method, 0.5),
        "align.normalise_scores=true",
        "align.kl_controller=adaptive",
    ]
    whole = Bench(tiny_model, tmp_path / "undisturbed", *overrides, method=method)
    _, undisturbed = whole.train()
    bench = Bench(tiny_model, tmp_path / "disturbed", *overrides, method=method)
    for number in (2, 4):  # calls: held-out at the start, then one a step, and the held-out ones between
        with pytest.raises(PowerCutError):
            bench.loop(killed_at_call(bench.rewards(), number)).train()
    metrics, resumed = bench.train()
    assert metrics["resumed_from_step"] > 0
    assert resumed == undisturbed and len(resumed) == 4
    assert {"objective/kl", "objective/token_entropy", "reply_tokens_mean", "held_out/scores"} <= resumed[-1].keys()
    one, other = weights(tmp_path / "undisturbed"), weights(tmp_path / "disturbed")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    spent = [(meter.num_calls, meter.num_tokens_written) for meter in (whole.context.meter, bench.context.meter)]
    assert spent[0] == spent[1]


def test_what_a_judge_on_a_server_has_used_is_kept(tiny_model: Path, tmp_path: Path):
    used = {"judge": Usage(num_requests=3, num_tokens_read=40, num_tokens_written=5, money=0.5)}
    before, after = (Bench(tiny_model, tmp_path, *QUICK) for _ in range(2))
    before.context.meter.usage = used
    before.loop()._save()
    after.loop()._resume()
    assert after.context.meter.usage == used


def test_adapters_on_embeddings_are_trained_too(tiny_model: Path, tmp_path: Path):
    bench = Bench(tiny_model, tmp_path, *QUICK, "model.lora.target_modules='.*(embed_tokens|q_proj)'")
    parts = bench.actors().trained()
    for part in parts.values():
        names = {name.partition(".lora_")[2].partition(".")[0] for name in part if ".lora_" in name}
        assert names == {"A", "B", "embedding_A", "embedding_B"}
    assert not parts["policy"].keys() & parts["value"].keys()


def test_a_reward_model_with_adapters_on_embeddings_starts_the_values(tiny_model: Path, tmp_path: Path):
    bench = Bench(tiny_model, tmp_path, *QUICK, "model.lora.target_modules='.*(embed_tokens|q_proj)'")
    config, tokenizer = bench.config.model, reward_tokenizer(str(tiny_model), bench.config.model)
    base = load_reward_base(str(tiny_model), config, quantised=False)
    adapted = peft.get_peft_model(base, lora_config(config, base, "SEQ_CLS"))
    trainer: Any = SimpleNamespace(
        model=adapted, processing_class=tokenizer, accelerator=SimpleNamespace(unwrap_model=lambda model: model)
    )
    save_reward_model(trainer, str(tiny_model), config, tmp_path / "reward")
    actors = load_actors(bench.base_path, config, tmp_path / "reward", True, "reward", seed=0)
    assert actors.reward_model is not None and "value" in actors.trained()


def test_another_seed_gives_another_run(tiny_model: Path, tmp_path: Path):
    _, first = Bench(tiny_model, tmp_path / "0", *QUICK).train()
    _, second = Bench(tiny_model, tmp_path / "1", *QUICK, "seed=1").train()
    assert first != second


@pytest.mark.parametrize("method", NAMES)
def test_an_epoch_asks_every_prompt_once_in_an_order_of_its_own(tiny_model: Path, tmp_path: Path, method: str):
    bench = Bench(tiny_model, tmp_path, "align.global_batch_size=16", method=method)
    size = bench.align.replies_per_prompt
    num_steps = 64 * size // 16
    epochs = []
    for epoch in (0, 1):
        steps = range(epoch * num_steps, (epoch + 1) * num_steps)
        ids = [p.id for step in steps for p in prompts_of_step(step, bench.prompts, bench.align, 0)]
        assert all(len(set(ids[start : start + size])) == 1 for start in range(0, len(ids), size))
        epochs.append(ids[::size])
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(prompt.id for prompt in bench.prompts)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("judge", [0, 1])
def test_the_cost_is_what_was_spent(tiny_model: Path, tmp_path: Path, method: str, judge: int):
    """Calls to the letter: the batches, and the principles that are drawn for each prompt, are known before."""
    bench = Bench(tiny_model, tmp_path, *QUICK, f"align.rewards.constitution={judge}", method=method)
    cost, meter = bench.method.cost(bench.align, bench.prepared), bench.context.meter
    metrics, _ = bench.train()
    assert metrics["num_steps"] == cost.num_steps
    assert meter.num_calls == cost.num_calls > metrics["num_episodes"] * (1 + judge)
    assert metrics["num_episodes"] < meter.num_tokens_written <= cost.num_tokens_written


def spied(settings: Settings, read: set[str]) -> Any:
    """The same settings; every field that is looked at is noted."""

    def look(self: Any, name: str) -> Any:
        read.add(name)
        return BaseModel.__getattribute__(self, name)

    kind = type(settings)
    copy = settings.model_copy()
    object.__setattr__(copy, "__class__", type(kind.__name__, (kind,), {"__getattribute__": look}))
    return copy


@pytest.mark.parametrize("method", NAMES)
def test_every_setting_of_a_method_is_read(tiny_model: Path, tmp_path: Path, method: str):
    bench = Bench(
        tiny_model,
        tmp_path,
        *[*STEEP, "align.kl_controller=adaptive", "align.min_entropy=0.1", "align.rewards.constitution=1"],
        epochs(method, 0.5),
        method=method,
    )
    read: set[str] = set()
    read_of_rollout: set[str] = set()
    bench.align = spied(bench.align, read)
    object.__setattr__(bench.align, "rollout", spied(bench.align.rollout, read_of_rollout))
    bench.method.check(bench.align, bench.prepared)
    bench.method.cost(bench.align, bench.prepared)
    metrics, _ = bench.train()
    assert metrics["num_rollbacks"] > 0
    unread = type(bench.align).model_fields.keys() - read
    # They are read with the stage reward (tests/unit/test_shortcuts.py) and with the reward group_variance.
    assert unread == {"trust", "group_score"}
    assert type(bench.align.rollout).model_fields.keys() - read_of_rollout == set()
