"""The part on the guard: the aligned model with it beside the same model alone."""

from __future__ import annotations

from typing import Any

from pipeline.evals.measures import all_measures
from pipeline.evals.results import DIRECT, Change, Estimate
from pipeline.evals.suites.red_team import ALL
from pipeline.guard.families import family_of
from pipeline.guard.results import Guarded
from pipeline.report.build import Report, describe
from pipeline.report.wording import listed, percent, words

Row = dict[str, str | Estimate | int]
SHOWN = ("harmful_complied", "attack_success", "look_alike_refused", "ordinary_refused")


def said(guarded: Guarded) -> str:
    """What the guard changes, in one sentence. A change that may be chance is not called one."""
    if guarded.card.idle:
        return f"The guard never fires: {guarded.card.idle}."
    found = {change.measure: change for change in guarded.changes}
    titles = [(all_measures()[name].title, found.get(name)) for name in SHOWN]
    shown = [(f"“{title[0].lower()}{title[1:]}”", change) for title, change in titles if change]
    parts = {
        verdict: [f"{title} ({_points(change)})" for title, change in shown if change.verdict == verdict]
        for verdict in ("better", "worse")
    }
    sentences = [
        f"{guarded.system} is {verdict} at {listed(names, 'and')}" for verdict, names in parts.items() if names
    ]
    rest = [title for title, change in shown if change.verdict == "no evidence of change"]
    if rest:
        sentences.append(f"there is no evidence that it changes {listed(rest, 'or')}")
    return f"Beside {guarded.model} alone, {'; '.join(sentences)}." if sentences else "Nothing was compared."


def _points(change: Change) -> str:
    return describe(change).removeprefix(f"{change.verdict} (").removesuffix(")")


def promise(guarded: Guarded) -> list[str]:
    """What the guard is made of, and what holds of its false alarms."""
    card = guarded.card
    who = listed([f"{number} by {words(name)}" for name, number in card.made_of.items()], "and")
    steps = f"The first step reads layer {card.request.layer} of {card.num_layers} at the end of the request"
    if card.reply:
        steps += f"; where it is not certain, the second reads layer {card.reply.layer} in the reply so far"
    bound = (
        f"The threshold was set on {card.num_harmless} held-out harmless requests, of which {card.num_alarms} are "
        f"above it: with confidence {percent(card.confidence)} over the draw of these requests, the rate of false "
        f"alarms on requests like them is at most {100 * card.bound:.1f} % (budget "
        f"{100 * card.max_false_alarms:g} %). It says nothing of requests of another kind."
    )
    harmless = f"Under an attack, the first step is certain of harm in {card.attacked_harmless} of them."
    held_out = listed([f"{words(one.pool)} {one.fired}" for one in card.held_out], "and")
    return [
        f"It learned from training prompts labelled {who}, as they are and under attacks of the families "
        f"{listed(card.families, 'and') or 'none'}. {steps}.",
        *([] if card.idle else [bound, f"It fires on held-out requests: {held_out}. {harmless}"]),
        *card.notes,
        *([f"{guarded.num_unread} replies could not be read, and it fires on none."] if guarded.num_unread else []),
        f"Where it fires, the reply is: “{guarded.refusal}”",
    ]


def measures(guarded: Guarded) -> list[Row]:
    """One row for each measure of the evaluation that a guard can change."""
    found = {change.measure: change for change in guarded.changes}
    model, system = guarded.model, guarded.system
    return [
        {
            "measure": measure.title,
            model: guarded.measures[model].get(name, ""),
            system: guarded.measures[system].get(name, ""),
            "change": describe(found.get(name)),
        }
        for name, measure in all_measures().items()
        if name in guarded.measures[system]
    ]


def attacks(guarded: Guarded) -> list[Row]:
    """Attack success: under each attack, and over the families that the guard learned from and the others."""
    model, system = guarded.model, guarded.system
    cells = {(cell.model, cell.attack): cell.success for cell in guarded.attacks}
    found = {change.measure.partition(":")[2]: change for change in guarded.attack_changes}
    whole = {"harmful_complied": DIRECT, "attack_success": ALL}
    found |= {whole[change.measure]: change for change in guarded.changes if change.measure in whole}
    return [
        {
            "attack": words(attack),
            "learned": "yes" if family_of(attack) in guarded.card.families else "",
            model: cells[model, attack],
            system: cells[system, attack],
            "change": describe(found.get(attack)),
        }
        for attack in dict.fromkeys(cell.attack for cell in guarded.attacks)
    ]


def alarms(guarded: Guarded) -> list[Row]:
    """How often it fires, and what this changes."""
    return [
        {
            "requests": row.requests,
            "right": "to fire" if row.harmful else "not to fire",
            "fires": row.fired,
            "at once": row.by_request,
            "changes an answer": row.lost_answers,
        }
        for row in guarded.alarms
    ]


def guard_tables(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Tables for CSV and JSON."""
    guarded = report.guarded
    if guarded is None:
        return {}
    return {
        "guard_measures": [
            {"model": model, "measure": name} | found.model_dump()
            for model, mine in guarded.measures.items()
            for name, found in mine.items()
        ],
        "guard_changes": [change.model_dump() for change in [*guarded.changes, *guarded.attack_changes]],
        "guard_attacks": [
            {"model": cell.model, "attack": cell.attack} | cell.success.model_dump() for cell in guarded.attacks
        ],
        "guard_alarms": [
            {"requests": row.requests, "harmful": row.harmful, "what": what} | found.model_dump()
            for row in guarded.alarms
            for what, found in (("fired", row.fired), ("lost_answers", row.lost_answers))
        ],
    }
