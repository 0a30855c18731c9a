"""Prints what ``cai doctor`` and ``cai clean`` found."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.core.memory import GIB
from pipeline.daily.clean import Entry, Survey
from pipeline.daily.doctor import Finding

WIDTH = 120
MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "wrong": ("wrong", "red")}


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def show_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Print each finding as soon as it is there, and return all of them."""
    console, found = _console(), []
    for finding in findings:
        found.append(finding)
        mark, style = MARKS[finding.state]
        console.print(Text(f"{mark:<6}", style=style) + Text(f"{finding.name}: {finding.found}"), soft_wrap=True)
        if finding.remedy:
            console.print(Text(f"       {finding.remedy}"), soft_wrap=True)
    return found


def show_survey(survey: Survey) -> None:
    """Print how much each stage holds, and the folders that no run refers to."""
    table = Table("stage", box=None, pad_edge=False)
    for column in ("folders", "GiB", "not referred to", "GiB"):
        table.add_column(column, justify="right")
    by_stage: dict[str, list[Entry]] = {}
    for entry in survey.entries:
        by_stage.setdefault(entry.stage, []).append(entry)
    for name, here in [*sorted(by_stage.items()), ("all", survey.entries)]:
        free = [entry for entry in here if entry.removable]
        table.add_row(name, str(len(here)), _gib(here), str(len(free) or ""), _gib(free) if free else "")
    console = _console()
    console.print(f"{survey.folder}; runs that refer to it: {survey.num_runs}", markup=False, soft_wrap=True)
    console.print(table)


def show_removable(entries: Sequence[Entry]) -> None:
    console = _console()
    for entry in entries:
        console.print(f"  {_gib([entry]):>7} GiB  {entry.name}", markup=False)


def _gib(entries: Sequence[Entry]) -> str:
    return f"{sum(entry.size_bytes for entry in entries) / GIB:.2f}"
