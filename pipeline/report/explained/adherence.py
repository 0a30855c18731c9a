"""Does it keep to each principle: a sentence, a row of dots for each principle, and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.evals.results import Change, Estimate
from pipeline.explain.adherence import AdherenceFindings
from pipeline.explain.adherence_counts import Kept
from pipeline.explain.probes import Source
from pipeline.report.explained.section import Section, Table
from pipeline.report.wording import difference, interval, listed, percent, value, words, written

Row = tuple[str, list[Estimate | None]]
MOST_NAMED = 3  # in a sentence


def section(found: AdherenceFindings, models: list[str]) -> Section:
    """The section, for models of which the first is that before training and the last is explained."""
    changed = _changed_said(found, models)
    return Section(
        name="adherence",
        title="Does it keep to each principle?",
        said=" ".join(filter(None, (changed, weakest_said(found, models), judges_said(found), sources_said(found)))),
        is_warning=(found.labeller_was_asked and not found.labeller_beats_chance)
        or bool(_titles(found, models, "worse")),
        first_page=weakest_said(found, models),
        tables={"adherence": _rates(found, models), "adherence_changes": _changes(found)},
        findings=found,
    )


# --- The sentences -------------------------------------------------------------------------------------------------


def weakest_said(found: AdherenceFindings, models: list[str]) -> str:
    """The principle that the last model keeps least often; empty if no judge can be trusted with one."""
    known = [(rates[models[-1]], rule) for rule, rates in found.trusted.rates.items() if rates[models[-1]].total]
    if not known:
        return ""
    rate, rule = min(known, key=lambda pair: pair[0].value or 0.0)
    kept = f"{value(rate)} {interval(rate)} of {rate.total} replies"
    return f"The weakest principle: “{_title_of(found, rule)}” (kept in {kept})."


def judges_said(found: AdherenceFindings) -> str:
    """What the labeller's judgement is worth."""
    labeller, second = found.by_labeller.judge, found.by_outcome.judge
    if not found.labeller_was_asked:
        return (
            f"The numbers are those of the judge {second}, which knows only whether a reply declines; no AI labelled "
            "this run, so there is no labeller to compare it with."
        )
    if not found.by_outcome.rates:
        return (
            f"No principle here is about declining or answering, so nothing shows whether the labeller {labeller} can "
            "judge this, and no guideline is decided by it."
        )
    if found.kappa.value is None:
        return (
            f"There is no reply on which both judges say something: none of the answers of the labeller {labeller} can "
            f"be read, or the judge {second} gave no verdict."
        )
    shown = (
        f"{percent(found.agreement.value)} of {found.agreement.total} judgements (Cohen’s κ "
        f"{found.kappa.value:.2f} {interval(found.kappa)})"
    )
    if not found.labeller_knows_more:
        return (
            f"The numbers are those of the judge {second}, which knows only whether a reply declines. The labeller "
            f"({labeller}) knows no more than that; asked about a few replies, it agrees on {shown}"
            + ("." if found.labeller_beats_chance else ", which may be chance.")
        )
    if found.labeller_beats_chance:
        return f"The numbers are the labeller’s ({labeller}); it agrees with the judge {second} on {shown}."
    return (
        f"The labeller ({labeller}) agrees with the judge {second} on {shown}, which may be chance: its answers say "
        f"nothing here, and these numbers are those of {second}, which knows only whether a reply declines."
    )


def sources_said(found: AdherenceFindings) -> str:
    """Where the requests are from, if not all are from the evaluation."""
    number, total = found.num_by_source, sum(found.num_by_source.values())
    whence: dict[Source, str] = {"written": "were written by the engine of the labeller", "given": "are from a file"}
    said = [f"{number[source]} {how}" for source, how in whence.items() if source in number]
    if not said:
        return ""
    return f"Of the {total} requests, {listed(said, 'and')}; the models were asked these after the evaluation."


def chosen_said(found: AdherenceFindings) -> str:
    """How the requests of the evaluation were chosen, for the caption; empty if there are none."""
    if found.num_by_source and "drawn" not in found.num_by_source:
        return ""
    return (
        " Those of the evaluation are of the pools for which the principle is used: first those whose kind is one of "
        "its tags, then those that share most words with it."
    )


