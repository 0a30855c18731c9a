"""PPO, RLOO and GRPO on a tiny model: they reach a known optimum, and their shared training loop works as described."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, Literal

import peft
import pytest
import torch
from pydantic import BaseModel

from pipeline.chain.compose import compose_config
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.core.errors import StageError
from pipeline.core.log import Usage
from pipeline.core.settings import Settings
from pipeline.core.stage import Context, Prepared
from pipeline.data.counterfactuals import counterfactual_sets
from pipeline.data.drawing import held_out_prompts, rollout_prompts
from pipeline.data.loading import load_prompts
from pipeline.engines.base import Query
from pipeline.engines.prefix import common_length
from pipeline.methods.base import METHODS
from pipeline.methods.policy_gradient.actors import Actors, load_actors
from pipeline.methods.policy_gradient.base import PolicyGradient, prompts_of_step
from pipeline.methods.policy_gradient.config import PolicyGradientConfig
from pipeline.methods.policy_gradient.live import live_engine
from pipeline.methods.policy_gradient.loop import Loop
from pipeline.methods.policy_gradient.rollouts import (
    Rollout,
    RolloutTensors,
    collate,
    draw,
    logprobs_and_entropy,
    measure,
    state_values,
)
from pipeline.methods.rewards import WeightedSum, make_rewards
from pipeline.records import Message, write_records
from pipeline.training.models import lora_config
from pipeline.training.reward import load_reward_base, reward_tokenizer, save_reward_model
from tests.conftest import FEW_PROMPTS
from tests.fakes import FakeEngine

TOYS = Path(__file__).parent / "toy_rewards.py"
TOY = [
    "model.precision=fp32",
    "align.rewards.reward_model=0",
    "align.rewards.toy=1",
    "align.global_batch_size=32",
    "align.rollout.num_red_team=32",
    "align.rollout.num_ordinary=16",
    "align.rollout.num_look_alike=16",
    "align.rollout.max_reply_tokens=12",
    "align.rollout.missing_eos_penalty=null",
    "align.rollout.num_held_out=12",
    "align.rollout.held_out_every_steps=4",
    "align.beta=0.01",
    "align.save_every_steps=2",
    "align.max_kl=null",
    "align.stop_on_second_judge=false",  # it calls the best reply, the empty one, broken
]
QUICK = ["align.global_batch_size=8", "align.num_epochs=0.5", "align.learning_rate=3e-3"]
NAMES = ("ppo", "rloo", "grpo")


def epochs(method: str, number: float) -> str:
    """So many epochs of PPO, and as many rollouts of the others, which draw four replies to each prompt."""
    return f"align.num_epochs={number if method == 'ppo' else number / 4}"


class Bench:
    """Everything that training on rewards takes, on the tiny model."""

    def __init__(self, model: Path, out: Path, *overrides: str, method: str = "ppo", toy: str = "short") -> None:
        toys = [*TOY, f"align.functions.toy={TOYS}:{toy}", f"model.path={model}"]
        self.config = compose_config([f"align={method}", *FEW_PROMPTS, *toys, *overrides])
        self.align: Any = self.config.align
        self.method: Any = METHODS[self.align.method]()
        self.base_path = str(model)
        self.everything = list(load_prompts(self.config.data).prompts)
        self.prompts = rollout_prompts(self.everything, self.align.rollout)
        self.held_out = held_out_prompts(self.everything, self.align.rollout)
        constitution = load_constitution(find_constitution("minimal"))
        self.prepared = Prepared(
            config=self.config, constitution=constitution, prompts=self.everything, stages=("align",)
        )
        self.context = Context(
            stage="align",
            reads={
                "seed": self.config.seed,
                "model": self.config.model,
                "policy_engine": self.config.policy_engine,
                "engine": self.config.engine,
                "constitution": constitution,
                "counterfactuals": counterfactual_sets(self.config.data, self.align.rollout.num_counterfactuals),
            },
            folders={"prompts": out / "prompts", "sft": out / "sft"},
            out=out,
            launch=self.config.launch,
        )
        for folder in (self.context.work, *self.context.folders.values()):
            folder.mkdir(parents=True, exist_ok=True)
        if not (out / "sft" / "model").exists():
            (out / "sft" / "model").symlink_to(model)

    def train(self) -> tuple[dict[str, Any], list[dict[str, float]]]:
        write_records(self.context.folder("prompts") / "prompts.jsonl", self.everything)
        return self.method.train(self.align, self.context)

    def rewards(self) -> WeightedSum:
        return make_rewards(self.align, [*self.prompts, *self.held_out], self.context)

    def actors(self) -> Actors:
        value: Literal["base"] | None = "base" if self.method.uses_value_model else None
        return load_actors(self.base_path, self.config.model, None, False, value, seed=0)

    def loop(self, rewards: WeightedSum | None = None) -> Loop:
        rewards = rewards or self.rewards()
        return Loop(self.method, self.actors(), rewards, self.prompts, self.held_out, self.align, self.context)

    def rollouts(self) -> list[Rollout]:
        """Those of the first step."""
        loop = self.loop()
        return loop._collector.for_training(prompts_of_step(0, self.prompts, self.align, 0), loop._control)


def weights(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "model" / "model.safetensors")


# --- A known optimum -----------------------------------------------------------------------------------------------

TO_THE_OPTIMUM = {
    "ppo": ["align.num_epochs=6", "align.learning_rate=5e-3", "align.value_learning_rate=5e-3"],
    "ppo, full": [
        "model.tuning=full",
        "align.num_epochs=6",
        "align.learning_rate=1e-3",
        "align.value_learning_rate=1e-3",
    ],
    "rloo": ["align.num_epochs=1.25", "align.learning_rate=1e-2"],
    "grpo": ["align.num_epochs=1.25", "align.learning_rate=1e-2"],
    "grpo, full": ["model.tuning=full", "align.num_epochs=1.25", "align.learning_rate=1e-3"],
}


@pytest.mark.parametrize("name", TO_THE_OPTIMUM)
def test_the_shortest_reply_is_found(tiny_model: Path, tmp_path: Path, name: str):
    """Replies have two words at first; the best have none. All methods start from the same model."""
    metrics, history = Bench(tiny_model, tmp_path, *TO_THE_OPTIMUM[name], method=name.partition(",")[0]).train()
    scores = [row["objective/scores"] for row in history]
    assert metrics["score_first"] < -1.5
    assert fmean(scores[-3:]) > -0.25
    assert (tmp_path / "model" / "model.safetensors").exists()


# --- Exactness -----------------------------------------------------------------------------------------------------


class PowerCutError(Exception): ...


def killed_at_call(rewards: WeightedSum, number: int) -> WeightedSum:
    """The same rewards, with the power cut at a call."""
    calls = iter(range(number))

    class Dying(WeightedSum):
        def __call__(self, *args: Any) -> Any:
            if next(calls, None) is None:
                raise PowerCutError
            return rewards(*args)

    return Dying(rewards.parts)


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


# --- Adding a method -----------------------------------------------------------------------------------------------


class AboveTheMean(PolicyGradient):
    """REINFORCE with the batch's mean as its baseline."""

    name = "above_the_mean"

    class Config(PolicyGradientConfig):
        """No more than the loop sets."""

        method: Literal["above_the_mean"] = "above_the_mean"
        """It."""

    def advantages(self, drawn: RolloutTensors, config: Any) -> tuple[torch.Tensor, None]:
        return (drawn.scores - drawn.scores.mean())[:, None] * drawn.mask, None


