"""Prints what ``cai doctor`` and ``cai clean`` found, and a constitution for reading."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.constitution.schema import Constitution
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


def show_constitution(constitution: Constitution, examples: bool) -> None:
    """Print a constitution as a person reads it."""
    console = _console()

    def say(text: str = "", style: str | None = None) -> None:
        console.print(text, style=style, markup=False, width=100)

    say(f"{constitution.name} {constitution.version}: {constitution.description}", "bold")
    say(constitution.preamble.strip())
    say(f"Revised pools: {', '.join(constitution.revise)}.")
    for principle in constitution.principles:
        weight = "" if principle.weight == 1 else f", weight {principle.weight:g}"
        say()
        say(f"{principle.title} ({principle.id}; {', '.join(principle.tags) or 'no tags'}{weight})", "bold")
        say(f"  criticise: {principle.critique_request}")
        say(f"  revise: {principle.revision_request}")
        say(f"  prefer: {principle.preference_question}")
    say()
    counts = {name: getattr(constitution, name) for name in ("worked_examples", "good_answers", "contrasts")}
    say(", ".join(f"{len(parts)} {name.replace('_', ' ')}" for name, parts in counts.items()) + ".")
    for parts in counts.values() if examples else ():
        for part in parts:
            say()
            for name, value in part.model_dump(exclude={"tags"}).items():
                say(f"  {name.replace('_', ' ')}: {value}", "bold" if name == "id" else None)


def _gib(entries: Sequence[Entry]) -> str:
    return f"{sum(entry.size_bytes for entry in entries) / GIB:.2f}"
