"""Prints what ``cai constitution stress`` found."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from pipeline.cli.screen import console
from pipeline.explain.stress import Stress, sentences
from pipeline.report.stressed import Rows, pair_rows, principle_rows, summary


def show(stressed: Stress, folder: Path) -> None:
    """Print who judged, a table of principles, a table of pairs, and what stands out."""
    screen = console()
    screen.print(summary(stressed), markup=False)
    for rows in (principle_rows(stressed), pair_rows(stressed)):
        if rows:
            screen.print()
            screen.print(_table(rows))
    screen.print()
    for sentence in sentences(stressed):
        screen.print(sentence, markup=False)
    screen.print(f"kept in {folder}", markup=False, soft_wrap=True)


def _table(rows: Rows) -> Table:
    table = Table(box=None, pad_edge=False)
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    return table