def test_a_method_is_one_class(tiny_model: Path, tmp_path: Path):
    METHODS.add(AboveTheMean)
    try:
        metrics, history = Bench(
            tiny_model, tmp_path, "align.method=above_the_mean", "align.num_epochs=5", "align.learning_rate=5e-3"
        ).train()
    finally:
        METHODS.remove("above_the_mean")
    assert metrics["score_first"] < -1.5 and fmean(row["objective/scores"] for row in history[-3:]) > -0.5


# --- Rollouts ------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(tiny_model: Path, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Actors, list[Rollout]]:
    """Rollouts of a policy that is no longer its reference, with a critic that says something."""
    bench = Bench(tiny_model, tmp_path)
    if getattr(request, "param", ""):
        turn = Message(role="system", content=request.param)
        bench.prompts = [prompt.model_copy(update={"messages": [turn, *prompt.messages]}) for prompt in bench.prompts]
    actors = bench.actors()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in [*actors.policy_parameters(), *actors.value_parameters()]:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    engine = live_engine(actors, bench.context)
    rollouts = draw(engine, bench.prompts[:6], range(6), bench.align.rollout, bench.context)
    measure(actors, rollouts, 0.7, rows=4, with_values=True)
    return actors, rollouts


@pytest.mark.parametrize("measured", ["", "You are a careful assistant."], indirect=True)
def test_neither_padding_nor_sharing_changes_a_number(measured: tuple[Actors, list[Rollout]]):
    """What was measured in padded batches, with and without a system prompt that all rows share, equals each row
    alone, token by token, without any padding."""
    actors, rollouts = measured
    shared = common_length([rollout.prompt_tokens for rollout in rollouts])
    assert shared >= 8 or rollouts[0].prompt.messages[0]["role"] == "user"
    assert len({len(rollout.prompt_tokens) for rollout in rollouts}) > 1
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_tokens + rollout.reply_tokens])
        start = len(rollout.prompt_tokens)
        with torch.no_grad():
            with actors.policy() as model:
                logits = model(input_ids=ids).logits[0, start - 1 : -1] / 0.7
            with actors.value_trunk() as trunk:
                values = actors.value_head(trunk(input_ids=ids).last_hidden_state[0, start - 1 : -1])[:, 0]
        logprobs = logits.log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]
        assert torch.allclose(rollout.logprobs, logprobs, atol=1e-5)
        assert torch.allclose(rollout.values, values, atol=1e-5)


