"""The costs in ``cai plan`` are upper bounds, and at most 10 % too high if nothing is dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.chain.config import Config
from pipeline.chain.order import stages_of
from pipeline.chain.plan import plan, reach_engines, usage
from pipeline.chain.preflight import preflight
from pipeline.chain.runner import run, run_name
from pipeline.cli import main
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Cost
from pipeline.engines.base import ENGINES

Tiny = Callable[..., Config]
BASES = {
    "likelihood, with contrasts": ["constitution=default"],
    "four rounds": ["critique.num_rounds=4"],
    "every pool is revised": ["constitution=plain_speech"],
    "ab, sampled pairs": ["preferences=ab", "preferences.pairs=sampled", "preferences.labeller.min_answer_mass=0"],
    "ab, four samples": ["preferences=feedback", "preferences.labeller.min_answer_mass=0"],
    "cot": ["preferences=cot", "preferences.labeller.num_principles=2", "preferences.labeller.min_answer_mass=0"],
    "pointwise": ["preferences=pointwise", "preferences.labeller.num_principles=2"],
}


@pytest.mark.parametrize("base", BASES)
def test_the_plan_bounds_a_counted_run(tiny: Tiny, base: str):
    config = tiny(*BASES[base], "align.rewards.reward_model=1", "until=reward")
    planned = {step.stage: step.cost for step in plan(preflight(config))}
    stages = run(config).stages
    complete = True  # nothing was dropped so far, so later stages were asked all that was planned
    for name in ("critique", "preferences", "reward"):
        manifest, cost = stages[name].manifest, planned[name]
        assert manifest.num_calls <= cost.num_calls, name
        assert manifest.num_tokens_written <= cost.num_tokens_written, name
        complete = complete and not dropped(name, manifest.metrics)
        assert not complete or cost.num_calls <= 1.1 * manifest.num_calls, name
    assert stages["sft"].manifest.metrics["num_steps"] <= planned["sft"].num_steps


def dropped(stage: str, metrics: dict[str, int]) -> bool:
    names = {"critique": ["num_empty", "num_too_long_for_the_context"], "reward": ["num_unusable"]}
    return any(metrics[name] for name in names.get(stage, ["num_empty_dropped", "num_identical_dropped"]))


@pytest.mark.parametrize("experiment", ["none", "paper", "smoke"])
@pytest.mark.parametrize("method", ["dpo", "ipo", "cpo", "kto", "ppo", "rloo", "grpo"])
def test_every_preset_and_method_has_a_plan(tiny: Tiny, experiment: str, method: str):
    config = tiny(f"align={method}", f"experiment={experiment}")
    steps = plan(preflight(config))
    assert [step.stage for step in steps] == [stage.name for stage in stages_of(config)]
    costs = {step.stage: step.cost for step in steps}
    assert costs["sft"].num_steps > 0 and costs["align"].num_steps > 0 and costs["critique"].num_calls > 0


@pytest.mark.parametrize("launch", ["fsdp2", "zero3", "ddp"])
def test_a_run_is_planned_for_a_machine_that_is_not_this_one(tiny: Tiny, launch: str):
    batches = [f"{stage}.global_batch_size=512" for stage in ("sft", "reward", "align")]
    config = tiny(f"launch={launch}", "launch.num_processes=512", "launch.device_memory_gib=80", *batches)
    assert plan(preflight(config, elsewhere=True))
    with pytest.raises(ConfigError, match=r"launch.num_processes is 512 but this machine has \d+ "):
        preflight(config)


def test_a_shorter_run_does_not_take_the_place_of_the_whole_one(tiny: Tiny):
    config = tiny()
    constitution = preflight(config).constitution
    names = {run_name(config.model_copy(update={"until": until}), constitution) for until in ("sft", "align", "report")}
    assert len(names) == 3


def test_an_option_of_another_command_is_named_as_such(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "--multirun", "align=dpo,ppo"]) == 2
    assert "`cai plan` has no option '--multirun'; see `cai plan --help`" in capsys.readouterr().err


def test_evaluations_without_replies_have_a_plan(tiny: Tiny):
    [step] = (step for step in plan(preflight(tiny("evaluate.suites=[pairs]"))) if step.stage == "evaluate")
    assert step.cost.roles["engine"].num_calls > 0 and step.cost.num_tokens_written == 0


def test_whoever_is_asked_reads_something(tiny: Tiny):
    steps = plan(preflight(tiny("constitution=default")))
    shares = {(step.stage, role): share for step in steps for role, share in step.cost.roles.items()}
    asked = {key for key, share in shares.items() if share.num_tokens_written}
    assert ("preferences", "policy_engine") in asked
    assert all(shares[key].num_tokens_read for key in asked)


def test_the_plan_says_what_each_engine_is_asked_and_what_that_costs(tiny: Tiny):
    price = "price_per_million_tokens: {input: 2, output: 10}"
    config = tiny(
        f"critique.engine={{kind: server, model: critic, base_url: 'http://a', {price}}}",
        "preferences.engine={kind: server, model: labeller, base_url: 'http://a'}",
        "preferences=ab",
    )
    steps = plan(preflight(config))
    critic, labeller = usage(config, steps)
    share = next(step for step in steps if step.stage == "critique").cost.roles["critique.engine"]
    money = (2 * share.num_tokens_read + 10 * share.num_tokens_written) / 1e6
    assert (
        critic.startswith(f"critique.engine (critic): {share.num_calls:,} calls") and f"about {money:.2f} by" in critic
    )
    assert labeller.startswith("preferences.engine (labeller): ") and "prices" not in labeller
    assert all(sum(part.num_calls for part in step.cost.roles.values()) <= step.cost.num_calls for step in steps), (
        "roles are parts of the whole"
    )


def test_each_vote_is_a_call_that_reads_and_writes(tiny: Tiny):
    """Of the labeller, of a judge that reads choices, and of the constitution's rewards; a rubric is written once."""
    server = "{{kind: server, model: labeller, base_url: 'http://a', votes: {votes}}}"

    def planned(votes: int, *overrides: str) -> dict[tuple[str, str], Cost]:
        config = tiny(
            f"preferences.engine={server.format(votes=votes)}",
            f"evaluate.judge={{kind: model, engine: {server.format(votes=votes)}, trust: labeller}}",
            f"evaluate.pair_judge={{kind: endpoint, engine: {server.format(votes=votes)}, trust: labeller}}",
            "preferences=cot",
            *overrides,
        )
        return {(step.stage, name): cost for step in plan(preflight(config)) for name, cost in step.cost.roles.items()}

    rewards = ["align.rewards.constitution=1", "align.judge.kind=pointwise"]
    before, after = planned(0, *rewards), planned(3, *rewards)
    for key in [("evaluate", "evaluate.judge.engine"), ("align", "preferences.engine")]:
        assert after[key].num_calls == 3 * before[key].num_calls > 0
        assert after[key].num_tokens_read == 3 * before[key].num_tokens_read
        assert after[key].num_tokens_written == 16 * after[key].num_calls and not before[key].num_tokens_written
    labels = ("preferences", "preferences.engine")
    num_thoughts = num_choices = before[labels].num_calls // 2
    assert after[labels].num_calls == num_thoughts + 3 * num_choices
    assert after[labels].num_tokens_written - before[labels].num_tokens_written == 16 * 3 * num_choices
    rubric = ("evaluate", "evaluate.pair_judge.engine")
    assert after[rubric] == before[rubric]


def test_before_a_run_an_engine_is_asked_for_choices_if_a_stage_reads_them(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    def asked(*overrides: str) -> dict[str, bool]:
        found: dict[str, bool] = {}

        def reach(self: Any, field: str, reads_choices: bool = False) -> None:
            found[field] = reads_choices

        monkeypatch.setattr(ENGINES["server"].Config, "reach", reach)
        reach_engines(preflight(tiny(*overrides)))
        return found

    def server(name: str) -> str:
        return f"{{kind: server, model: {name}, base_url: 'http://a'}}"

    several = [f"{section}.engine={server(section)}" for section in ("critique", "preferences")]
    judges = [f"evaluate.judge={{kind: model, engine: {server('judge')}}}",
              f"evaluate.pair_judge={{kind: endpoint, engine: {server('pair_judge')}}}"]  # fmt: skip
    assert asked("preferences=ab", *several, *judges) == {
        "critique.engine": False,
        "preferences.engine": True,
        "evaluate.judge.engine": True,
        "evaluate.pair_judge.engine": False,
    }
    shared = ["engine=server", "engine.model=both", "engine.base_url=http://a"]
    assert asked("preferences=pointwise", *shared) == {"engine": True}, "critic and labeller"
