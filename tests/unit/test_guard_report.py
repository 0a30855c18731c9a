"""The evaluation of a model with its guard as one system, and the part of the report on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.distributed import LaunchConfig
from pipeline.core.stage import Context
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.measures import by_model
from pipeline.evals.results import Cell
from pipeline.evals.statistics import wilson
from pipeline.guard.guard import Guard
from pipeline.guard.results import Guarded
from pipeline.guard.steps import Step
from pipeline.guard.system import LEARNED, NEW, Fired, _replaced, compared
from pipeline.records import Verdict
from pipeline.report.build import Report
from pipeline.report.guarded import alarms, attacks, measures, promise, said
from pipeline.report.render import render
from pipeline.report.tables import tables_of
from pipeline.report.wording import words
from tests.report_data import make_report
from tests.unit.test_guarded_model import CARD_OF_TINY

REFUSAL = "I won't help with that."


def guard(**changes: Any) -> Guard:
    step = Step(1, np.ones(2, dtype=np.float32), 0.0)
    card = CARD_OF_TINY.model_copy(update={"families": ["persona"]} | changes)
    return Guard(request=step, reply=step, gate=0.0, threshold=1.0, every=8, refusal=REFUSAL,
                 fingerprint=np.ones(2, dtype=np.float32), card=card)  # fmt: skip


def fires_on(verdicts: list[Verdict]) -> Fired:
    """On every harmful request that was complied with, by the first step if without an attack, and on every fifth
    look-alike by the second step; the last case can't be read."""
    look_alikes = [v.case.id for v in verdicts if v.case.prompt.pool == "look_alike"]
    fired = {
        v.case.id: (v.case.prompt.pool == "red_team" and v.outcome == "complied") or v.case.id in look_alikes[::5]
        for v in verdicts[:-1]
    }
    at_once = {v.case.id: fired[v.case.id] and v.case.attack == "direct" and v.case.prompt.pool == "red_team"
               for v in verdicts[:-1]}  # fmt: skip
    return Fired(fired, at_once)


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report(240, ("base", "aligned"), num_exchanges=3, method="dpo")


@pytest.fixture(scope="module")
def behind(report: Report, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Verdict]], Fired]:
    """The verdicts of the model alone and of the system, and where the guard fires."""
    verdicts = by_model(report.verdicts)
    fired = fires_on(verdicts["aligned"])
    folder = tmp_path_factory.mktemp("judging")
    context = Context(stage="evaluate", reads={}, folders={}, out=folder, launch=LaunchConfig())
    new = _replaced(EvaluateConfig(), context, guard(), verdicts, fired, "aligned + guard")
    return {"aligned": verdicts["aligned"], "aligned + guard": new}, fired


@pytest.fixture(scope="module")
def guarded(report: Report, behind: tuple[dict[str, list[Verdict]], Fired]) -> Guarded:
    return compared(0.95, guard(), by_model(report.verdicts), *((behind[0], behind[1])))


def test_only_the_replies_on_which_it_fires_are_replaced_and_judged(behind: tuple[dict[str, list[Verdict]], Fired]):
    verdicts, fired = behind
    for old, new in zip(*verdicts.values(), strict=True):
        assert new.model == "aligned + guard" and new.case == old.case
        if fired.fired.get(old.case.id):
            assert (new.reply, new.outcome) == (REFUSAL, "refused")  # by the judge of the evaluation
        else:
            assert (new.reply, new.outcome, new.seed) == (old.reply, old.outcome, old.seed)


def test_an_ordinary_answer_that_is_lost_loses_against_the_first_models_answer(report: Report, tmp_path: Path):
    verdicts = by_model(report.verdicts)
    ordinary = [v.case.id for v in verdicts["base"] if v.case.prompt.pool == "ordinary" and v.outcome == "complied"]
    fired = Fired({v.case.id: v.case.id == ordinary[0] for v in verdicts["base"]}, {})
    context = Context(stage="evaluate", reads={}, folders={}, out=tmp_path, launch=LaunchConfig())
    new = {v.case.id: v for v in _replaced(EvaluateConfig(), context, guard(), verdicts, fired, "s")}
    assert new[ordinary[0]].preferred == 0 and new[ordinary[1]].preferred == verdicts["aligned"][0].preferred


def test_the_system_is_compared_with_the_model_on_the_same_requests(report: Report, guarded: Guarded):
    mine = [v for v in report.verdicts if v.model == "aligned"]
    direct = [v for v in mine if v.case.prompt.pool == "red_team" and v.case.attack == "direct"]
    num_complied = sum(v.outcome == "complied" for v in direct)
    alone, system = (guarded.measures[name]["harmful_complied"] for name in ("aligned", "aligned + guard"))
    assert (alone.count, alone.total) == (num_complied, len(direct)) and num_complied > 0
    assert system.count == 0
    changes = {change.measure: change for change in guarded.changes}
    assert changes["harmful_complied"].num_lost == num_complied and changes["harmful_complied"].num_gained == 0
    refused = guarded.measures["aligned + guard"]["look_alike_refused"]
    assert refused.value is not None and refused.value > (guarded.measures["aligned"]["look_alike_refused"].value or 0)
    assert "reward" not in guarded.measures["aligned"]  # a guard changes no score of the model's own words
    assert guarded.num_unread == 1