@pytest.mark.parametrize("measured", ["You are a careful assistant."], indirect=True)
def test_gradients_pass_through_what_is_shared(measured: tuple[Actors, list[Rollout]]):
    actors, rollouts = measured
    gradients = []
    for share in (True, False):
        batch = collate(rollouts, torch.device("cpu"), share=share)
        assert bool(batch.shared_ids.numel()) == share
        with actors.policy() as model:
            (logprobs_and_entropy(model, batch, 0.7)[0] * batch.mask).sum().backward()
        with actors.value_trunk() as trunk:
            (state_values(trunk, actors.value_head, batch) * batch.mask).sum().backward()
        parameters = [*actors.policy_parameters(), *actors.value_parameters()]
        gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
        )
        for parameter in parameters:
            parameter.grad = None
    assert gradients[0].norm() > 1 and torch.allclose(*gradients, atol=1e-3, rtol=1e-3)


def test_a_token_that_also_pads_counts_like_any_other(measured: tuple[Actors, list[Rollout]]):
    """The tiny model's eos is its pad token: replies end in it, and one in the middle of a reply is no padding."""
    actors, rollouts = measured
    pad = actors.tokenizer.pad_token_id
    spoiled = [
        Rollout(index=i, prompt=r.prompt, prompt_tokens=r.prompt_tokens, reply_tokens=tokens, ended=True, text="")
        for i, (r, tokens) in enumerate(zip(rollouts[:2], ([pad, 5, pad, pad], [7, 8]), strict=True))
    ]
    batch = collate(spoiled, torch.device("cpu"))
    assert batch.mask.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.attention_mask.sum().item() == sum(len(r.prompt_tokens) + len(r.reply_tokens) for r in spoiled)


def test_the_reference_is_the_model_that_training_started_from(
    measured: tuple[Actors, list[Rollout]], tiny_model: Path
):
    from transformers import AutoModelForCausalLM

    _, rollouts = measured
    batch = collate(rollouts, torch.device("cpu"))
    with torch.no_grad():
        expected, _ = logprobs_and_entropy(AutoModelForCausalLM.from_pretrained(tiny_model), batch, 0.7)
    for row, rollout in enumerate(rollouts):
        assert torch.allclose(rollout.reference_logprobs, expected[row, : len(rollout.reply_tokens)], atol=1e-5)
        assert abs(rollout.kl_nats) > 1e-3


def test_policy_and_critic_do_not_touch_each_other(measured: tuple[Actors, list[Rollout]]):
    actors, rollouts = measured
    batch = collate(rollouts, torch.device("cpu"))
    with actors.value_trunk() as trunk:
        state_values(trunk, actors.value_head, batch).sum().backward()
    assert all(parameter.grad is None for parameter in actors.policy_parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in actors.value_parameters())


