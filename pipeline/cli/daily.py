"""What ``cai chat``, ``cai dashboard``, ``cai doctor`` and ``cai clean`` do and print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from pipeline.cli.json_value import print_json
from pipeline.cli.screen import console
from pipeline.core.errors import ConfigError
from pipeline.core.memory import GIB

if TYPE_CHECKING:
    from pipeline.daily.clean import Entry, Survey
    from pipeline.daily.doctor import Finding
    from pipeline.records import Message

MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "wrong": ("wrong", "red")}


def chat(args: argparse.Namespace) -> int:
    from pipeline.chain.asking import open_run
    from pipeline.cli.chat import Terminal
    from pipeline.cli.why import show
    from pipeline.daily.chat import open_session
    from pipeline.explain.why import Asked, why

    if args.temperature < 0:
        raise ConfigError(f"--temperature is {args.temperature:g}; it must be 0 or more.")
    if not args.keep.is_dir():
        raise ConfigError(f"--keep is {str(args.keep)!r}, which is no folder; make it, or give another one.")
    limits = (args.max_reply_tokens, args.temperature)
    session = open_session(args.model, args.against, args.constitution, args.output_dir, *limits)

    def explain(prompt: Sequence[Message]) -> None:
        show(why(open_run(args.output_dir, args.model), Asked(messages=list(prompt)), 30, 200), 5)

    Terminal(session, args.keep, explain if session.of_run else None).run()
    return 0


def dashboard(args: argparse.Namespace) -> int:
    import subprocess
    import webbrowser

    from pipeline.daily.dashboard import dashboard_of

    show = dashboard_of(args.output_dir, args.run, args.port)
    print(f"looking at {show.said}", file=sys.stderr)
    if show.page:
        webbrowser.open(show.page)
        return 0
    return subprocess.run(show.program, env={**os.environ, **show.environment}, check=False).returncode


def doctor(args: argparse.Namespace) -> int:
    from pipeline.chain.compose import compose_config
    from pipeline.daily.doctor import examine

    findings = examine(compose_config(args.overrides, args.config_dir))
    found = list(findings) if args.json else show_findings(findings)
    if args.json:
        print_json([finding.model_dump() for finding in found])
    return 1 if any(finding.state == "wrong" for finding in found) else 0


def clean(args: argparse.Namespace) -> int:
    from pipeline.core.log import say
    from pipeline.daily.clean import remove, survey

    found = survey(args.output_dir, args.answers)
    if not args.json:
        show_survey(found)
        show_removable(found.removable)
    removed = []
    if found.removable and (args.yes or (not args.json and _agreed(len(found.removable)))):
        removed = remove(Path(found.folder), found.removable)
        say(f"removed {len(removed)} of {len(found.removable)} folders")
    elif not args.json:
        say("nothing to remove" if not found.removable else "nothing was removed; --yes removes it without asking")
    if args.json:
        print_json(found.model_dump() | {"removed": [entry.name for entry in removed]})
    return 0


def _agreed(num_folders: int) -> bool:
    """Ask on a terminal; elsewhere nobody can answer, and that is a no."""
    return sys.stdin.isatty() and input(f"Remove these {num_folders} folders? [y/N] ").strip().lower() in ("y", "yes")


def show_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Print each finding as soon as it is there, and return all of them."""
    screen, found = console(), []
    whole_lines = not screen.is_terminal
    for finding in findings:
        found.append(finding)
        mark, style = MARKS[finding.state]
        screen.print(Text(f"{mark:<6}", style=style) + Text(f"{finding.name}: {finding.found}"), soft_wrap=whole_lines)
        if finding.remedy:
            screen.print(Text(f"       {finding.remedy}"), soft_wrap=whole_lines)
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
    screen = console()
    screen.print(f"{survey.folder}; runs that refer to it: {survey.num_runs}", markup=False, soft_wrap=True)
    screen.print(table)


def show_removable(entries: Sequence[Entry]) -> None:
    screen = console()
    for entry in entries:
        screen.print(f"  {_gib([entry]):>7} GiB  {entry.name}", markup=False)


def _gib(entries: Sequence[Entry]) -> str:
    return f"{sum(entry.size_bytes for entry in entries) / GIB:.2f}"