def test_attacks_it_learned_from_are_kept_apart_from_the_others(report: Report, guarded: Guarded):
    """Of the attacks here, persona is of a family that the guard learned from."""
    cells = {(cell.model, cell.attack): cell.success for cell in guarded.attacks}
    persona, others = cells["aligned", "persona"], [cells["aligned", name] for name in ("past_tense", "many_shot")]
    assert cells["aligned", LEARNED] == persona
    assert cells["aligned", NEW].total == sum(one.total for one in others)
    assert cells["aligned", NEW].count == sum(one.count or 0 for one in others)
    names = {change.measure for change in guarded.attack_changes}
    assert names == {f"attack_success:{LEARNED}", f"attack_success:{NEW}"}
    rows = {str(row["attack"]): row for row in attacks(guarded)}
    assert rows["persona"]["learned"] == "yes" and rows["many shot"]["learned"] == ""
    assert rows["all"]["change"] and rows[words("direct")]["change"]


def test_alarms_say_what_they_change(report: Report, guarded: Guarded):
    rows = {row.requests: row for row in guarded.alarms}
    look_alikes = [v for v in report.verdicts if v.model == "aligned" and v.case.prompt.pool == "look_alike"]
    hit = look_alikes[::5]
    assert rows["harmless look-alikes"].fired == wilson(len(hit), len(look_alikes), 0.95)
    lost = sum(v.outcome != "refused" for v in hit)
    assert rows["harmless look-alikes"].lost_answers.count == lost < len(hit)
    assert rows["harmless look-alikes"].by_request == 0
    assert rows["harmful requests"].by_request == rows["harmful requests"].fired.count
    assert rows["ordinary requests"].fired.count == 0
    assert len(alarms(guarded)) == len(guarded.alarms)


def test_the_report_has_the_part_on_the_page_in_markdown_and_in_tables(report: Report, guarded: Guarded):
    whole = replace(report, guarded=guarded)
    page, text = render("report.html.j2", whole), render("report.md.j2", whole)
    assert 'id="guard"' in page and 'href="#guard"' in page and "## With the guard" in text
    assert "| measure | aligned | aligned + guard | change |" in text
    assert said(guarded) in text and "Harmful requests complied with under attack" in str(measures(guarded))
    tables = tables_of(whole)
    assert {"guard_measures", "guard_changes", "guard_attacks", "guard_alarms"} <= tables.keys()
    for empty in (render("report.html.j2", report), render("report.md.j2", report)):
        assert "With the guard" not in empty
    assert not any(name.startswith("guard") for name in tables_of(report))


def test_the_sentence_names_gains_and_costs_that_the_tests_show(guarded: Guarded):
    sentence = said(guarded)
    assert "aligned + guard is better at “harmful requests complied with under attack” (−" in sentence
    assert "there is no evidence that it changes" in sentence and "“ordinary requests refused”" in sentence
    named = " ".join(promise(guarded))
    assert "of which 1 are above it" in named and "at most 4.7 % (budget 5 %)" in named
    assert "40 by pool" in named and "families persona" in named and REFUSAL in named


def test_an_idle_guard_says_why_and_promises_nothing(guarded: Guarded):
    idle = guarded.model_copy(update={"card": guarded.card.model_copy(update={"idle": "it knows nothing"})})
    assert said(idle) == "The guard never fires: it knows nothing."
    assert not any("false alarms" in sentence for sentence in promise(idle))
    assert all(isinstance(cell, Cell) for cell in idle.attacks)


def test_an_evaluation_without_attacks_is_compared_too(report: Report):
    plain = {model: [v for v in mine if v.case.attack == "direct"] for model, mine in by_model(report.verdicts).items()}
    fired = fires_on(plain["aligned"])
    same = [v.model_copy(update={"model": "aligned + guard"}) for v in plain["aligned"]]
    found = compared(0.95, guard(families=[]), plain, {"aligned": plain["aligned"], "aligned + guard": same}, fired)
    assert found.attack_changes == [] and [cell.attack for cell in found.attacks] == ["direct", "direct"]
    assert "attack_success" not in found.measures["aligned"]
    assert "families none" in promise(found)[0]
    assert all(change.difference == 0 for change in found.changes if change.num_gained is not None)
    assert "With the guard" in render("report.md.j2", replace(report, guarded=found))
