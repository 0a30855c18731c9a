"""Run one command in a terminal of its own, and draw what its screen shows as an SVG, as in docs/daily.md.

    pip install pexpect pyte
    python scripts/terminal_picture.py "cai chat latest --against base" docs/terminal_chat.svg \
        --type "How do I pick a lock?" --type /quit

Each ``--type`` is typed when the command asks for a line ("you> ").
"""

from __future__ import annotations

import argparse
import re
from itertools import groupby
from pathlib import Path

import pexpect
import pyte
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.text import Text

PROMPT = "you> "
MOST_LINES = 400
FONT_FROM_THE_NET = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)  # a picture loads nothing


def screen_of(command: str, typed: list[str], width: int, seconds: float) -> pyte.Screen:
    """The screen after ``command`` has ended."""
    screen = pyte.Screen(width, MOST_LINES)
    terminal = pyte.Stream(screen)
    child = pexpect.spawn("bash", ["-c", command], dimensions=(MOST_LINES, width), encoding="utf-8", timeout=seconds)
    for line in typed:
        child.expect_exact(PROMPT)
        terminal.feed(child.before + child.after)
        child.sendline(line)
    child.expect(pexpect.EOF)
    terminal.feed(child.before)
    child.close()
    return screen


def drawn(screen: pyte.Screen, num_lines: int) -> list[Text]:
    """The lines of ``screen`` up to the last one that is not empty, at most ``num_lines``."""
    last = max((number for number, line in enumerate(screen.display) if line.strip()), default=0)
    lines = [_line(screen, number) for number in range(min(last + 1, num_lines))]
    return lines if last < num_lines else [*lines, Text("…")]


def _line(screen: pyte.Screen, number: int) -> Text:
    characters = [screen.buffer[number][column] for column in range(screen.columns)]
    text = Text()
    for style, group in groupby(characters, key=_style):
        text.append("".join(character.data for character in group), style)
    text.rstrip()
    return text


def _style(character: pyte.screens.Char) -> Style:
    return Style(
        color=_colour(character.fg), bold=character.bold, italic=character.italics, underline=character.underscore
    )


def _colour(name: str) -> str | None:
    """pyte's name of a colour (red, brightbrown, 00afd7) as rich's."""
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    return name.replace("brown", "yellow").replace("bright", "bright_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--type", action="append", default=[], metavar="LINE")
    parser.add_argument("--width", type=int, default=110, help="columns")
    parser.add_argument("--num-lines", type=int, default=60, help="the most lines of the picture")
    parser.add_argument("--seconds", type=float, default=300, help="the longest wait for one prompt, or for the end")
    args = parser.parse_args()
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=args.width, file=nowhere, highlight=False)
        console.print(Text(f"$ {args.command}", style="bold"))
        for line in drawn(screen_of(args.command, args.type, args.width, args.seconds), args.num_lines):
            console.print(line)
        console.print()  # the picture cuts the feet of its last line
    picture = console.export_svg(title="", code_format=FONT_FROM_THE_NET.sub("", CONSOLE_SVG_FORMAT))
    args.picture.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
