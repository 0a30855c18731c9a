"""Suites, measures and changes: compared with values counted by hand; claims need a significant test."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.core.copies import repeats_itself
from pipeline.core.log import Meter
from pipeline.data.layouts.bias import ChoiceRow, SentencePair
from pipeline.evals.accuracy import BASELINES, pair_accuracy, shuffled
from pipeline.evals.answering import KeptAnswers
from pipeline.evals.bias import bbq_scores, crows_score, disparities, lowest_to_highest
from pipeline.evals.cases import build_cases
from pipeline.evals.changes import all_changes, cell_changes, changes
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.duels import duel
from pipeline.evals.judges.base import AnswerLog, by_rank, in_both_orders
from pipeline.evals.judges.endpoint import read_preference
from pipeline.evals.judges.model import ModelPairJudge
from pipeline.evals.judges.patterns import PatternsPairJudge
from pipeline.evals.manners import manner_rates, manners_held_out
from pipeline.evals.measures import by_model, measured, ratings
from pipeline.evals.suites.bias import bias_cases
from pipeline.evals.suites.red_team import RedTeam, attack_cells
from pipeline.evals.text import commonest, distinct_ngrams, has_filler, lix, opening
from pipeline.records import Case, Comparison, Message, Outcome, Pool, Prompt, Split, Verdict
from tests.fakes import FakeEngine


def case(suite: str, pool: Pool, number: int, **more) -> Case:
    messages = [Message(role="user", content=f"{pool} {number}")]
    prompt = Prompt(id=f"{pool}{number}", pool=pool, kind=f"kind{number % 2}", split="test", messages=messages)
    attack = more.get("attack", "direct")
    return Case(id=f"{suite}/{prompt.id}/{attack}", suites=[suite], prompt=prompt, messages=messages, **more)


def verdict(where: Case, model: str, outcome: Outcome, reply: str = "some words here", **more) -> Verdict:
    return Verdict(
        case=where, model=model, reply=reply, num_tokens=3, seed=0, outcome=outcome, evidence="", judge="j", **more
    )


def in_manner(where: Case, manner: str) -> Case:
    return where.model_copy(update={"prompt": where.prompt.model_copy(update={"manner": manner})})


# --- Suites --------------------------------------------------------------------------------------------------------


def test_the_suites_are_as_large_as_promised():
    notes: list[str] = []
    cases = build_cases(EvaluateConfig(), [], notes)
    held_out_too = 85  # the built-in test split adds to these; here only the shipped files are counted
    direct = [c for c in cases if c.suites == ["red_team"] and c.attack == "direct"]
    assert len(direct) + held_out_too >= 150 and notes == []
    assert len({c.attack for c in cases}) == 12
    attributes = {c.attribute for c in cases if c.attribute}
    templates = {c.template for c in cases if c.template}
    assert len(attributes) >= 8 and len(templates) >= 20
    assert len({c.id for c in cases}) == len(cases)


def test_built_in_suites_with_the_held_out_split_reach_the_promised_sizes():
    from pipeline.chain.compose import compose_config
    from pipeline.data.loading import load_prompts

    config = compose_config([])
    held_out = [prompt for prompt in load_prompts(config.data).prompts if prompt.split == "test"]
    cases = build_cases(config.evaluate, held_out, [])
    assert sum(c.suites == ["red_team"] and c.attack == "direct" for c in cases) >= 150
    assert sum("over_refusal" in c.suites for c in cases) >= 150
    assert sum("helpfulness" in c.suites for c in cases) >= 100


def test_no_suite_prompt_stands_in_the_pools_that_are_trained_on():
    from pipeline.chain.compose import compose_config
    from pipeline.data.loading import load_prompts

    shipped = {c.prompt.key for c in build_cases(EvaluateConfig(), [], [])}
    assert not shipped & {prompt.key for prompt in load_prompts(compose_config([]).data).prompts}


def test_a_small_draw_has_every_kind_and_attacks_meet_the_same_requests():
    config = EvaluateConfig(suites=["red_team"], red_team=RedTeam.Config(num_requests=12, num_attacked=3))
    cases = build_cases(config, [], [])
    assert len({c.prompt.kind for c in cases if c.attack == "direct"}) == 12
    attacked = {attack: {c.prompt.id for c in cases if c.attack == attack} for attack in ("persona", "base64")}
    assert attacked["persona"] == attacked["base64"] and len(attacked["persona"]) == 3


def test_groups_of_one_attribute_are_asked_the_same():
    cases = bias_cases(4)
    for attribute in {c.attribute for c in cases}:
        asked: dict[str | None, set[str | None]] = {}
        for c in cases:
            if c.attribute == attribute:
                asked.setdefault(c.group, set()).add(c.template)
        assert len(asked) >= 2 and len(set(map(frozenset, asked.values()))) == 1
    harmful = {c.template: c.prompt.pool for c in cases}
    assert set(harmful.values()) == {"red_team", "ordinary"}


# --- Measures ------------------------------------------------------------------------------------------------------


def test_rates_by_manner_count_each_pool_apart_and_say_what_was_held_out():
    harmful = [in_manner(case("red_team", "red_team", i), "terse" if i < 3 else "story") for i in range(4)]
    verdicts = [verdict(c, "base", "refused" if i == 0 else "complied") for i, c in enumerate(harmful)]
    verdicts.append(verdict(in_manner(case("red_team", "red_team", 0, attack="persona"), "terse"), "base", "complied"))
    twin = in_manner(case("over_refusal", "look_alike", 0), "story")
    verdicts += [verdict(twin, "base", "refused"), verdict(case("over_refusal", "look_alike", 1), "base", "refused")]
    rates = {(r.measure, r.manner): r for r in manner_rates({"base": verdicts}, {"story"}, 0.95)}
    counted = {key: (r.rate.count, r.rate.total, r.held_out) for key, r in rates.items()}
    assert counted == {
        ("harmful_complied", "terse"): (2, 3, False),
        ("harmful_complied", "story"): (1, 1, True),
        ("look_alike_refused", "story"): (1, 1, True),
    }


def test_a_manner_is_held_out_if_no_other_split_has_it():
    def prompt(number: int, manner: str, split: Split) -> Prompt:
        messages = [Message(role="user", content=str(number))]
        return Prompt(id=str(number), pool="ordinary", kind="k", manner=manner, split=split, messages=messages)

    prompts = [
        prompt(1, "terse", "train"),
        prompt(2, "terse", "test"),
        prompt(3, "story", "test"),
        prompt(4, "", "test"),
    ]
    assert manners_held_out(prompts) == {"story"}
    assert manners_held_out([*prompts, prompt(5, "story", "validation")]) == set()


def test_the_table_counts_each_pool_apart_and_leaves_out_the_unjudged():
    verdicts = [verdict(case("red_team", "red_team", i), "base", "complied" if i < 3 else "refused") for i in range(4)]
    verdicts += [verdict(case("red_team", "red_team", 9), "base", "unjudged")]
    verdicts += [verdict(case("red_team", "red_team", i, attack="persona"), "base", "complied") for i in range(2)]
    verdicts += [
        verdict(case("over_refusal", "ordinary", i), "base", "refused" if i < 1 else "complied") for i in range(5)
    ]
    verdicts += [verdict(case("over_refusal", "look_alike", 0), "base", "broken", reply="")]
    table = measured(by_model(verdicts), 0.95)["base"]
    counted = {name: (found.count, found.total) for name, found in table.items() if found.count is not None}
    assert counted["harmful_complied"] == (3, 4) and counted["harmful_refused"] == (1, 4)
    assert counted["attack_success"] == (2, 2)
    assert counted["ordinary_refused"] == (1, 5) and counted["look_alike_refused"] == (0, 1)
    assert counted["broken"] == (1, 10)  # four judged, five ordinary, one look-alike; attacked replies are apart
    assert "preferred" not in table


def test_perplexity_and_its_ratio_by_hand():
    where = [case("helpfulness", "ordinary", i) for i in range(3)]
    verdicts = [verdict(c, "base", "complied", reference_logprob=-1.0) for c in where]
    verdicts += [verdict(c, "tuned", "complied", reference_logprob=-1.5) for c in where]
    table = measured(by_model(verdicts), 0.95)
    assert table["base"]["reference_perplexity"].value == pytest.approx(math.e)
    assert table["tuned"]["perplexity_ratio"].value == pytest.approx(math.exp(0.5))
    assert table["tuned"]["length_ratio"].value == 1.0


def test_text_measures_by_hand():
    assert commonest([opening(reply) for reply in ("I am here.", "i AM here!", "Other")]) == ("i am here", 2)
    assert commonest([opening(""), opening("...")]) == ("", 0)
    assert distinct_ngrams(["a b c", "a b"]) == pytest.approx(2 / 3)
    assert not repeats_itself("one two three four five")
    assert repeats_itself("one two three four " * 4)


# --- Changes -------------------------------------------------------------------------------------------------------


def two_models(num_changed: int, total: int = 60) -> dict[str, list[Verdict]]:
    where = [case("red_team", "red_team", i) for i in range(total)]
    verdicts = [verdict(c, "base", "complied") for c in where]
    verdicts += [verdict(c, "tuned", "refused" if i < num_changed else "complied") for i, c in enumerate(where)]
    return by_model(verdicts)


def test_few_changes_are_no_evidence_and_many_are():
    def found(num_changed: int, before: str = "base", after: str = "tuned") -> str:
        listed = changes(two_models(num_changed), before, after, 0.95)
        return next(c.verdict for c in listed if c.measure == "harmful_complied")

    assert found(0) == found(2) == "no evidence of change"
    assert found(30) == "better" and found(30, "tuned", "base") == "worse"


def test_a_change_counts_the_prompts_that_moved_and_is_corrected():
    change = next(c for c in changes(two_models(12), "base", "tuned", 0.95) if c.measure == "harmful_complied")
    assert (change.num_gained, change.num_lost, change.difference) == (0, 12, pytest.approx(-0.2))
    assert change.p == pytest.approx(2 / 2**12) and change.p_corrected > change.p  # type: ignore[operator]


def test_models_without_common_prompts_are_not_compared():
    verdicts = by_model(
        [verdict(case("red_team", "red_team", i), m, "complied") for i, m in enumerate(("base", "tuned"))]
    )
    assert {c.verdict for c in changes(verdicts, "base", "tuned", 0.95)} == {"not measured"}


def test_every_model_is_set_against_the_first_and_the_one_before():
    verdicts = by_model([verdict(case("red_team", "red_team", 0), m, "complied") for m in ("base", "sft", "aligned")])
    pairs = {(c.before, c.after) for c in all_changes(verdicts, 0.95)}
    assert pairs == {("base", "sft"), ("base", "aligned"), ("sft", "aligned")}


def test_cells_and_their_margins():
    where = [case("red_team", "red_team", i, attack=a) for a in ("direct", "persona", "base64") for i in range(4)]
    verdicts = by_model([verdict(c, "base", "complied" if c.attack == "persona" else "refused") for c in where])
    cells = {(c.kind, c.attack): (c.success.count, c.success.total) for c in attack_cells(verdicts, 0.95)}
    assert cells["all", "persona"] == (4, 4) and cells["all", "all"] == (4, 8) and cells["kind1", "direct"] == (0, 2)
    listed = cell_changes({**verdicts, "tuned": verdicts["base"]}, "base", "tuned", 0.95)
    assert {c.measure for c in listed} >= {"harmful_complied:kind0", "attack_success:persona"}
    assert all(c.verdict == "no evidence of change" for c in listed)


# --- Bias ----------------------------------------------------------------------------------------------------------


def test_flips_by_hand():
    """Of three templates, one treats its two groups differently; one could not be judged and does not count."""
    verdicts = []
    for template, outcomes in (("t0", "rr"), ("t1", "rc"), ("t2", "cc"), ("t3", "ru")):
        for group, outcome in zip("ab", outcomes, strict=True):
            where = case("bias", "ordinary", 0, attribute="age", group=group, template=template)
            where = where.model_copy(update={"id": f"{template}{group}"})
            named = {"r": "refused", "c": "complied", "u": "unjudged"}[outcome]
            verdicts.append(verdict(where, "base", named))  # type: ignore[arg-type]
    found = measured(by_model(verdicts), 0.95)["base"]["refusal_flips"]
    assert (found.count, found.total) == (1, 3)


def test_flips_of_held_out_attributes_count_no_other():
    """Age may be trained on, gender never is: of their two flips, one is about gender."""
    verdicts = []
    for attribute in ("age", "gender"):
        for template, outcomes in (("t0", ("refused", "complied")), ("t1", ("complied", "complied"))):
            for group, outcome in zip("ab", outcomes, strict=True):
                where = case("bias", "ordinary", 0, attribute=attribute, group=group, template=template)
                where = where.model_copy(update={"id": f"{attribute}{template}{group}"})
                verdicts.append(verdict(where, "base", outcome))  # type: ignore[arg-type]
    found = measured(by_model(verdicts), 0.95)["base"]
    assert (found["refusal_flips"].count, found["refusal_flips"].total) == (2, 4)
    assert (found["refusal_flips_held_out"].count, found["refusal_flips_held_out"].total) == (1, 2)


def test_preferences_are_tested_against_the_first_model():
    where = [case("helpfulness", "ordinary", i) for i in range(20)]
    verdicts = [verdict(c, "base", "complied", reply="Take the bus to town.") for c in where]
    verdicts += [verdict(c, "tuned", "refused", reply="I can't help with that.") for c in where]
    marked, _, _ = duel(verdicts, PatternsPairJudge())
    found = next(c for c in changes(by_model(marked), "base", "tuned", 0.95) if c.measure == "preferred")
    assert (found.difference, found.verdict) == (-0.5, "worse")


def test_disparities_by_hand():
    """Group A is refused in all four harmless templates, B in one: difference ¾, ratio ¼."""
    verdicts = []
    for group, refused in (("a", 4), ("b", 1)):
        for i in range(4):
            where = case("bias", "ordinary", i, attribute="age", group=group, template=f"t{i}")
            where = where.model_copy(update={"id": f"{group}{i}"})
            verdicts.append(verdict(where, "base", "refused" if i < refused else "complied"))
    (found,) = disparities(verdicts, 0.95)
    assert (found.difference.value, found.ratio.value) == (0.75, 0.25)
    assert found.rates["b"].count == 1 and found.p is not None and 0 < found.p <= 1
    assert found.difference.low is not None and 0 <= found.difference.low < 0.75


def test_the_ratio_of_rates_by_hand():
    """Rates ¾, ½, ¼; no rate at all; and two resamples at once."""
    assert lowest_to_highest(np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0]), np.array([0, 0, 0, 1])) == 1 / 3
    assert lowest_to_highest(np.zeros(3), np.zeros(3)) == 1
    assert lowest_to_highest(np.array([[1, 1], [0, 1]]), np.array([[1, 0], [0, 0]])).tolist() == [0.5, 0]


@pytest.mark.filterwarnings("error")
def test_no_ratio_where_nobody_is_refused():
    verdicts = []
    for group in "ab":
        where = case("bias", "ordinary", 0, attribute="age", group=group, template="t0")
        verdicts.append(verdict(where.model_copy(update={"id": group}), "base", "complied"))
    (found,) = disparities(verdicts, 0.95)
    assert (found.difference.value, found.p) == (0, 1)
    assert (found.ratio.value, found.ratio.low, found.ratio.high, found.ratio.total) == (None, None, None, 1)


@pytest.mark.filterwarnings("error")
def test_the_length_ratio_by_hand():
    """Replies of 1 to 5 words become two, four, … 10 words: twice as long, however the requests are drawn."""
    verdicts = []
    for i in range(1, 6):
        where = case("helpfulness", "ordinary", i)
        verdicts += [verdict(where, "base", "complied", "w " * i), verdict(where, "rlaif", "complied", "w " * 2 * i)]
    found = measured(by_model(verdicts), 0.95)["rlaif"]["length_ratio"]
    assert (found.value, found.low, found.high, found.total) == (2, 2, 2, 5)


def test_lix_by_hand():
    assert lix("The bank can change it. Your bill goes up.") == 9 / 2, "no word has more than six characters"
    assert lix("Institutions periodically change rates") == 4 + 100 * 2 / 4
    assert lix("") == 0


@pytest.mark.parametrize("reply", ["Great question! Red wine …", "Sure, blot it.", "Blot it. Let me know if it’s gone.",
                                   "It's important to note that wine is red.", "Here are some tips:"])  # fmt: skip
def test_filler_is_found(reply: str):
    assert has_filler(reply)


@pytest.mark.parametrize(
    "reply", ["Blot it.", "Be sure to blot it.", "Here are the three steps.", "That's a question of taste."]
)
def test_what_says_something_is_no_filler(reply: str):
    assert not has_filler(reply)


def test_style_is_measured_on_ordinary_requests_only():
    asked = [case("helpfulness", "ordinary", 0), case("helpfulness", "ordinary", 1), case("red_team", "red_team", 0)]
    replies = ["Sure, blot it.", "Blot it.", "Sure, here is how."]
    found = measured({"base": [verdict(c, "base", "complied", r) for c, r in zip(asked, replies, strict=True)]}, 0.95)
    assert (found["base"]["filler"].count, found["base"]["filler"].total) == (1, 2)
    assert found["base"]["lix"].value == 2.5


def bbq_row(row_id: str, label: int, ambiguous: bool, negative: bool = True) -> ChoiceRow:
    return ChoiceRow(
        id=row_id,
        category="age",
        context="c",
        question="q",
        answers=["old", "young", "unknown"],
        label=label,
        unknown=2,
        stereotyped=0,
        ambiguous=ambiguous,
        negative=negative,
    )


def test_bbq_scores_by_hand():
    """Disambiguated: three known answers, two biased: 2·2/3−1. Ambiguous: (1−accuracy)·s, accuracy ½, all biased."""
    rows = [bbq_row("d1", 0, False), bbq_row("d2", 1, False), bbq_row("d3", 0, False, negative=False)]
    rows += [bbq_row("a1", 2, True), bbq_row("a2", 2, True)]
    score = bbq_scores(rows, {"d1": 0, "d2": 0, "d3": 0, "a1": 2, "a2": 0}, 0.95)
    assert score["bbq_bias_disambiguated"].value == pytest.approx(2 * 2 / 3 - 1)
    assert score["bbq_bias_ambiguous"].value == pytest.approx((1 - 0.5) * 1.0)
    assert (score["bbq_accuracy"].count, score["bbq_accuracy"].total) == (3, 5)


def test_crows_pairs_counts_the_likelier_sentence():
    rows = [SentencePair(id=str(i), bias_type="age", stereotyped="s", other="o") for i in range(3)]
    found = crows_score(rows, {"0": -1.0, "1": -2.0, "2": -1.0}, {"0": -2.0, "1": -1.0, "2": -3.0}, 0.95)
    assert (found.count, found.total) == (2, 3)


# --- Pairs ---------------------------------------------------------------------------------------------------------


def pair(row_id: str, a: str, b: str) -> Comparison:
    messages = [Message(role="user", content="Hi")]
    prompt = Prompt(id=row_id, pool="ordinary", kind="helpful", split="test", messages=messages)
    return Comparison(id=row_id, prompt=prompt, reply_a=a, reply_b=b, seed_a=0, seed_b=0)


def test_duels_mark_who_is_preferred_to_the_first_model():
    where = case("helpfulness", "ordinary", 0)
    said = {"base": "Take the bus to town.", "sft": "I can't help with that.", "aligned": "Take the bus to the town."}
    verdicts = [verdict(where, model, "complied", reply=reply) for model, reply in said.items()]
    marked, wins, _ = duel(verdicts, PatternsPairJudge())
    assert [v.preferred for v in marked] == [0.5, 0.0, 0.5]
    assert wins["base", "sft"] == 1.0 and wins["aligned", "sft"] == 1.0 and wins["base", "aligned"] == 0.5
    elo = {rating.model: rating.elo for rating in ratings(wins, list(said), 0.95)}
    assert elo["base"] == 1000 and elo["sft"] < 1000
    assert elo["aligned"] == pytest.approx(1000, abs=1)
    assert ratings(wins, ["base", "sft"], 0.95) == []


def test_orders_that_disagree_are_a_tie():
    """A wins by winning first and second; the second number is whether B, shown first, wins."""
    found = [in_both_orders(*both) for both in ((1, 0), (0, 1), (1, 1), (1, 0.5), (0.5, 0.5), (None, 1), (0, None))]
    assert found == [1, 0, 0.5, 1, 0.5, None, None]
    assert [read_preference(text) for text in ("A", "(b)", "Tie.", "neither", "")] == [1.0, 0.0, 0.5, None, None]


def test_a_judge_that_always_says_a_ties(tmp_path):
    log = AnswerLog(logbook=KeptAnswers(tmp_path, Meter()), name="pairs", label="pairs")
    judge = ModelPairJudge(FakeEngine(answer=lambda query: [-0.1, -3.0]), log)
    assert judge.prefer([pair("x", "one", "two")]) == {"x": 0.5}


def test_accuracy_undoes_the_turning_and_counts_the_unanswered():
    pairs = [pair(str(i), "chosen reply here", "no") for i in range(40)]
    shown, turned = shuffled(pairs)
    assert 5 < len(turned) < 35
    scores = by_rank(shown, BASELINES["the longer one"])
    (found,) = pair_accuracy("long", "baseline", "d", pairs, {**scores, "0": None}, turned, 0.95)
    assert (found.accuracy.value, found.accuracy.total, found.num_unanswered) == (1.0, 39, 1)
    (always_a,) = pair_accuracy("A", "judge", "d", pairs, dict.fromkeys(scores, 1.0), turned, 0.95)
    assert always_a.accuracy.count == 40 - len(turned)
