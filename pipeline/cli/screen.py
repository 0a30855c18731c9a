"""How commands print: as wide as the terminal, or in a fixed width where the output is kept."""

from __future__ import annotations

import sys

from rich.console import Console

WIDTH = 120  # columns of what is not printed to a terminal


def console(width: int = WIDTH) -> Console:
    """A console that doesn't colour numbers on its own."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


def print_markdown(text: str) -> None:
    """Headings and tables on a terminal; the Markdown itself where the output is kept."""
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        console().print(Markdown(text))
    else:
        print(text, end="")