def _changed_said(found: AdherenceFindings, models: list[str]) -> str:
    if len(models) < 2 or not found.trusted.rates:
        return ""
    first, last, number = words(models[0]), words(models[-1]), len(found.trusted.rates)
    better, worse = (_titles(found, models, verdict) for verdict in ("better", "worse"))
    said = [
        f"{len(titles)} of {number} principles {how} often than {first} ({_few(titles)})"
        for titles, how in ((better, "more"), (worse, "less"))
        if titles
    ]
    if not said:
        return f"There is no evidence that {last} keeps to any principle more or less often than {first}."
    return f"The model {last} keeps to {listed(said, 'and to')}."


def _few(titles: list[str]) -> str:
    rest = len(titles) - MOST_NAMED
    return ", ".join(f"“{title}”" for title in titles[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _titles(found: AdherenceFindings, models: list[str], verdict: str) -> list[str]:
    return [_title_of(found, _rule(c)) for c in overall(found.trusted, models) if c.verdict == verdict]


def overall(kept: Kept, models: list[str]) -> list[Change]:
    """The changes from the first model to the last."""
    return [change for change in kept.changes if (change.before, change.after) == (models[0], models[-1])]


def _rule(change: Change) -> str:
    return change.measure.partition(":")[2]


def _title_of(found: AdherenceFindings, principle_id: str) -> str:
    return next(rule.title for rule in found.principles if rule.id == principle_id)


# --- Pictures ------------------------------------------------------------------------------------------------------


def kept_rows(found: AdherenceFindings, kept: Kept, models: list[str]) -> list[Row]:
    """(title, rate of each model) of the principles that the judge can judge."""
    return [
        (rule.title, [kept.rates[rule.id][model] for model in models])
        for rule in found.principles
        if rule.id in kept.rates
    ]


def notes(found: AdherenceFindings, kept: Kept, models: list[str]) -> Mapping[str, str]:
    """Title → the verdict on the change from the first model to the last, where there is one."""
    return {
        _title_of(found, _rule(change)): change.verdict
        for change in overall(kept, models)
        if change.verdict in ("better", "worse")
    }


def called(found: AdherenceFindings, kept: Kept) -> str:
    """Which of the two judges this is, and its name."""
    second = "the second judge" if found.labeller_was_asked else "the judge"
    return f"{'the labeller' if kept is found.by_labeller else second} ({kept.judge})"


def judges(found: AdherenceFindings) -> list[Kept]:
    """Whose numbers are shown, the trusted judge first. Not a labeller that was asked about a few replies only."""
    other = found.by_labeller if found.trusted is found.by_outcome else found.by_outcome
    return [found.trusted, other] if found.labeller_knows_more else [found.trusted]


# --- Tables --------------------------------------------------------------------------------------------------------


def _rates(found: AdherenceFindings, models: list[str]) -> Table:
    return [
        {"principle": rule.title, "judge": kept.judge, **{model: kept.rates[rule.id][model] for model in models}}
        for rule in found.principles
        for kept in (found.by_labeller, found.by_outcome)
        if rule.id in kept.rates
    ]


def _changes(found: AdherenceFindings) -> Table:
    return [
        {
            "principle": _title_of(found, _rule(change)),
            "judge": kept.judge,
            "before": change.before,
            "after": change.after,
            "difference": difference(change, "rate"),
            "p_corrected": change.p_corrected,
            "verdict": change.verdict,
        }
        for kept in (found.by_labeller, found.by_outcome)
        for change in kept.changes
    ]


def cells(found: AdherenceFindings, models: list[str]) -> list[dict[str, Any]]:
    """One row for each principle: its number of requests, and each model's rate by both judges as text."""
    return [
        {
            "title": rule.title,
            "num_probes": rule.num_probes,
            "rates": [
                [written(kept.rates[rule.id][model]) if rule.id in kept.rates else "–" for model in models]
                for kept in judges(found)
            ],
        }
        for rule in found.principles
    ]
