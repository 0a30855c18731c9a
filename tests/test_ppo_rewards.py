"""PPO, RLOO and GRPO on a tiny model: rewards add up, and bad ones are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.errors import StageError
from pipeline.engines.base import Query
from tests.fakes import FakeEngine
from tests.ppo_bench import QUICK, Bench


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
