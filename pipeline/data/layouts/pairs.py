"""Layouts of pairs of replies of which people chose one."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.files import text_of
from pipeline.data.formats import Row
from pipeline.data.layouts.base import Layouts, TieError
from pipeline.data.transcripts import parse_transcript
from pipeline.data.turns import is_dialogue, parse_turns
from pipeline.records import Message


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """A dialogue and two replies; people preferred ``chosen``."""

    id: str
    kind: str
    messages: list[Message]
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1]["role"] != "user":
            raise ValueError("what comes before the replies does not end with a person's turn")
        if self.chosen == self.rejected:
            raise ValueError("both replies are the same")


PAIRS: Layouts[PairRow] = Layouts()


def holds_turns(row: Row, column: str) -> bool:
    """Whether a column has a dialogue, not a text."""
    return isinstance(row[column], list) or is_dialogue(row[column])


@PAIRS.add("chosen_rejected", "chosen", "rejected", "prompt")
def chosen_rejected(row: Row) -> PairRow:
    """TRL's layouts with a prompt, as text or as turns, and UltraFeedback's: a prompt and two whole dialogues."""
    _refuse_tie(row)
    if holds_turns(row, "chosen") and turns_of(row, "chosen")[0]["role"] != "assistant":
        return dialogues(row)
    return PairRow(
        **_labels(row), messages=_context(row), chosen=_reply(row, "chosen"), rejected=_reply(row, "rejected")
    )


@PAIRS.add("dialogues", "chosen", "rejected", fits=lambda row: holds_turns(row, "chosen"))
def dialogues(row: Row) -> PairRow:
    """TRL's layout without a prompt: two whole dialogues that differ in the last turn."""
    _refuse_tie(row)
    right, wrong = turns_of(row, "chosen"), turns_of(row, "rejected")
    return _from_dialogues(**_labels(row), right=right, wrong=wrong)


def _is_transcript(row: Row) -> bool:
    return isinstance(row["chosen"], str) and not holds_turns(row, "chosen")


@PAIRS.add("hh_rlhf", "chosen", "rejected", fits=_is_transcript)
def hh_rlhf(row: Row) -> PairRow:
    """Bai et al. 2022, arXiv 2204.05862: two transcripts that differ in the last turn."""
    return _from_transcripts("hh_rlhf", text_of(row, "chosen"), text_of(row, "rejected"))


@PAIRS.add("hhh_438", "text_correct", "text_incorrect")
def hhh_438(row: Row) -> PairRow:
    """The comparisons of the Constitutional AI paper: text_correct, text_incorrect."""
    return _from_transcripts("hhh", text_of(row, "text_correct"), text_of(row, "text_incorrect"))


@PAIRS.add("hhh_targets", "input", "targets")
def hhh_targets(row: Row) -> PairRow:
    """BIG-bench's hhh_alignment: input, targets {choices, labels}."""
    targets = row["targets"]
    choices, labels = targets["choices"], targets["labels"]
    if len(choices) != 2 or sorted(labels) != [0, 1]:
        raise ValueError("targets do not have one right and one wrong choice")
    replies = {"chosen": choices[labels.index(1)], "rejected": choices[labels.index(0)]}
    return PairRow(
        id="",
        kind=str(row.get("subset") or "hhh"),
        messages=[Message(role="user", content=text_of(row, "input"))],
        chosen=text_of(replies, "chosen"),
        rejected=text_of(replies, "rejected"),
    )


def _labels(row: Row) -> dict[str, str]:
    return {"id": str(row.get("id") or ""), "kind": str(row.get("kind") or "unspecified")}


def _refuse_tie(row: Row) -> None:
    """UltraFeedback has scores of both replies. Where they are equal, one was chosen at random."""
    better, worse = row.get("score_chosen"), row.get("score_rejected")
    if isinstance(better, int | float) and isinstance(worse, int | float):
        if better == worse:
            raise TieError(f"both scores are {better:g}")
        if better < worse:
            raise ValueError(f"score_chosen ({better:g}) is below score_rejected ({worse:g})")


def _context(row: Row) -> list[Message]:
    """The dialogue before the replies."""
    column = next((name for name in ("messages", "request", "prompt") if row.get(name)), "prompt")
    if holds_turns(row, column):
        return turns_of(row, column)
    return [Message(role="user", content=text_of(row, column))]


def turns_of(row: Row, column: str) -> list[Message]:
    """The dialogue in a column. Raises ValueError if it is none or empty."""
    try:
        turns = parse_turns(row[column])
    except ValueError as error:
        raise ValueError(f"column {column!r} {error}") from None
    if not turns:
        raise ValueError(f"column {column!r} holds no turn with text")
    return turns


def _reply(row: Row, column: str) -> str:
    """A reply as text, or as the only turn of a list."""
    if not holds_turns(row, column):
        return text_of(row, column)
    turns = turns_of(row, column)
    if [turn["role"] for turn in turns] != ["assistant"]:
        raise ValueError(f"column {column!r} is not one turn of the assistant")
    return turns[0]["content"]


def _from_transcripts(kind: str, chosen: str, rejected: str) -> PairRow:
    return _from_dialogues(id="", kind=kind, right=parse_transcript(chosen), wrong=parse_transcript(rejected))


def _from_dialogues(*, id: str, kind: str, right: list[Message], wrong: list[Message]) -> PairRow:
    if any(not turns or turns[-1]["role"] != "assistant" for turns in (right, wrong)):
        raise ValueError("a dialogue does not end with the assistant's turn")
    if right[:-1] != wrong[:-1]:
        raise ValueError("the two dialogues differ before the last turn")
    return PairRow(id=id, kind=kind, messages=right[:-1], chosen=right[-1]["content"], rejected=wrong[-1]["content"])
