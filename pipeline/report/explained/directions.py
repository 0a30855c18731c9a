"""Does the model not see the harm, or does it see it and not decline? The sentence, the lines and the tables."""

from __future__ import annotations

from pipeline.evals.results import Estimate
from pipeline.evals.statistics import newcombe
from pipeline.explain.directions_found import MIN_COMPLIED, Ablation, DirectionsFindings, Removed
from pipeline.records import Pool
from pipeline.report.explained.plane import plane, plane_legend
from pipeline.report.explained.section import Section, Table
from pipeline.report.knows import REQUESTS
from pipeline.report.wording import percent, points, words, written

__all__ = ["ablation_rows", "aucs", "plane", "plane_legend", "section"]  # what the template reads

UNDER = {"direct": "without an attack", "attacks": "under attacks"}
REMOVED: tuple[Removed, ...] = ("nothing", "refusal direction", "random direction")
SHOWN_AS = ("nothing removed", "without the refusal direction", "without a random direction")


def section(found: DirectionsFindings, models: list[str]) -> Section:
    """The section, for models of which the first is that before training and the last is explained."""
    answer = sentence(found, models[-1])
    return Section(
        name="directions",
        title="Does it not see the harm, or see it and not decline?",
        said=" ".join(part for part in (answer, ablation_said(found, models[-1])) if part),
        first_page=answer if found.reading(models[-1]) != "no evidence" else "",
        tables=_tables(found),
        findings=found,
    )


def sentence(found: DirectionsFindings, last: str) -> str:
    """Which it is, for the harmful requests that the model complied with, without an attack."""
    model, seen, alarms = words(last), found.seen_of("direct", "complied"), found.false_alarms
    others = f"{written(alarms)} harmless look-alikes"
    counted = f"its inner states mark as harmful {written(seen)} that it complied with"
    declined = written(found.seen_of("direct", "refused"))
    reading, begins = found.reading(last), f"On harmful requests that it does not decline, {model} mostly"
    if reading == "sees":
        return f"{begins} sees the harm all the same: {counted}, and {others}."
    if reading == "does not see":
        return f"{begins} does not see the harm: {counted}, and {declined} that it declined."
    unknown = f"There is no evidence whether {model} sees the harm that it does not decline: "
    auc = found.auc(last, "look_alike")
    if auc is None or auc.low is None or auc.low <= 0.5:
        against = f" (AUC {written(auc)})" if auc else ""
        return f"{unknown}its inner states do not tell harmful requests from harmless look-alikes{against}."
    if seen.total < MIN_COMPLIED:
        return f"{unknown}it complied with only {seen.total} harmful requests."
    return f"{unknown}{counted}, and {others}."


def ablation_said(found: DirectionsFindings, last: str) -> str:
    """What taking out the refusal direction did; empty if it was not measured."""
    rows = {row.removed: row for row in found.ablation if row.pool == "red_team"}
    if not rows:
        return ""
    none, without, random = (rows[name] for name in REMOVED)
    change = points(without.difference or Estimate(value=None))
    counts = (
        f"Without the refusal direction {words(last)} declines {percent(without.refused.value)} of "
        f"{none.refused.total} harmful requests instead of {percent(none.refused.value)} ({change})"
    )
    return f"{counts}, and without a random one {percent(random.refused.value)}, {_verdict(none, without)}."


def _verdict(none: Ablation, without: Ablation) -> str:
    """More answers than without a random direction are asked for: a broken reply is no answer, and any projection may
    change some replies."""
    more = without.more_answered
    if more is not None and more.low is not None and more.low > 0:
        return "so its refusals depend on that direction"
    if newcombe(none.broken, without.broken)[0] > 0:
        return f"but {percent(without.broken.value)} of its replies are broken then, so this shows nothing of refusals"
    return "so there is no evidence that its refusals depend on that direction"


def aucs(found: DirectionsFindings, against: Pool) -> dict[str, list[tuple[float, Estimate]]]:
    """Model → (layer, AUC), for the picture."""
    lines: dict[str, list[tuple[float, Estimate]]] = {}
    for row in found.layer_aucs:
        if row.against == against and row.auc.value is not None:
            lines.setdefault(words(row.model), []).append((row.layer, row.auc))
    return lines


def ablation_rows(found: DirectionsFindings) -> list[tuple[str, list[Estimate | None]]]:
    """(what, its share with each direction removed), in the order of ``SHOWN_AS``."""
    rows = {(row.pool, row.removed): row for row in found.ablation}
    pools = dict.fromkeys(row.pool for row in found.ablation)
    kinds = [(pool, what) for pool in pools for what in ("refused", "broken")]
    return [
        (f"{REQUESTS[pool]}: {what}", [getattr(rows[pool, name], what) for name in REMOVED]) for pool, what in kinds
    ]


def _tables(found: DirectionsFindings) -> dict[str, Table]:
    tables: dict[str, Table] = {
        "directions_seen": [
            {
                "harmful requests": UNDER[row.under],
                "outcome": row.outcome,
                "marked as harmful": row.seen,
                "not marked": row.unseen,
            }
            for row in found.seen
        ],
        "directions_layers": [
            {"model": row.model, "layer": row.layer, "harmful against": REQUESTS[row.against], "AUC": row.auc}
            for row in found.layer_aucs
        ],
        "directions_cosines": [
            {"directions": row.of, "layer": row.layer, "cosine": row.value, "most to expect": row.most}
            for row in found.cosines
        ],
        "directions_places": [
            {
                "requests": REQUESTS[row.pool],
                "attack": words(row.attack),
                "harmfulness score": row.x,
                "refusal score": row.y or Estimate(value=None),
            }
            for row in found.families
        ],
        "directions_removed": [
            {
                "requests": REQUESTS[row.pool],
                "removed": row.removed,
                "refused": row.refused,
                "broken": row.broken,
                "difference": row.difference or Estimate(value=None),
                "more answered than without a random one": row.more_answered or Estimate(value=None),
            }
            for row in found.ablation
        ],
    }
    return {name: rows for name, rows in tables.items() if rows}
