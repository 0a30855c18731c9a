"""The report's card on the labels: who gave them, and what turns those that a model gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.evals.label_check import Checked
from pipeline.evals.made_of import EXPECTED, HOW, WHAT, MadeOf, Turned, said
from pipeline.evals.results import Estimate
from pipeline.report.build import Report
from pipeline.report.wording import percent

SHOWN_AS = ("labels that turn",)


def made_of(report: Report) -> MadeOf | None:
    """Of the last round. None for a run without labels, and for one of a version that did not measure it."""
    manifest = report.manifests.get(report.newest("preferences"))
    return MadeOf.of_metrics(manifest.metrics) if manifest else None


def checked(report: Report) -> Checked | None:
    """How often the labeller of the last round was right before it labelled; None if that was not measured."""
    manifest = report.manifests.get(report.newest("preferences"))
    return Checked.of_metrics(manifest.metrics) if manifest else None


def sentence(report: Report) -> str:
    """What the labels are made of; empty if it is not known."""
    of_several = f"In the last of {report.num_rounds} rounds: " if report.num_rounds > 1 else ""
    return f"{of_several}{said(found)}" if (found := made_of(report)) else ""


@dataclass(frozen=True)
class Changed:
    """One change, and the share of labels that turn with it."""

    title: str
    share: Estimate
    expected: str
    """How many would turn if the constitution decided: all, none or few."""
    how: str
    """How it was made, and what could not be counted."""


def changes(made: MadeOf) -> list[Changed]:
    return [
        Changed(WHAT[name], turned.share, EXPECTED[name], f"{HOW[name]}{_beside(turned)}")
        for name, turned in made.labels_that_turn.items()
    ]


def rows(made: MadeOf) -> list[tuple[str, list[Estimate | None]]]:
    return [(changed.title, [changed.share]) for changed in changes(made)]


def notes(made: MadeOf) -> dict[str, str]:
    """Name of a row → its share, of how many labels, and how many should turn."""
    return {c.title: f"{percent(c.share.value)} of {c.share.total}; should be: {c.expected}" for c in changes(made)}


def _beside(turned: Turned) -> str:
    counted = {
        "Prefer neither reply then, and count as turned": turned.num_undecided,
        "Can't be read then, and don't count": turned.num_unreadable,
        "Left out, because nothing can be cut": turned.num_not_changed,
    }
    return "".join(f" {what}: {number}." for what, number in counted.items() if number)


def labellers(report: Report) -> list[str]:
    """The names of the labellers that asked a model."""
    return sorted({preference.labeller for preference in report.preferences if preference.judgements})


def label_tables(report: Report) -> dict[str, list[dict[str, Any]]]:
    """The table ``labels``: who gave them, what turns them, and how often the labeller was right before."""
    made = made_of(report)
    if made is None:
        return {}
    given = [
        _row("labels given by", who, Estimate(value=number / made.num_labels, count=number, total=made.num_labels))
        for who, number in made.num_labels_by.items()
        if number
    ]
    turned = [_row("labels that turn with", name, found.share, found) for name, found in made.labels_that_turn.items()]
    check = checked(report)
    shares = {"all": check.right, **check.by_kind} if check else {}
    right = [_row("labeller right on shipped pairs", kind, share) for kind, share in shares.items()]
    return {"labels": given + turned + right}


def _row(what: str, name: str, share: Estimate, turned: Turned | None = None) -> dict[str, Any]:
    beside = (turned or Turned(share=share)).model_dump(exclude={"share"})
    return {"what": what, "name": name} | share.model_dump() | beside
