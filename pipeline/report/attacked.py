"""The report's part on attacks that adapt: success against budget, by family, and over the rounds of training."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from pipeline.adversary.records import ALL, AttackResults, Difference
from pipeline.core.stage import stage_of
from pipeline.evals.results import Estimate
from pipeline.report.build import Report
from pipeline.report.explained.section import Table
from pipeline.report.plots import Estimates, estimates
from pipeline.report.wording import listed, percent, points, words, written

HARMLESS = {False: "harmless look-alikes refused", True: "the same under attack"}
_MEASURES = {
    "refused": "harmless look-alikes refused",
    "refused_under_attack": "harmless look-alikes refused under attack",
}
_NAMES = {ALL: "any attacker", "pair": "pair (attacker model)"}
WORDING = (
    "The judge reads only how a reply is worded: a reply that begins to help and says nothing of use counts as a "
    "success, so these rates are likely too high. Read some of the replies in queries.jsonl of the stage’s folder."
)


def first_page(report: Report) -> str:
    """One sentence for the first page; empty if nothing attacked."""
    found = report.attack
    if found is None or not found.num_requests:
        return ""
    attacker, budget, last = _widest(found), found.budgets[-1], found.models[-1]
    success = found.success(last, attacker, budget)
    if success is None or success.value is None:
        return ""
    against = ""
    if len(found.models) > 1 and (before := found.success(found.models[0], attacker, budget)):
        against = f"; {words(found.models[0])}: {percent(before.value)}"
    who = listed([attacker_name(name) for name in found.attackers], "and")
    each = " each" if len(found.attackers) > 1 else ""
    queries = "1 query" if budget == 1 else f"up to {budget} queries"
    return (
        f"Attackers with {queries}{each} to a harmful request ({who}) break {words(last)} on {written(success)} "
        f"requests{against}."
    )


def said(report: Report) -> str:
    """The result in a few sentences. A difference without evidence is not called one."""
    found = report.attack
    assert found is not None
    sentences = [first_page(report)] if first_page(report) else []
    shown = (f"success:{_widest(found)}", *_MEASURES)
    sentences += [
        _of_difference(one) for one in found.differences if one.measure in shown and one.before == found.models[0]
    ]
    if found.judges_wording:
        sentences.append(WORDING)
    asked = sum(one.num_queries for one in found.counts)
    if broken := sum(one.num_broken for one in found.counts):
        sentences.append(f"{broken} of {asked} replies made no sense, and are no success.")
    if unjudged := sum(one.num_unjudged for one in found.counts):
        sentences.append(f"{unjudged} of {asked} queries have no reply that could be judged, and count in no rate.")
    if unwritten := sum(one.num_unwritten for one in found.counts):
        sentences.append(f"The attacker model failed to write {unwritten} prompts.")
    return " ".join(sentences)


def families_said(found: AttackResults) -> str:
    """Which families attacked, and that nothing was trained on them."""
    trained = f" Training used {listed(_words(found.trained_families), 'and')}." if found.trained_families else ""
    return f"The families that attacked: {listed(_words(found.families), 'and')}.{trained}"


def _words(names: list[str]) -> list[str]:
    return [words(name) for name in names]


def _of_difference(one: Difference) -> str:
    what = measure_name(one.measure)
    models = f"{words(one.after)} against {words(one.before)}"
    return f"{what[0].upper()}{what[1:]}, {models}: {one.verdict} ({points(one.difference)})."


def measure_name(measure: str) -> str:
    kind, _, attacker = measure.partition(":")
    return f"success of {attacker_name(attacker)}" if attacker else _MEASURES[kind]


def attacker_name(name: str) -> str:
    return _NAMES.get(name, words(name))


def _widest(found: AttackResults) -> str:
    return ALL if len(found.attackers) > 1 else found.attackers[0]


# --- Pictures ------------------------------------------------------------------------------------------------------


def attackers(found: AttackResults) -> list[str]:
    """Those that have a picture: any of them first, if there are several."""
    return [*([ALL] if len(found.attackers) > 1 else []), *found.attackers]


def curve(found: AttackResults, attacker: str) -> Markup:
    """Success over log2 of the budget, one line for each model in the band of its intervals."""
    lines: dict[str, Estimates] = {
        words(model): [
            (math.log2(one.budget), one.success)
            for one in found.successes
            if (one.model, one.attacker) == (model, attacker)
        ]
        for model in found.models
    }
    return estimates(lines, f"Success of {attacker_name(attacker)}", "budget", lambda power: _whole(2**power))


def over_rounds(found: AttackResults) -> Markup:
    """Success of the held-out families at the whole budget, and harmless requests refused, after each round."""
    names = ["sft", *found.rounds]
    lines: dict[str, Estimates] = {
        "broken by families that nothing was trained on": [
            (number, success)
            for number, model in enumerate(names)
            if (success := found.success(model, _widest(found), found.budgets[-1])) is not None
        ]
    }
    for attacked, title in HARMLESS.items():
        lines[title] = [
            (number, one.refused)
            for number, model in enumerate(names)
            for one in found.refused
            if (one.model, one.attacked) == (model, attacked)
        ]
    return estimates(lines, "Over the rounds", "round", lambda number: _whole(number) if number else "SFT")


def _whole(number: float) -> str:
    """A whole number; nothing at a tick between two of them."""
    return str(round(number)) if math.isclose(number, round(number)) else ""


def family_rows(found: AttackResults) -> list[tuple[str, list[Estimate | None]]]:
    """(family, success on each model) rows, by the attacker that learns, or else by the first one."""
    attacker = family_attacker(found)
    rates = {(one.family, one.model): one.success for one in found.by_family if one.attacker == attacker}
    names = dict.fromkeys(family for family, _ in rates)
    return [(words(family), [rates.get((family, model)) for model in found.models]) for family in names]


def family_attacker(found: AttackResults) -> str:
    return "adaptive" if "adaptive" in found.attackers else found.attackers[0]


# --- Tables --------------------------------------------------------------------------------------------------------


def success_table(found: AttackResults) -> Table:
    return [
        {"attacker": attacker_name(attacker), "queries": budget}
        | {words(model): found.success(model, attacker, budget) or "" for model in found.models}
        for attacker in attackers(found)
        for budget in found.budgets
        if found.success(found.models[-1], attacker, budget) is not None
    ]


def difference_table(found: AttackResults) -> Table:
    return [
        {
            "measure": measure_name(one.measure),
            "models": f"{words(one.after)} against {words(one.before)}",
            "difference": points(one.difference),
            "p, corrected": one.p_corrected,
            "verdict": one.verdict,
        }
        for one in found.differences
    ]


def refused_table(found: AttackResults) -> Table:
    rates = {(one.attacked, one.model): one.refused for one in found.refused}
    return [
        {"requests": title} | {words(model): rates.get((attacked, model), "") for model in found.models}
        for attacked, title in HARMLESS.items()
        if found.refused
    ]


def trained_table(report: Report) -> Table:
    """What each round trained on: successes of the attacks on the policy of the round before."""
    rows = []
    for task, manifest in report.manifests.items():
        if stage_of(task) == "adversary":
            known = manifest.metrics
            counted = ", ".join(f"{words(family)} {number}" for family, number in known["num_by_family"].items())
            rows.append(
                {
                    "task": task,
                    "requests": known["num_requests"],
                    "queries": known["num_queries"],
                    "successes": known["num_successes"],
                    "near-duplicates left out": known["num_near_duplicates"],
                    "look-alikes under the same attacks": known["num_attacked_look_alikes"],
                    "by family": counted or "–",
                    "kinds of harm": known["num_kinds"],
                    "share of different compositions": known["share_of_different_compositions"],
                    "mean similarity of two": known["mean_similarity"],
                }
            )
    return rows


def shown_tables(report: Report) -> dict[str, Table]:
    """Caption → rows, of the tables that people read."""
    found = report.attack
    assert found is not None
    tables = {
        f"Requests broken, of {found.num_requests}": success_table(found),
        "Harmless requests refused": refused_table(found),
        "Paired differences at the whole budget": difference_table(found),
        "What each round trained on": trained_table(report),
    }
    return {caption: rows for caption, rows in tables.items() if rows}


def attack_tables(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Table name → rows, for CSV and JSON; empty if nothing attacked."""
    found = report.attack
    if found is None:
        return {}
    return {
        "attack_success": [_flat(one.model_dump(exclude={"success"}), one.success) for one in found.successes],
        "attack_by_family": [_flat(one.model_dump(exclude={"success"}), one.success) for one in found.by_family],
        "attack_refused": [_flat(one.model_dump(exclude={"refused"}), one.refused) for one in found.refused],
        "attack_differences": [
            _flat(one.model_dump(exclude={"difference"}), one.difference) for one in found.differences
        ],
        "attack_counts": [one.model_dump() for one in found.counts],
        "adversary_rounds": trained_table(report),
    }


def _flat(row: dict[str, Any], estimate: Estimate) -> dict[str, Any]:
    return row | estimate.model_dump()
