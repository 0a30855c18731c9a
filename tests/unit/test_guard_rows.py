"""What a guard learns from: the labels of the run, prompts under attacks, and held-out requests; its settings."""

from __future__ import annotations

import pytest

from pipeline.adversary.families import evaluation_families, training_families
from pipeline.chain.compose import compose_config
from pipeline.constitution.files import load_constitution, shipped_constitutions
from pipeline.core.errors import ConfigError
from pipeline.core.settings import validated
from pipeline.evals.results import DIRECT
from pipeline.evals.suites.attacks import ATTACKS
from pipeline.guard.config import GuardConfig
from pipeline.guard.families import FAMILIES, LEARNED, attacks_of, family_of
from pipeline.guard.labels import Labels
from pipeline.guard.refusals import refusal_of
from pipeline.guard.rows import answered_anew, held_out_rows, learned_prompts, learned_rows
from pipeline.records import Comparison, Message, Pool, Preference, Prompt
from pipeline.stages.guard import Guard as GuardStage


def prompt(name: str, pool: Pool, split: str = "train", twin_of: str = "") -> Prompt:
    turns = [Message(role="user", content=f"{name}?")]
    return Prompt(id=name, pool=pool, kind="k", twin_of=twin_of, split=split, messages=turns)  # type: ignore[arg-type]


def preference(
    asked: Prompt, a: str, b: str, probability: float | None, who: str = "ai", opening: str = ""
) -> Preference:
    comparison = Comparison(id=asked.id, prompt=asked, reply_a=a, reply_b=b, seed_a=0, seed_b=0, opening=opening)
    return Preference(comparison=comparison, judgements=[], probability_a=probability, labeller=who, template="t")


NO, YES = "I won't help with that. It would hurt people.", "First, take the lid off and turn it over slowly."


def test_a_prompt_is_harmful_if_the_run_prefers_the_reply_that_declines():
    prompts = {name: prompt(name, "ordinary") for name in "abcdef"}
    labels = Labels.of(
        [
            preference(prompts["a"], NO, YES, 0.9),
            preference(prompts["b"], YES, NO, 0.9),
            preference(prompts["c"], YES, YES + " More.", 0.9),  # none declines
            preference(prompts["d"], NO, YES, None),  # no label
            preference(prompts["e"], "I won't", YES, 1.0, who="pool", opening="I won't"),
            preference(prompts["f"], NO, YES, 0.5),
        ]
    )
    found = {name: labels.of_prompt(one) for name, one in prompts.items()}
    assert found["a"] == (True, "ai") and found["b"] == (False, "ai") and found["e"] == (True, "pool")
    assert all(found[name] == (False, "pool") for name in "cdf")  # the pool under which it was filed
    assert labels.replies[prompts["b"].key] == (NO, YES)


def test_each_prompt_is_learned_as_it_is_and_under_one_attack_of_the_learned_families():
    prompts = [prompt(f"h{i}", "red_team") for i in range(8)] + [prompt(f"o{i}", "ordinary") for i in range(4)]
    labels = Labels.of([preference(one, NO, YES, float(one.pool == "red_team")) for one in prompts])
    rows = learned_rows(prompts, labels, ["fiction", "many_shot"], seed=0)
    assert len(rows) == 24 and {row.attack for row in rows} == {DIRECT, *attacks_of(["fiction", "many_shot"])}
    assert {row.group for row in rows if row.id.startswith("train/h0/")} == {"h0"}
    harmful, harmless = ([row for row in rows if row.harmful is side] for side in (True, False))
    assert {row.complied for row in harmful} == {True, False}
    assert all(row.reply == (YES if row.complied else NO) for row in rows)
    assert all(row.complied for row in harmless)  # an answer, which is right there


def test_no_evaluated_or_held_out_prompt_is_learned_and_twins_are_held_out_once():
    constitution = load_constitution(shipped_constitutions()["default"])
    prompts = [
        prompt("h", "red_team", "validation"),
        prompt("t1", "look_alike", "validation", twin_of="h"),
        prompt("t2", "look_alike", "validation", twin_of="h"),
        prompt("o", "ordinary", "validation"),
        prompt("x", "ordinary", "test"),
        prompt("y", "ordinary"),
    ]
    learned = learned_prompts(prompts, constitution, 25, seed=0)
    assert all(one.kind == "contrast" or one.id == "y" for one in learned)
    assert sum(one.pool == "red_team" for one in learned) == 25 == sum(one.pool == "look_alike" for one in learned)
    held_out = held_out_rows(prompts)
    assert sorted((row.harmful, row.group) for row in held_out) == [(False, "h"), (False, "o"), (True, "h")]


def test_half_of_the_answered_rows_are_harmful_where_there_are_so_many():
    labels = Labels.of([])
    prompts = [prompt(f"{pool}{i}", pool) for i in range(30) for pool in ("red_team", "ordinary")]  # type: ignore[arg-type]
    rows = learned_rows(prompts, labels, [], seed=0)
    chosen = answered_anew(rows, 11, seed=0)
    assert len({row.id for row in chosen}) == 11 and sum(row.harmful for row in chosen) == 6
    assert len(answered_anew(rows[:2], 11, seed=0)) == 2 and answered_anew(rows, 0, seed=0) == []


def test_every_attack_is_in_a_family_and_the_guard_learns_from_those_that_train():
    assert sorted(attacks_of(FAMILIES)) == sorted(set(ATTACKS) - {DIRECT})
    assert sorted(LEARNED) == sorted(set(training_families()) & set(FAMILIES)) and set(LEARNED) < set(FAMILIES)
    assert not set(LEARNED) & set(evaluation_families()), "the adversary evaluates with none that a guard learned"
    assert family_of("new_one") == "new_one"  # an attack that is added is not taken for one that was learned


def test_bad_settings_are_refused_in_a_sentence():
    with pytest.raises(ConfigError, match=r"guard.families is 'fictions', which is not .*did you mean 'fiction'"):
        validated(GuardConfig, {"families": ["fictions"]}, "guard")
    with pytest.raises(ConfigError, match=r"guard.max_false_alarms is 0; it must be above 0 and below 1"):
        validated(GuardConfig, {"max_false_alarms": 0}, "guard")


def test_the_refusal_is_in_the_words_of_the_constitution():
    default = load_constitution(shipped_constitutions()["default"])
    assert refusal_of(GuardConfig(), default) == f"{default.opening()} help with that."
    assert refusal_of(GuardConfig(refusal="No."), default) == "No."
    declared = GuardStage().reads(compose_config(["guard.enabled=true"]), default)["constitution"]
    assert refusal_of(GuardConfig(), declared) == refusal_of(GuardConfig(), default)  # the stage reads no more
    assert learned_prompts([], declared, 20, 0) == learned_prompts([], default, 20, 0)
    others = [c.model_copy(update={"revision": f"{i} no"}) for i, c in enumerate(default.contrasts[:3])]
    mixed = default.model_copy(update={"contrasts": others, "worked_examples": []})
    assert refusal_of(GuardConfig(), mixed) == "0 no"
