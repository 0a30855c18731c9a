"""PPO, RLOO and GRPO on a tiny model: they reach a known optimum, and PPO is exact."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from pipeline.chain.config_train import AlignConfig
from pipeline.methods.alignment import RewardSources, make_rewards, train_ppo
from pipeline.training.setting import Setting

from pipeline.chain.compose import compose_config
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.core.errors import StageError
from pipeline.core.tracking import NoTracker
from pipeline.data.loading import load_prompts
from pipeline.engines.base import Stopwatch
from pipeline.methods.policy_gradient.actors import Actors, load_actors
from pipeline.methods.policy_gradient.loop import PPO
from pipeline.methods.policy_gradient.rollouts import (
    Rollout,
    collate,
    common_length,
    draw,
    logprobs_and_entropy,
    measure,
    state_values,
)
from pipeline.methods.rewards import WeightedSum
from pipeline.records import Message, Prompt

TOYS = Path(__file__).parent / "toy_rewards.py"
TOY = [
    "model.lora.upper_share=1",
    "align.rewards.reward_model=0",
    "+align.rewards.toy=1",
    "align.global_batch_size=32",
    "align.rollout.max_reply_tokens=12",
    "align.rollout.missing_eos_penalty=null",
    "align.rollout.held_out_every_steps=4",
    "align.beta=0.01",
    "align.save_every_steps=2",
    "align.ppo.max_kl=null",
]
QUICK = ["align.global_batch_size=8", "align.num_epochs=0.5", "align.learning_rate=3e-3"]


class Bench:
    """Everything that training on rewards takes, on the tiny model."""

    def __init__(self, model: Path, out: Path, *overrides: str, toy: str = "short") -> None:
        config = compose_config(
            ["align=ppo", *TOY, f"+align.functions.toy={TOYS}:{toy}", f"model.path={model}", *overrides]
        )
        self.align: AlignConfig = config.align
        self.model = str(model)
        self.setting = Setting(
            model=config.model, launch=config.launch, seed=0, out=out, tracker=NoTracker(), watch=Stopwatch()
        )
        self.setting.work.mkdir(parents=True, exist_ok=True)
        prompts = load_prompts(config.data).prompts
        self.prompts: list[Prompt] = [prompt for prompt in prompts if prompt.split == "train"][:64]
        self.held_out: list[Prompt] = [prompt for prompt in prompts if prompt.split == "validation"][:12]
        self.sources = RewardSources(
            folder=None,
            shares_base=False,
            constitution=load_constitution(find_constitution("minimal")),
            engine=config.engine,
            preferences=config.preferences,
        )

    def train(self) -> tuple[dict[str, Any], list[dict[str, float]]]:
        if self.align.method == "ppo":
            return train_ppo(self.prompts, self.held_out, self.model, self.align, self.sources, self.setting)
        from pipeline.methods.online import train_online

        return train_online(self.prompts, self.model, self.align, self.rewards(), self.setting)

    def rewards(self) -> WeightedSum:
        return make_rewards(self.align, self.sources, self.prompts, self.setting)

    def actors(self) -> Actors:
        return load_actors(self.model, self.setting.model, None, False, True, seed=0)

    def ppo(self, rewards: WeightedSum | None = None) -> PPO:
        return PPO(self.actors(), rewards or self.rewards(), self.prompts, self.held_out, self.align, self.setting)


def weights(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "model" / "model.safetensors")


# --- A known optimum -----------------------------------------------------------------------------------------------

METHODS = {
    "ppo": ["align.num_epochs=6", "align.learning_rate=5e-3", "align.ppo.value_learning_rate=5e-3"],
    "ppo, full": [
        "model.tuning=full",
        "align.num_epochs=6",
        "align.learning_rate=1e-3",
        "align.ppo.value_learning_rate=1e-3",
    ],
    "rloo": ["align=rloo", "align.num_epochs=1.25", "align.learning_rate=1e-2"],
    "grpo": ["align=grpo", "align.num_epochs=1.25", "align.learning_rate=1e-2"],
}


@pytest.mark.parametrize("method", METHODS)
def test_the_shortest_reply_is_found(tiny_model: Path, tmp_path: Path, method: str):
    """Replies have two words at first; the best have none. All methods start from the same model."""
    metrics, history = Bench(tiny_model, tmp_path, *METHODS[method]).train()
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


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_killed_and_resumed_equals_undisturbed_bit_for_bit(tiny_model: Path, tmp_path: Path, tuning: str):
    overrides = [
        *QUICK,
        f"model.tuning={tuning}",
        "align.ppo.normalise_scores=true",
        "align.ppo.kl_controller=adaptive",
    ]
    _, undisturbed = Bench(tiny_model, tmp_path / "undisturbed", *overrides).train()
    bench = Bench(tiny_model, tmp_path / "disturbed", *overrides)
    for number in (2, 4):  # calls: held-out at the start, then one a step, and the held-out ones between
        with pytest.raises(PowerCutError):
            bench.ppo(killed_at_call(bench.rewards(), number)).train()
    metrics, resumed = bench.train()
    assert metrics["resumed_from_step"] > 0
    assert resumed == undisturbed
    one, other = weights(tmp_path / "undisturbed"), weights(tmp_path / "disturbed")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_another_seed_gives_another_run(tiny_model: Path, tmp_path: Path):
    bench = Bench(tiny_model, tmp_path, *QUICK)
    _, first = bench.train()
    object.__setattr__(bench.setting, "seed", 1)
    object.__setattr__(bench.setting, "out", tmp_path / "other")
    _, second = bench.train()
    assert first != second


def test_an_epoch_asks_every_prompt_once_in_an_order_of_its_own(tiny_model: Path, tmp_path: Path):
    bench = Bench(tiny_model, tmp_path, "align.global_batch_size=16")
    ppo = bench.ppo()
    epochs = [[prompt.id for step in range(4) for prompt in ppo._batch_of(4 * epoch + step)] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(prompt.id for prompt in bench.prompts)
    assert epochs[0] != epochs[1]


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
    rollouts = draw(actors, bench.prompts[:6], range(6), bench.align.rollout, batch_rows=4)
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


def test_replies_that_were_cut_off_are_marked_and_pay(tiny_model: Path, tmp_path: Path):
    bench = Bench(tiny_model, tmp_path, "align.rollout.max_reply_tokens=3", "align.rollout.missing_eos_penalty=7")
    ppo = bench.ppo()
    rollouts = ppo._collect(0)
    cut = [rollout for rollout in rollouts if not rollout.ended]
    assert cut and all(len(rollout.reply_tokens) == 3 for rollout in cut)
    assert len(cut) < len(rollouts), "some replies must end, or nothing is told apart"
    for rollout, shaped in zip(rollouts, ppo._shaped(rollouts), strict=True):
        limited = min(max(rollout.score, -5.0), 5.0)
        assert shaped == pytest.approx(limited - (0 if rollout.ended else 7))
    dropping = Bench(
        tiny_model, tmp_path, "align.rollout.max_reply_tokens=3", "align.rollout.drop_truncated=true"
    ).ppo()
    learned: list[Rollout] = []
    dropping._learner.update = lambda some, step: learned.extend(some) or {}  # type: ignore
    dropping._step()
    assert {rollout.index for rollout in learned} == {r.index for r in rollouts if r.ended}


# --- Bounds --------------------------------------------------------------------------------------------------------


def test_a_policy_out_of_bounds_is_never_the_best(tiny_model: Path, tmp_path: Path):
    """Its last update may be what carries it out: nobody draws from it any more but the held-out prompts."""
    one_step = ["align.global_batch_size=16", "align.num_epochs=0.25", "align.learning_rate=1e-2", "align.beta=1e-6"]
    bounds = ["align.ppo.num_passes=8", "align.ppo.value_learning_rate=1e-2", "align.ppo.max_kl=0.5"]
    metrics, (row,) = Bench(tiny_model, tmp_path, *one_step, *bounds).train()
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
        for prompt in bench.prompts:
            prompt.messages.insert(0, Message(role="system", content="Be brief and kind, and say what you know."))
    before, after = plain.train()[1], recomputed.train()[1]
    assert len(before) == len(after) == 2
    for one, other in zip(before, after, strict=True):
        assert one["objective/scores"] == other["objective/scores"]
        assert one["loss/policy_avg"] == pytest.approx(other["loss/policy_avg"], abs=1e-4)


STEEP = ["align.global_batch_size=8", "align.num_epochs=1", "align.learning_rate=3e-2", "align.ppo.max_kl=0.5"]


def test_it_goes_back_when_the_kl_leaves_its_bound(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    metrics, history = Bench(tiny_model, tmp_path, *STEEP, "align.ppo.max_rollbacks=1").train()
    out = [row["step"] for row in history if row["objective/kl"] > 0.5]
    assert metrics["num_rollbacks"] == 1 and "KL is" in metrics["stopped"]
    assert [row["objective/kl_coefficient"] for row in history][-1] == 0.02, "it pulls twice as hard from there"
    assert len(out) == 2 and history[-1]["step"] == out[-1] < 8
    assert "align.ppo.max_kl=0.5; back to the policy of step" in " ".join(capsys.readouterr().err.split())


def test_it_stops_when_asked_to(tiny_model: Path, tmp_path: Path):
    metrics, history = Bench(tiny_model, tmp_path, *STEEP, "align.ppo.out_of_bounds=stop").train()
    assert metrics["num_rollbacks"] == 0 and "KL is" in metrics["stopped"] and len(history) < 8
    collapsed, _ = Bench(tiny_model, tmp_path / "b", *QUICK, "align.ppo.min_entropy=9", *STEEP[:1]).train()
    assert "entropy is" in collapsed["stopped"]


def test_the_best_policy_is_the_one_that_is_kept(tiny_model: Path, tmp_path: Path):
    """With a steep rate later policies are worse; what is saved is the one with the best held-out score less KL."""
    steep = [*STEEP, "align.ppo.max_kl=null", "align.rollout.held_out_every_steps=1", "align.beta=0.5"]
    bench = Bench(tiny_model, tmp_path, *steep)
    metrics, history = bench.train()
    objectives = {0: fmean(metrics["held_out_scores"]["0"])}  # the KL is zero there
    objectives |= {row["step"]: row["held_out/objective"] for row in history}
    best = max(objectives, key=lambda step: objectives[step])
    assert metrics["best_step"] == best != history[-1]["step"]
    saved = bench.actors()
    bench.ppo()._checkpoints.load(f"best-{best}", lambda state: saved.load_state(state["weights"]))
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
        Bench(tiny_model, tmp_path, toy=toy).ppo()._collect(0)


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
