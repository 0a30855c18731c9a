"""Prints the answer of ``cai why``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.screen import console
from pipeline.explain.lineage import PairSource, SftSource
from pipeline.explain.why import Candidate, Leaning, Reply, Why
from pipeline.records import dialogue_text

WIDTH = 100
MOST_CHARACTERS = 160  # of a text in a table


def show(answer: Why, num_nearest: int) -> None:
    """Print the reply, the log-probabilities, the nearest rows and those that mattered most, each in a table."""
    screen = console(WIDTH)

    def say(text: str = "") -> None:
        screen.print(text, markup=False)

    case = f" (case {answer.case})" if answer.case else ""
    say(f"run {answer.run}")
    say(f"asked{case}: {dialogue_text(answer.messages)}")
    if answer.begun:
        say(f"given beginning of the reply: {answer.begun}")
    for reply in [answer.reply] if answer.reply == answer.first_reply else [answer.reply, answer.first_reply]:
        say(f"{reply.model}{_how(reply)}: {reply.text or '(nothing)'}")
    say()
    screen.print(_leanings(answer))
    for what, total, candidates in (
        ("SFT rows", answer.num_sft_rows, answer.sft),
        ("pairs", answer.num_pairs, answer.pairs),
    ):
        if candidates:
            nearest = candidates[:num_nearest]
            title = f"Nearest to the prompt: {len(nearest)} of {total:,} {what}"
            say()
            screen.print(_rows(title, nearest))
            say()
            _show_influence(screen, what, candidates, num_nearest)
    say()
    if answer.sft or answer.pairs:
        say(f"similarity: cosine of hidden states of {answer.models[0]} at the end of the prompt, from -1 to 1")
        say("influence: cosine of gradients, from -1 to 1; above 0, the row made the reply likelier (docs/why.md)")
    for note in answer.notes:
        say(f"note: {note}")


def _how(reply: Reply) -> str:
    if not reply.on_record:
        return "" if reply.ended else " (cut at the limit)"
    return f" (on record{f', {reply.outcome}' if reply.outcome else ''})"


def _leanings(answer: Why) -> Table:
    title = "Log-probability per token: higher is likelier"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    spoken = (f"“{answer.declining}”", f"“{_cut(answer.answering, 30)}”")
    for column in ("model", *spoken, "difference", "the reply above"):
        table.add_column(Text(column), justify="left" if column == "model" else "right")
    for leaning in answer.leanings:
        leans = _leans(leaning) if answer.answers else ""
        numbers = (leaning.declining, leaning.answering, leaning.difference, leaning.reply)
        table.add_row(Text(leaning.model), *("" if n is None else f"{n:.2f}" for n in numbers), leans)
    return table


def _leans(leaning: Leaning) -> str:
    if not leaning.difference:
        return ""
    return "rather declines" if leaning.difference > 0 else "rather answers"


def _rows(title: str, candidates: Sequence[Candidate]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("similarity", justify="right", no_wrap=True)
    table.add_column("influence", justify="right", no_wrap=True)
    table.add_column("row")
    for candidate in candidates:
        influence = f"{candidate.influence.cosine:+.3f}" if candidate.influence else "?"
        table.add_row(f"{candidate.similarity:.2f}", influence, Text("\n".join(_lines(candidate.row))))
    return table


def _show_influence(screen: Console, what: str, candidates: Sequence[Candidate], number: int) -> None:
    measured = [(found.influence, found) for found in candidates if found.influence is not None]
    if not measured:
        return
    measured.sort(key=lambda pair: -pair[0].cosine)
    table = Table(
        title=f"Made the reply likelier, of the {len(measured)} nearest {what}; an estimate from gradients",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("influence", justify="right", no_wrap=True)
    table.add_column("product", justify="right", no_wrap=True)
    table.add_column("row")
    for influence, candidate in [pair for pair in measured if pair[0].cosine > 0][:number]:
        row = Text(f"{candidate.row.id}: {_cut(_learnt(candidate.row), 60)}")
        table.add_row(f"{influence.cosine:+.3f}", f"{influence.product:+.3g}", row)
    screen.print(table)
    against = [pair for pair in measured if pair[0].cosine < 0]
    if against:
        influence, candidate = against[-1]
        sentence = (
            f"{len(against)} of them made it less likely, most of all {candidate.row.id} ({influence.cosine:+.3f})."
        )
        screen.print(sentence, markup=False)


def _learnt(row: SftSource | PairSource) -> str:
    return row.reply if isinstance(row, SftSource) else f"{row.better} ▸ {row.other}"


def _lines(row: SftSource | PairSource) -> list[str]:
    """A row and where it comes from."""
    if isinstance(row, PairSource):
        under = f"under {', '.join(row.principles)}" if row.principles else "no model judged it"
        return [
            row.id,
            f"asked: {_cut(row.request)}",
            f"A, seed {row.seed_a}: {_cut(row.reply_a)}",
            f"B, seed {row.seed_b}: {_cut(row.reply_b)}",
            f"label: A is better with probability {row.probability_a:.2f}, by {row.labeller} ({under})",
        ]
    lines = [f"{row.id} ({row.origin.replace('_', ' ')})", f"asked: {_cut(row.request)}", f"learnt: {_cut(row.reply)}"]
    if row.critique:
        drawn = "" if row.critique_seed is None else f", seed {row.critique_seed}"
        lines.append(f"critique under {row.principle}{drawn}: {_cut(row.critique)}")
    return [*lines, "written by people" if row.seed is None else f"seed of the reply: {row.seed}"]


def _cut(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text in one line, without its end if it is longer."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"
