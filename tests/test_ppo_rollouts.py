"""PPO, RLOO and GRPO on a tiny model: what is measured of rollouts, and what becomes of their advantages."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest
import torch

from pipeline.engines.prefix import common_length
from pipeline.methods.policy_gradient.actors import Actors
from pipeline.methods.policy_gradient.live import live_engine
from pipeline.methods.policy_gradient.rollouts import (
    Rollout,
    collate,
    draw,
    logprobs_and_entropy,
    measure,
    state_values,
)
from pipeline.records import Message
from tests.ppo_bench import NAMES, Bench


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
