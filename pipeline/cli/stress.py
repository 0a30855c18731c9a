"""Prints what ``cai constitution stress`` found."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.explain.stress import Stress, sentences
from pipeline.report.stressed import Rows, pair_rows, principle_rows, summary

WIDTH = 120


def show(stressed: Stress, folder: Path) -> None:
    """Print who judged, a table of principles, a table of pairs, and what stands out."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    console.print(summary(stressed), markup=False)
    for rows in (principle_rows(stressed), pair_rows(stressed)):
        if rows:
            console.print()
            console.print(_table(rows))
    console.print()
    for sentence in sentences(stressed):
        console.print(sentence, markup=False)
    console.print(f"kept in {folder}", markup=False, soft_wrap=True)


def _table(rows: Rows) -> Table:
    table = Table(box=None, pad_edge=False)
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    return table
