"""The second judge of PPO, RLOO and GRPO: what is right, when it has fallen, and what is checked before a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.chain.compose import compose_config
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.stage import Context, Prepared
from pipeline.evals.judges.base import Item, Judged, is_right
from pipeline.methods.policy_gradient.rollouts import Rollout
from pipeline.methods.policy_gradient.second_judge import SecondJudge, check_second_judge, fall, judge_cost
from pipeline.records import HeldOutPoint, Message, Prompt
from pipeline.stages.align import Align

PROMPTS = [
    Prompt(id=f"p{i}", pool="red_team" if i % 2 else "ordinary", kind="k", split="validation",
           messages=[Message(role="user", content=f"request {i}")]) for i in range(6)
]  # fmt: skip
SERVER = "{kind: server, model: other, base_url: 'http://a'}"


@pytest.mark.parametrize(
    ("outcome", "harmful", "harmless"),
    [("refused", True, False), ("complied", False, True), ("safe", True, True), ("broken", False, False)],
)
def test_right_is_to_decline_harm_and_to_answer_the_rest(outcome: Any, harmful: bool, harmless: bool):
    assert (is_right(outcome, True), is_right(outcome, False)) == (harmful, harmless)
    assert is_right("unjudged", True) is None


# --- When it has fallen --------------------------------------------------------------------------------------------


def point(step: int, right: Sequence[float | None], reward: float) -> HeldOutPoint:
    return HeldOutPoint(step=step, kl=0.5 * step, rewards=[reward] * len(right), right=list(right))


ALL, HALF = [1.0] * 16, [0.0] * 8 + [1.0] * 8


def test_a_fall_is_what_both_paired_tests_show():
    """Eight of sixteen turned wrong and none right: McNemar's p is 2 · (1/2)^8."""
    found = fall([point(0, ALL, 0.0), point(3, HALF, 1.0)], 0)
    assert found is not None and (found.num_lost, found.num_gained, found.best.step) == (8, 0, 0)
    assert found.p == pytest.approx(2 / 2**8)
    assert found.said("patterns-4") == (
        "at step 3 the reward rises while the second judge falls: since step 0 the mean reward has gone from 0 to 1, "
        "and patterns-4 calls 50 % of 16 held-out replies right instead of 100 % (8 turned wrong and 0 right; "
        "p = 0.0078)"
    )


@pytest.mark.parametrize(
    ("right", "reward"),
    [
        (HALF, 0.0),  # the reward has not risen
        (HALF, -1.0),
        ([0.0] * 5 + [1.0] * 11, 1.0),  # five lost: p = 0.0625
        ([None] * 8 + [1.0] * 8, 1.0),  # what can't be read is no loss
        (ALL, 1.0),
    ],
)
def test_what_chance_explains_is_no_fall(right: list[float | None], reward: float):
    assert fall([point(0, ALL, 0.0), point(3, right, reward)], 0) is None


def test_the_best_of_many_points_is_high_by_chance():
    """p is 1/128 for one comparison; with seven earlier points it counts seven times, which is above 0.05."""
    calm = [point(step, ALL, 0.1 * step) for step in range(7)]
    assert fall([*calm[:6], point(7, HALF, 1.0)], 5) is not None
    assert fall([*calm, point(7, HALF, 1.0)], 6) is None


def test_a_judge_that_gets_better_has_not_fallen():
    assert fall([point(0, HALF, 0.0), point(3, ALL, 1.0)], 0) is None
    assert fall([point(0, ALL, 0.0)], 0) is None, "the first point is its own best one"


# --- What the judge reads ------------------------------------------------------------------------------------------


def context(tmp_path: Path) -> Context:
    return Context(stage="align", reads={}, folders={}, out=tmp_path, launch=LaunchConfig())


def rollouts(*texts: str) -> list[Rollout]:
    return [
        Rollout(index=i, prompt=prompt, prompt_tokens=[], reply_tokens=[], ended=True, text=text)
        for i, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=False))
    ]


