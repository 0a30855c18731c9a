"""The terminal of ``cai chat``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.core.errors import CaiError, ConfigError, Terminated, did_you_mean
from pipeline.daily.chat import Criticised, Session
from pipeline.daily.kept import keep_contrast, keep_example, keep_prompt
from pipeline.records import Message

HELP = """\
/critique [PRINCIPLE]   criticise and revise the last reply under a principle (without one: a drawn one)
/why                    which stage decided the last reply, and the training rows behind it
/save example           keep the last reply with its critique and revision (after /critique)
/save contrast TWIN     keep the request, its right reply (the revision, or the last reply) and a harmless TWIN
/save prompt            keep the conversation as a red-team prompt
/principles             the principles of the constitution
/new                    begin another conversation
/quit                   end (or Ctrl-D); Ctrl-C stops a reply"""

Why = Callable[[Sequence[Message]], None]


class Terminal:
    """Reads lines, and answers each: a command begins with "/", and anything else is said to the models.

    Args:
        keep: the folder of ``/save``.
        why: shows why the run says its last reply; None: the model is not one of a run.
    """

    def __init__(self, session: Session, keep: Path, why: Why | None) -> None:
        self._session, self._keep, self._why = session, keep, why
        self._console = Console(highlight=False)
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._say(HELP),
            "critique": self._critique,
            "why": lambda _: self._ask_why(),
            "save": self._save,
            "principles": lambda _: self._principles(),
            "new": lambda _: self._session.start_again(),
        }

    def run(self) -> None:
        """Talk until the input ends."""
        names = " and ".join(speaker.name for speaker in self._session.speakers)
        self._say(f"{names}; constitution {self._session.constitution.name}. /help lists the commands.")
        while (line := self._read()) is not None:
            if line.strip() in ("/quit", "/exit"):
                return
            try:
                self._answer(line)
            except CaiError as error:
                self._say(f"error: {error}", style="red")
            except Terminated:
                raise
            except KeyboardInterrupt:
                self._say("(stopped)")

    def _read(self) -> str | None:
        try:
            return input("you> " if sys.stdin.isatty() else "")
        except EOFError:
            return None
        except Terminated:
            raise
        except KeyboardInterrupt:
            self._say("")
            return ""

    def _answer(self, line: str) -> None:
        if not line.strip():
            return
        if not line.startswith("/"):
            self._show(self._session.ask(line))
            return
        name, _, rest = line[1:].strip().partition(" ")
        if name not in self._commands:
            raise ConfigError(f"there is no command /{name}{did_you_mean(name, [*self._commands, 'quit'])}.")
        self._commands[name](rest.strip())

    # --- Replies ---------------------------------------------------------------------------------------------

    def _show(self, replies: Sequence[Iterator[str]]) -> None:
        names = [speaker.name for speaker in self._session.speakers]
        if len(replies) > 1 and self._console.is_terminal:
            self._side_by_side(names, replies)
            return
        for name, reply in zip(names, replies, strict=True):
            self._console.print(Text(f"{name}> ", style="bold"), end="")
            for piece in _closing(reply):
                self._console.out(piece, end="")
            self._console.print()

    def _side_by_side(self, names: Sequence[str], replies: Sequence[Iterator[str]]) -> None:
        said = [""] * len(names)
        # Until the end, Live shows as much as the screen holds: a terminal can't change what has scrolled away.
        with Live(console=self._console, refresh_per_second=10) as live:
            for pieces in _closing(zip_longest(*replies, fillvalue=""), *replies):
                said = [text + piece for text, piece in zip(said, pieces, strict=True)]
                live.update(_columns(names, said))

    # --- Commands --------------------------------------------------------------------------------------------

    def _critique(self, principle: str) -> None:
        found = self._session.critique(principle or None)
        self._say(f"{found.principle.title} ({found.principle.id})", style="bold")
        self._say(f"critique: {found.critique}")
        self._say(f"revision: {found.revision}")
        if found.doubt:
            self._say(f"({found.doubt})", style="yellow")

    def _ask_why(self) -> None:
        if self._why is None:
            raise ConfigError("/why needs a run; start the chat with one: cai chat RUN.")
        if not self._session.turns:
            raise ConfigError("there is no reply to ask about yet; say something first.")
        self._why(self._session.turns[:-1])

    def _principles(self) -> None:
        for principle in self._session.constitution.principles:
            self._say(f"{principle.id:<24} {principle.title}")

    def _save(self, words: str) -> None:
        what, _, twin = words.partition(" ")
        if what not in ("example", "contrast", "prompt"):
            raise ConfigError("say what to save: /save example, /save contrast TWIN or /save prompt.")
        turns, criticised = self._session.turns, self._session.criticised
        if not turns:
            raise ConfigError("there is nothing to save yet; say something first.")
        if what == "prompt":
            saved = keep_prompt(self._keep, turns[:-1])
        elif len(turns) > 2:
            raise ConfigError(f"a {what} has one request, and this conversation has several; begin with /new.")
        elif what == "contrast":
            if not twin.strip():
                raise ConfigError(
                    "a contrast needs a harmless request in nearly the same words: /save contrast How do I …?"
                )
            self._refuse_doubtful(criticised)
            right = criticised.revision if criticised else turns[-1]["content"]
            saved = keep_contrast(self._keep, turns[0]["content"], right, twin.strip())
        elif criticised is None:
            raise ConfigError("an example needs a critique and a revision; ask for them with /critique first.")
        else:
            self._refuse_doubtful(criticised)
            texts = (turns[0]["content"], turns[1]["content"], criticised.critique, criticised.revision)
            saved = keep_example(self._keep, *texts, criticised.principle.tags)
        path, use = saved
        self._say(f"saved in {path}; {use}")

    @staticmethod
    def _refuse_doubtful(criticised: Criticised | None) -> None:
        if criticised and criticised.doubt:
            raise ConfigError(
                f"nothing is saved. {criticised.doubt} Try another principle (/critique PRINCIPLE), or write the "
                "text by hand (docs/daily.md)."
            )

    def _say(self, text: str, style: str | None = None) -> None:
        whole_lines = not self._console.is_terminal
        self._console.print(text, style=style, markup=False, soft_wrap=whole_lines)


def _columns(names: Sequence[str], texts: Sequence[str]) -> Table:
    table = Table.grid(expand=True, padding=(0, 2))
    for _ in names:
        table.add_column(ratio=1, overflow="fold")  # a long word goes on in the next line; nothing is cut off
    table.add_row(*(Text(name, style="bold") for name in names))
    table.add_row(*(Text(text) for text in texts))
    return table


def _closing(pieces: Iterator, *sources: Iterator) -> Iterator:
    """The pieces; their sources are closed when the user stops them, so that no model goes on writing."""
    try:
        yield from pieces
    finally:
        for source in sources or (pieces,):
            with suppress(AttributeError):
                source.close()  # type: ignore[attr-defined]
