"""A second judge beside a planted reward, in the loop of RLOO on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.evals.judges.base import JUDGES, Item, Judge, JudgeConfig, Judged
from pipeline.records import HeldOutPoint, read_records
from tests.ppo_bench import Bench, PowerCutError, killed_at_call, weights

Tiny = Callable[..., Config]
MINUS_WORDS = "short"  # of tests/toy_rewards.py: it likes one token, the end of the turn
PLANTED = [
    "align.second_judge.kind=says_little",
    "align.stop_on_second_judge=true",
    "align.num_epochs=1.25",
    "align.learning_rate=5e-3",
    "align.rollout.held_out_every_steps=1",
    "align.rollout.num_held_out=24",
]


class SaysLittle(Judge):
    """Right is every reply of one or two words, whatever was asked."""

    name, templates = "says_little", ("1",)
    question = "does the reply say little, but something?"
    who = "says-little"

    class Config(JudgeConfig):
        """Counts replies of one or two words as right."""

        kind: Literal["says_little"] = "says_little"
        """The number of words."""

    def judge(self, items: Sequence[Item]) -> dict[str, Judged]:
        found = {}
        for item in items:
            little = len(item.reply.split()) in (1, 2)
            found[item.id] = Judged(outcome="broken" if not little else "refused" if item.harmful else "complied")
        return found


@pytest.fixture(autouse=True)
def says_little() -> Iterator[None]:
    JUDGES.add(SaysLittle)
    yield
    JUDGES.remove("says_little")


def measured(out: Path) -> list[HeldOutPoint]:
    return list(read_records(out / "held_out.jsonl", HeldOutPoint))


def test_a_planted_reward_is_stopped_and_the_best_policy_by_the_second_judge_is_kept(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    bench = Bench(tiny_model, tmp_path, *PLANTED, method="rloo", toy=MINUS_WORDS)
    metrics, history = bench.train()
    points = measured(tmp_path)
    shares = {point.step: point.share_right or 0.0 for point in points}
    best = max(shares, key=lambda step: (shares[step], step))
    assert metrics["num_steps"] == len(history) == points[-1].step < 10, "it ends before its last step"
    assert 0 < best == metrics["best_step"] == metrics["second_judge"]["best_step"] < points[-1].step
    assert shares[best] > shares[points[-1].step] + 0.2
    sentence = metrics["second_judge"]["overoptimised"]
    last = points[-1].step
    assert sentence.startswith(f"at step {last} the reward rises while the second judge falls: since step {best} the")
    assert metrics["stopped"] == f"{sentence}; the policy of step {best} is kept"
    assert history[-1]["overoptimised"] == sentence and not any("overoptimised" in row for row in history[:-1])
    assert f"{sentence}; training stops, and the policy of step {best} is kept." in caplog.messages
    assert [row["held_out/second_judge"] for row in history] == [point.share_right for point in points[1:]]
    saved = bench.actors()
    bench.loop()._checkpoints.load(f"best-{best}", lambda state: saved.load_state(state["weights"]))
    saved.save(tmp_path / "again")
    one, other = weights(tmp_path), weights(tmp_path / "again")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_if_asked_to_it_only_warns(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    options = [*PLANTED, "align.stop_on_second_judge=false"]
    metrics, history = Bench(tiny_model, tmp_path, *options, method="rloo", toy=MINUS_WORDS).train()
    sentence = metrics["second_judge"]["overoptimised"]
    assert metrics["stopped"] is None and metrics["num_steps"] == len(history) == 10
    assert metrics["best_step"] > metrics["second_judge"]["best_step"], "the reward chooses"
    said = f"{sentence}; align.stop_on_second_judge is false, so training goes on."
    assert caplog.messages.count(said) == 1
    assert [row["overoptimised"] for row in history if "overoptimised" in row] == [sentence]


def test_a_sound_reward_is_not_stopped(tiny_model: Path, tmp_path: Path):
    """It likes words, and the patterns don't mind them."""
    options = [*PLANTED, "align.second_judge.kind=patterns"]
    metrics, history = Bench(tiny_model, tmp_path, *options, method="rloo", toy="wordy").train()
    points = measured(tmp_path)
    assert metrics["stopped"] is metrics["second_judge"]["overoptimised"] is None and len(history) == 10
    assert [point.step for point in points] == list(range(11)) and points[0].kl == pytest.approx(0, abs=1e-5)
    assert sum(points[-1].rewards) > sum(points[0].rewards) + len(points[0].rewards), "a word a reply, at least"


def test_a_killed_run_has_the_same_points_and_stops_at_the_same_step(tiny_model: Path, tmp_path: Path):
    whole = Bench(tiny_model, tmp_path / "whole", *PLANTED, method="rloo", toy=MINUS_WORDS).train()
    torn = Bench(tiny_model, tmp_path / "torn", *PLANTED, method="rloo", toy=MINUS_WORDS)
    for number in (6, 2):  # calls: held-out at the start, then two a step
        with pytest.raises(PowerCutError):
            torn.loop(killed_at_call(torn.rewards(), number)).train()
    metrics, history = torn.train()
    assert metrics.pop("resumed_from_step") > 0 == whole[0].pop("resumed_from_step")
    assert (metrics, history) == whole
    assert measured(tmp_path / "torn") == measured(tmp_path / "whole")


def test_two_ranks_stop_together(tiny: Tiny):
    """Each rank has all replies, so both decide alike; the patterns call an empty reply broken."""
    toys = Path(__file__).parent / "toy_rewards.py"
    options: list[Any] = [
        *("align.rewards.reward_model=0", "align.rewards.toy=1", f"align.functions.toy={toys}:{MINUS_WORDS}"),
        *("align.rollout.num_red_team=16", "align.rollout.num_ordinary=32", "align.rollout.num_look_alike=16"),
        *("align.global_batch_size=32", "align.num_replies=4", "align.num_minibatches=4", "align.beta=0.01"),
        *("align.learning_rate=1e-2", "align.num_epochs=1.25", "align.max_kl=null"),
        *("align.rollout.num_held_out=24", "align.rollout.held_out_every_steps=2", "align.rollout.max_reply_tokens=12"),
        "align.rollout.missing_eos_penalty=null",
    ]
    run(tiny("align=rloo", "until=sft", *options))
    done = run(tiny("align=rloo", "until=align", "launch.num_processes=2", *options)).stages["align"]
    metrics = done.manifest.metrics
    assert done.manifest.environment["num_processes"] == "2"
    assert "the reward rises while the second judge falls" in metrics["stopped"] and metrics["num_steps"] < 10
    points = [json.loads(line) for line in (done.folder / "held_out.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == list(range(0, metrics["num_steps"] + 1, 2))