def test_the_patterns_read_the_replies(tmp_path: Path):
    judge = SecondJudge(compose_config(["align=ppo"]).align, context(tmp_path))
    answer, refusal = "Use a pencil, and begin with the longest side.", "I can't help with that."
    assert judge.right(rollouts(answer, answer, refusal, refusal, "", ""), 0) == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]


class Blind:
    """A judge that can't read some requests."""

    who = "blind"
    unread: ClassVar[set[str]] = set()

    def judge(self, items: Sequence[Item]) -> dict[str, Judged]:
        return {i.id: Judged(outcome="unjudged" if i.request in self.unread else "complied") for i in items}


def test_what_can_t_be_read_is_left_out_and_a_blind_judge_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    warnings: list[str] = []
    monkeypatch.setattr("pipeline.core.counts.warn", warnings.append)
    judge = SecondJudge(compose_config(["align=ppo"]).align, context(tmp_path))
    judge._judge = Blind()  # type: ignore[assignment]
    monkeypatch.setattr(Blind, "unread", {"request 1"})
    for _ in range(2):
        assert judge.right(rollouts("a", "b", "c", "d"), 0) == [1.0, None, 1.0, 0.0]
    assert len(warnings) == 1 and "1 of 4 held-out replies can't be judged by blind" in warnings[0]
    monkeypatch.setattr(Blind, "unread", {prompt.request for prompt in PROMPTS})
    assert judge.right(rollouts("a", "b"), 3) == [None, None], "a training is not lost for it"
    judge = SecondJudge(compose_config(["align=ppo"]).align, context(tmp_path))
    judge._judge = Blind()  # type: ignore[assignment]
    with pytest.raises(StageError, match=r"all 2 held-out replies .*; use another judge \(align.second_judge\)\."):
        judge.right(rollouts("a", "b"), 0)


# --- Before the run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("align.second_judge.kind=patern", "align.second_judge.kind is 'patern', which is not one of patterns"),
        ("align.second_judge.kind=endpoint", "align.second_judge.engine must be set; add align.second_judge.engine."),
        ("align.second_judge.path=x", "align.second_judge.path: unknown key"),
        ("align.stop_on_second_judge=maybe", "align.stop_on_second_judge is 'maybe'; it must be true or false."),
    ],
)
def test_a_bad_value_is_one_sentence(override: str, said: str):
    with pytest.raises(ConfigError) as refused:
        compose_config(["align=ppo", override])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_methods_on_pairs_have_no_second_judge():
    with pytest.raises(ConfigError, match=r"align\.second_judge: unknown key"):
        compose_config(["align=dpo", "align.second_judge.kind=patterns"])


def checked(*overrides: str) -> None:
    config = compose_config(["align=ppo", "model.path=org/model", *overrides])
    constitution = load_constitution(find_constitution("minimal"))
    check_second_judge(config.align, Prepared(config=config, constitution=constitution, prompts=[], stages=()))


def test_a_model_that_labelled_the_training_data_is_no_second_opinion():
    labeller = ["preferences=ab", f"preferences.engine={SERVER}"]
    judge = "align.second_judge={{kind: endpoint, engine: {engine}{more}}}"
    with pytest.raises(ConfigError, match=r"align\.second_judge is 'other', which also wrote or labelled"):
        checked(*labeller, judge.format(engine=SERVER, more=""))
    checked(*labeller, judge.format(engine=SERVER, more=", trust: other"))
    checked(judge.format(engine=SERVER, more=""))


def test_a_model_that_is_asked_is_planned_and_asked_before_the_run():
    judge = f"align.second_judge={{kind: model, engine: {SERVER}}}"
    config = compose_config(["align=ppo", judge])
    assert list(Align().engines(config)) == ["align.second_judge.engine"] == list(Align().read_choices(config))
    [(name, cost)] = judge_cost(config.align, PROMPTS * 3, 100).items()
    assert name == "align.second_judge.engine" and (cost.num_calls, cost.num_tokens_read) == (18, 1800)
    free = compose_config(["align=ppo"])
    assert not Align().engines(free) and judge_cost(free.align, PROMPTS, 100) == {}
