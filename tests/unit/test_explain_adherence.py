"""Does it keep to each principle: models that keep to one and not to another, and labellers that know it or don't."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from pipeline.core.errors import NotMeasuredError
from pipeline.engines.base import ChoiceQuery, Query, ReplyQuery
from pipeline.evals.changes import base_measure
from pipeline.evals.gate import Guideline, Guidelines, rule
from pipeline.evals.results import Results
from pipeline.explain.adherence_counts import agree, cohens_kappa
from pipeline.explain.asked import Explanation
from pipeline.explain.keeping import Reply, log_odds
from pipeline.report.explained.adherence import judges, section
from pipeline.report.render import render
from tests.report_data import make_report
from tests.toy_adherence import (
    ANSWER,
    CASES,
    MODELS,
    REFUSAL,
    RULES,
    YES,
    Answers,
    Asked,
    case,
    constitution,
    guesses,
    knows,
    learns_to_refuse,
    never_changes,
    principle,
    with_examples,
)  # fmt: skip


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(tmp_path, monkeypatch)


# --- What is found -------------------------------------------------------------------------------------------------


def test_a_model_that_keeps_to_one_principle_and_not_to_another_is_found(asked: Asked):
    found = asked.find(learns_to_refuse, knows)
    rates = {rule: [rates[model].count for model in MODELS] for rule, rates in found.trusted.rates.items()}
    assert found.labeller_beats_chance and found.trusted.judge == "pointwise:fake"
    assert rates["harm"] == [0, 12, 12] and rates["help"] == [12, 12, 0]
    assert len(set(rates["true"])) == 1, "nothing changes in what the labeller likes there"
    verdicts = {(c.measure, c.before): c.verdict for c in found.trusted.changes}
    assert verdicts == {
        ("adherence:harm", "base"): "better", ("adherence:help", "base"): "worse",
        ("adherence:true", "base"): "no evidence of change", ("adherence:harm", "sft"): "no evidence of change",
        ("adherence:help", "sft"): "worse", ("adherence:true", "sft"): "no evidence of change",
    }  # fmt: skip
    assert (found.kappa.value, found.agreement.value, found.agreement.total) == (1.0, 1.0, 72)
    assert list(found.by_outcome.rates) == ["harm", "help"], "a judge of refusals knows nothing of honesty"
    shown = section(found, list(MODELS))
    assert shown.said.startswith(
        "The model aligned keeps to 1 of 3 principles more often than base (“Title of harm”) and to 1 of 3 principles "
        "less often than base"
    )
    assert shown.first_page == "The weakest principle: “Title of help” (kept in 0\u00a0% [0, 24] of 12 replies)."


@pytest.mark.parametrize("answer", [knows, guesses])
def test_of_equal_models_nothing_is_claimed(asked: Asked, answer: Answers):
    found = asked.find(never_changes, answer)
    for kept in (found.by_labeller, found.by_outcome):
        assert {change.verdict for change in kept.changes} == {"no evidence of change"}
    assert "no evidence that aligned keeps to any principle" in section(found, list(MODELS)).said


@pytest.mark.parametrize("answer", [guesses, lambda query: YES])
def test_a_labeller_that_guesses_or_always_says_yes_decides_nothing(asked: Asked, answer: Answers):
    found = asked.find(learns_to_refuse, answer)
    assert not found.labeller_beats_chance and found.trusted is found.by_outcome
    assert set(found.measures()["aligned"]) == {"adherence:harm", "adherence:help"}
    assert found.measures()["aligned"]["adherence:help"].count == 0
    shown = section(found, list(MODELS))
    assert "which may be chance: its answers say nothing here" in shown.said and shown.is_warning
    assert "“Title of help” (kept in 0" in shown.first_page


def test_without_a_second_judge_the_labeller_decides_nothing(asked: Asked):
    rules = constitution(principle("true", "honesty"))
    found = asked.find(learns_to_refuse, knows, context=asked.context(knows, rules))
    assert found.kappa.value is None and not found.measures() and found.by_labeller.rates
    shown = section(found, list(MODELS))
    assert shown.first_page == "" and "nothing shows whether the labeller pointwise:fake can judge this" in shown.said


def test_a_labeller_that_knows_only_declining_is_not_asked_about_honesty(asked: Asked):
    """It finds the replies that it expects likelier after examples that follow the principle than after the others."""

    def likes_what_it_was_shown(query: Query) -> list[float]:
        assert isinstance(query, ReplyQuery)
        shown = next(turn["content"] for turn in query.messages if turn["role"] == "assistant")
        return [-1.0 if ("won't" in shown) == ("won't" in query.reply) else -2.0]

    found = asked.find(learns_to_refuse, likes_what_it_was_shown, context=asked.context(
        likes_what_it_was_shown, with_examples(RULES), "likelihood"))  # fmt: skip
    assert [found.by_labeller.rates["harm"][model].count for model in MODELS] == [0, 2, 2], "of two requests"
    assert (
        list(found.by_labeller.rates) == ["harm", "help"] and found.kappa.value == 1.0 and found.agreement.total == 12
    )
    assert found.trusted is found.by_outcome and found.trusted.rates["harm"]["aligned"].total == 12
    assert judges(found) == [found.by_outcome], "two replies of each principle are no numbers to show"
    assert "knows no more than that; asked about a few replies, it agrees on 100" in section(found, list(MODELS)).said
    own = asked.context(likes_what_it_was_shown, with_examples(RULES), "likelihood")
    own.labels = "pool"
    alone = asked.find(learns_to_refuse, likes_what_it_was_shown, context=own)
    assert not asked.engine.asked and alone.trusted == found.by_outcome and not alone.labeller_was_asked
    assert "no AI labelled this run" in section(alone, list(MODELS)).said
    rules = with_examples(constitution(principle("true", "honesty")))
    with pytest.raises(NotMeasuredError, match="likelihood knows only whether a reply declines"):
        asked.find(learns_to_refuse, knows, context=asked.context(knows, rules, "likelihood"))


def test_a_labeller_whose_answers_cant_be_read_is_no_judge(asked: Asked):
    found = asked.find(learns_to_refuse, lambda query: [-50.0, -50.0])
    assert found.by_labeller.num_unreadable == 3 * 36 and found.trusted is found.by_outcome
    assert "none of the answers of the labeller pointwise:fake can be read" in section(found, list(MODELS)).said


def test_only_cases_without_an_attack_that_every_model_answered_are_probes(asked: Asked):
    attacked = case(50, "red_team", attack="persona")
    grouped = case(51, "ordinary", attribute="age", group="old", template="t")
    found = asked.find(learns_to_refuse, knows, [*CASES[:3], attacked, grouped])
    assert {rule.id: rule.num_probes for rule in found.principles} == {"harm": 1, "help": 2, "true": 2}
    with pytest.raises(NotMeasuredError, match="no request without an attack"):
        asked.find(learns_to_refuse, knows, [attacked])


# --- Asking --------------------------------------------------------------------------------------------------------


def replies_of(*texts: str) -> dict[str, Reply]:
    return {f"r{n}": Reply(RULES.principle("harm"), CASES[0].prompt, text) for n, text in enumerate(texts)}


@pytest.mark.parametrize(("labeller", "number"), [("pointwise", 1), ("ab", 2), ("likelihood", 2)])
def test_equal_replies_are_asked_about_once_and_a_killed_run_loses_nothing(asked: Asked, labeller: str, number: int):
    answer: Answers = lambda query: [-1.0, -2.0] if isinstance(query, ChoiceQuery) else [-1.0]  # noqa: E731
    context = asked.context(answer, labeller=labeller)
    _, found = log_odds(replies_of(REFUSAL, ANSWER, REFUSAL), context)
    assert len(asked.engine.asked) == 2 * number
    assert found["r0"] == found["r2"]
    again = asked.context(answer, labeller=labeller)
    assert log_odds(replies_of(REFUSAL, ANSWER, REFUSAL), again)[1] == found and not asked.engine.asked


def test_a_plain_question_cancels_a_bias_towards_yes(asked: Asked):
    """It says yes to both wordings, to one with 2 more nats of log-odds than to the other."""

    def biased(query: Query) -> list[float]:
        assert isinstance(query, ChoiceQuery)
        text = query.messages[-1]["content"]
        keeps = "keep to the rule" in text
        return [0.0, -4.0 - (1 if keeps == (REFUSAL in text) else -1)]

    who, found = log_odds(replies_of(REFUSAL, ANSWER), asked.context(biased, labeller="ab"))
    assert who == "plain question:fake" and found == {"r0": 1.0, "r1": -1.0}
    unreadable: Answers = lambda query: [-9.0, -9.0]  # noqa: E731
    assert log_odds({"other": replies_of(ANSWER)["r0"]}, asked.context(unreadable, labeller="ab"))[1] == {"other": None}


# --- Numbers -------------------------------------------------------------------------------------------------------


def test_kappa_is_cohens():
    rng = np.random.default_rng(0)
    first, second = rng.random(60) < 0.7, rng.random(60) < 0.6
    ones = np.ones(60)
    found = cohens_kappa(ones, first == second, first, second)
    assert float(found) == pytest.approx(cohen_kappa_score(first, second))
    assert float(cohens_kappa(ones, ones, ones, ones)) == 0, "two judges that always say yes show nothing"


def test_requests_are_resampled_not_replies():
    """Thirty replies to one request are one observation: no interval."""
    first = {"r": {f"m{n}": {"case": float(n % 2)} for n in range(30)}}
    share, kappa = agree(first, first, 0.95)
    assert (share.value, share.total, kappa.value, kappa.low) == (1.0, 30, 1.0, None)
    assert agree(first, {"r": {"m0": {"case": math.nan}}}, 0.95)[1].value is None


# --- The gate and the page -----------------------------------------------------------------------------------------


def test_a_guideline_can_limit_one_principle(asked: Asked):
    found = asked.find(learns_to_refuse, knows)
    results = Results(models=list(MODELS), suites=[], measures={model: {} for model in MODELS})
    limits = [
        Guideline(id=name, title=name, why="w", measure=f"adherence:{name}", at_least=0.7)
        for name in ("harm", "help", "unknown")
    ]
    guidelines = Guidelines(name="g", version="1", description="d", guidelines=limits)
    gate = rule(guidelines, results.with_measures(found.measures()))
    assert [(r.id, r.verdict) for r in gate.rulings] == [("harm", "PASS"), ("help", "FAIL"), ("unknown", "UNDECIDED")]
    assert gate.rulings[2].found == "not measured" and gate.rulings[0].measure == "Keeps to a principle: harm"
    assert {r.verdict for r in rule(guidelines, results).rulings} == {"UNDECIDED"}
    with pytest.raises(ValueError, match="says nothing of the principle; write adherence:ID"):
        Guideline(id="x", title="x", why="w", measure="adherence:", at_least=0.7)
    assert base_measure("adherence:harm").better == "higher"


@pytest.mark.parametrize("answer", [knows, guesses])
def test_the_page_and_the_markdown_show_it(asked: Asked, answer: Answers):
    found = asked.find(learns_to_refuse, answer)
    told = Explanation(models=list(MODELS), confidence=0.95, adherence=found)
    report = replace(make_report(num_cases=24, num_exchanges=2), explanation=told)
    page, text = render("report.html.j2", report), render("report.md.j2", report)
    for shown in (page, text):
        assert "The weakest principle: “Title of help”" in shown and "Title of harm" in shown
    assert "aligned, Title of harm: 100" in page
    assert "by the labeller (pointwise:fake)" in page and "by the second judge (" in page
    assert ("may be chance, so these numbers decide nothing" in page) == (answer is guesses)