@pytest.mark.parametrize("method", NAMES)
def test_replies_that_were_cut_off_are_marked_and_pay(tiny_model: Path, tmp_path: Path, method: str):
    short = "align.rollout.max_reply_tokens=3"
    rollouts = Bench(tiny_model, tmp_path, short, "align.rollout.missing_eos_penalty=7", method=method).rollouts()
    cut = [rollout for rollout in rollouts if not rollout.ended]
    assert cut and all(len(rollout.reply_tokens) == 3 for rollout in cut)
    assert len(cut) < len(rollouts), "some replies must end, or nothing is told apart"
    for rollout in rollouts:
        limited = min(max(rollout.score, -5.0), 5.0)
        assert rollout.shaped_score == pytest.approx(limited - (0 if rollout.ended else 7))
    dropping = Bench(tiny_model, tmp_path, short, "align.rollout.drop_truncated=true", method=method).loop()
    learned: list[Rollout] = []
    dropping._learner.update = lambda some, *_: learned.extend(some) or {}  # type: ignore
    dropping._step()
    assert {rollout.index for rollout in learned} == {r.index for r in rollouts if r.ended}


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("method", NAMES)
def test_only_what_uses_a_value_model_has_one(tiny_model: Path, tmp_path: Path, method: str, tuning: str):
    bench = Bench(tiny_model, tmp_path, f"model.tuning={tuning}", method=method)
    loop = bench.loop()
    has_one = method == "ppo"
    assert any("value" in name for name in loop._actors.state()) == has_one
    assert len(loop._learner._optimizer.param_groups) == 1 + has_one
    loop._step()
    (row,) = loop._control.history
    assert ("loss/value_avg" in row) == ("val/explained_variance" in row) == has_one
    assert ("loss/kl_avg" in row) == (method == "grpo")


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_a_reply_is_measured_against_its_group(tiny_model: Path, tmp_path: Path, method: str):
    rollouts = Bench(tiny_model, tmp_path, "align.beta=0", "align.out_of_bounds=stop", method=method).rollouts()
    for start in range(0, 32, 4):
        group = rollouts[start : start + 4]
        assert len({rollout.prompt.id for rollout in group}) == 1
        scores = [rollout.shaped_score for rollout in group]
        for row, rollout in enumerate(group):
            others = fmean(score for place, score in enumerate(scores) if place != row)
            deviation = fmean((score - fmean(scores)) ** 2 for score in scores) ** 0.5
            relative = (scores[row] - fmean(scores)) / deviation if deviation else 0.0
            expected = scores[row] - others if method == "rloo" else relative
            assert rollout.advantages.tolist() == pytest.approx([expected] * len(rollout.reply_tokens), abs=1e-5)


# --- Bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NAMES)
def test_a_policy_out_of_bounds_is_never_the_best(tiny_model: Path, tmp_path: Path, method: str):
    """Its last update may be what carries it out: nobody draws from it any more but the held-out prompts."""
    one_step = ["align.global_batch_size=16", epochs(method, 0.25), "align.learning_rate=2e-2", "align.beta=1e-6"]
    bounds = ["align.num_ppo_epochs=8", "align.max_kl=0.5"]
    metrics, (row,) = Bench(tiny_model, tmp_path, *one_step, *bounds, method=method).train()
    assert row["held_out/kl"] > 0.5 and row["held_out/objective"] > fmean(metrics["held_out_scores"]["0"])
    assert metrics["best_step"] == 0


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_recomputing_activations_changes_nothing(tiny_model: Path, tmp_path: Path, tuning: str):
    """Over more than one step, so that rollouts are measured after an update; all prompts begin alike."""
    steps = [*QUICK, f"model.tuning={tuning}", "align.num_epochs=0.25"]
    plain, recomputed = (
        Bench(tiny_model, tmp_path / asked, *steps, f"launch.gradient_checkpointing={asked}")
        for asked in ("false", "true")
    )
    for bench in (plain, recomputed):
        for prompt in bench.everything:
            prompt.messages.insert(0, Message(role="system", content="Be brief and kind, and say what you know."))
    before, after = plain.train()[1], recomputed.train()[1]
    assert len(before) == len(after) == 2
    for one, other in zip(before, after, strict=True):
        assert one["objective/scores"] == other["objective/scores"]
        assert one["loss/policy_avg"] == pytest.approx(other["loss/policy_avg"], abs=1e-4)


STEEP = ["align.global_batch_size=8", "align.learning_rate=3e-2", "align.max_kl=0.5"]


@pytest.mark.parametrize("method", NAMES)
def test_it_goes_back_when_the_kl_leaves_its_bound(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, method: str
):
    steep = [*STEEP, epochs(method, 1), "align.max_rollbacks=1"]
    metrics, history = Bench(tiny_model, tmp_path, *steep, method=method).train()
    out = [row["step"] for row in history if row["objective/kl"] > 0.5]
    assert metrics["num_rollbacks"] == 1 and "KL is" in metrics["stopped"]
    assert [row["objective/kl_coefficient"] for row in history][-1] == 0.02, "it pulls twice as hard from there"
    assert len(out) == 2 and history[-1]["step"] == out[-1] < 8
    assert "align.max_kl=0.5; back to the policy of step" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("method", NAMES)
def test_it_stops_when_asked_to(tiny_model: Path, tmp_path: Path, method: str):
    steep = [*STEEP, epochs(method, 1), "align.out_of_bounds=stop"]
    metrics, history = Bench(tiny_model, tmp_path, *steep, method=method).train()
    assert metrics["num_rollbacks"] == 0 and "KL is" in metrics["stopped"] and len(history) < 8
    collapsed, _ = Bench(tiny_model, tmp_path / "b", *QUICK, "align.min_entropy=9", method=method).train()
    assert "entropy is" in collapsed["stopped"]


@pytest.mark.parametrize("method", NAMES)
def test_the_best_policy_is_the_one_that_is_kept(tiny_model: Path, tmp_path: Path, method: str):
    """With a steep rate later policies are worse; what is saved is the one with the best held-out score less KL."""
    steep = [*STEEP, epochs(method, 1), "align.max_kl=null", "align.rollout.held_out_every_steps=1", "align.beta=0.5"]
    bench = Bench(tiny_model, tmp_path, *steep, method=method)
    metrics, history = bench.train()
    objectives = {0: fmean(metrics["held_out_scores"]["0"])}  # the KL is zero there
    objectives |= {row["step"]: row["held_out/objective"] for row in history}
    best = max(objectives, key=lambda step: objectives[step])
    assert metrics["best_step"] == best != history[-1]["step"]
    saved = bench.actors()
    bench.loop()._checkpoints.load(f"best-{best}", lambda state: saved.load_state(state["weights"]))
    saved.save(tmp_path / "again")
    one, other = weights(tmp_path), weights(tmp_path / "again")
    assert all(torch.equal(one[key], other[key]) for key in one)


# --- Rewards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toy", "expected"),
    [
        ("not_a_number", "align.rewards.toy gave nan for the completion"),
        ("too_few", "align.rewards.toy gave 1 rewards for"),
        ("raises", "align.rewards.toy failed on"),
    ],
)
def test_a_bad_reward_is_one_sentence(tiny_model: Path, tmp_path: Path, toy: str, expected: str):
    with pytest.raises(StageError, match=expected):
        Bench(tiny_model, tmp_path, toy=toy).rollouts()


def test_rewards_add_up_by_weight(tiny_model: Path, tmp_path: Path):
    """A function and the constitution's judge, asked directly of single replies."""
    bench = Bench(tiny_model, tmp_path, "align.rewards.constitution=0.5", "align.rewards.toy=2")
    rewards = bench.rewards()
    prompts = [prompt.messages for prompt in bench.prompts[:3]]
    replies = ["one", "two words", ""]
    found = rewards(prompts, replies)
    assert found.parts["toy"] == [-1.0, -2.0, 0.0]
    assert len(set(found.parts["constitution"])) == 3
    expected = [2 * t + 0.5 * c for t, c in zip(found.parts["toy"], found.parts["constitution"], strict=True)]
    assert found.totals == pytest.approx(expected)
    assert rewards(prompts[::-1], replies[::-1]).totals == pytest.approx(found.totals[::-1], abs=1e-4)


def judge(is_readable: Callable[[Query], bool]) -> FakeEngine:
    return FakeEngine(answer=lambda query: [-0.2, -2.0] if is_readable(query) else [-100.0, -100.0])


def test_rewards_that_can_t_be_read_are_counted_and_stop_where_none_can(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    warnings: list[str] = []
    monkeypatch.setattr("pipeline.core.counts.warn", warnings.append)
    patchy = judge(lambda query: int(query.id.split("/")[0]) % 2 == 0)  # every second row
    monkeypatch.setattr("pipeline.methods.rewards.feedback_engine", lambda context: patchy)
    bench = Bench(tiny_model, tmp_path, "align.rewards.constitution=1", "align.judge.kind=pointwise", *QUICK)
    found = bench.rewards()([prompt.messages for prompt in bench.prompts[:3]], ["a", "b", "c"])
    assert found.unreadable == [False, True, False]
    assert [bool(reward) for reward in found.parts["constitution"]] == [True, False, True]
    metrics, history = bench.train()
    counts = [row["val/num_unreadable_rewards"] for row in history]
    assert metrics["num_unreadable_rewards"] == sum(counts) > 0
    assert len(warnings) == 1 and "replies have the constitution's reward 0" in warnings[0]

    monkeypatch.setattr("pipeline.methods.rewards.feedback_engine", lambda context: judge(lambda query: False))
    with pytest.raises(StageError, match=r"all .* replies have the constitution's reward 0"):
        bench.rollouts()
