"""Reads public evaluation sets in several layouts.

A layout is detected from its columns (``shape: auto``) or set by name. Malformed rows are dropped, counted and
reported, because a broken line must not stop an evaluation. A file without any readable row is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.errors import ConfigError
from pipeline.data.files import Row, mended_note, rows_of
from pipeline.data.transcripts import parse_transcript
from pipeline.data.turns import is_dialogue, parse_turns
from pipeline.records import Message, dialogue_key


@dataclass(frozen=True, kw_only=True)
class RequestRow:
    """A request. ``harmless`` is None unless the set labels it (XSTest has both kinds)."""

    id: str
    request: str
    kind: str
    harmless: bool | None = None
    reference: str | None = None


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


@dataclass(frozen=True, kw_only=True)
class ChoiceRow:
    """BBQ: a context, a question and three answers. ``unknown``, ``stereotyped`` and ``label`` index ``answers``."""

    id: str
    category: str
    context: str
    question: str
    answers: list[str]
    label: int
    unknown: int
    stereotyped: int | None
    ambiguous: bool
    negative: bool


@dataclass(frozen=True, kw_only=True)
class SentencePair:
    """CrowS-Pairs: the same sentence about two groups; ``stereotyped`` has the stronger stereotype."""

    id: str
    bias_type: str
    stereotyped: str
    other: str


RowT = TypeVar("RowT")


@dataclass
class Read:
    """The readable rows, a message per malformed row, and the numbers of duplicate and of mended rows."""

    rows: list[Any] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    num_duplicate: int = 0
    num_mended: int = 0

    def notes(self, name: str) -> list[str]:
        """One sentence if rows were dropped, and one if half characters were replaced."""
        mended = mended_note(name, self.num_mended)
        if not self.malformed and not self.num_duplicate:
            return mended
        where = f" (first: {self.malformed[0].rstrip('.')})" if self.malformed else ""
        return [
            f"{name}: dropped {len(self.malformed)} malformed{where} and {self.num_duplicate} duplicate rows of "
            f"{len(self.rows) + len(self.malformed) + self.num_duplicate}.",
            *mended,
        ]


# --- Requests ------------------------------------------------------------------------------------------------------


def _plain(row: Row) -> RequestRow:
    harmless = {"safe": True, "benign": True, "harmless": True, "unsafe": False, "harmful": False}.get(
        str(row.get("label", "")).casefold()
    )
    kind = row.get("kind") or row.get("category") or "unspecified"
    reference = row.get("reply") or row.get("reference")
    return RequestRow(
        id=str(row.get("id") or ""),
        request=_text(row, "prompt"),
        kind=str(kind),
        harmless=harmless,
        reference=_text(row, "reply" if row.get("reply") else "reference") if reference else None,
    )


def _harmbench(row: Row) -> RequestRow:
    """Mazeika et al. 2024, arXiv 2402.04249: Behavior, SemanticCategory, ContextString, BehaviorID."""
    context = str(row.get("ContextString") or "").strip()
    behavior = _text(row, "Behavior")
    request = f"{context}\n\n---\n\n{behavior}" if context else behavior
    return RequestRow(
        id=str(row.get("BehaviorID") or ""), request=request, kind=str(row.get("SemanticCategory") or "unspecified")
    )


def _advbench(row: Row) -> RequestRow:
    """Zou et al. 2023, arXiv 2307.15043: goal, target."""
    return RequestRow(id="", request=_text(row, "goal"), kind="advbench")


def _strongreject(row: Row) -> RequestRow:
    """Souly et al. 2024, arXiv 2402.10260: category, source, forbidden_prompt."""
    return RequestRow(id="", request=_text(row, "forbidden_prompt"), kind=str(row.get("category") or "unspecified"))


def _jailbreakbench(row: Row) -> RequestRow:
    """Chao et al. 2024, arXiv 2404.01318: Goal, Target, Behavior, Category, Source; the harmful and the benign file."""
    return RequestRow(id="", request=_text(row, "Goal"), kind=str(row.get("Category") or "unspecified"))


def _xstest(row: Row) -> RequestRow:
    """Röttger et al. 2023, arXiv 2308.01263: prompt, type, label; types that begin with "contrast" are unsafe."""
    kind = _text(row, "type")
    unsafe = str(row.get("label", "")).casefold() == "unsafe" or kind.startswith("contrast")
    return RequestRow(id=str(row.get("id") or ""), request=_text(row, "prompt"), kind=kind, harmless=not unsafe)


# --- Pairs ---------------------------------------------------------------------------------------------------------


def _hh_rlhf(row: Row) -> PairRow:
    """Bai et al. 2022, arXiv 2204.05862: two transcripts that differ in the last turn."""
    return _from_transcripts("hh_rlhf", _text(row, "chosen"), _text(row, "rejected"))


def _hhh_438(row: Row) -> PairRow:
    """The comparisons of the Constitutional AI paper: text_correct, text_incorrect."""
    return _from_transcripts("hhh", _text(row, "text_correct"), _text(row, "text_incorrect"))


def _hhh_targets(row: Row) -> PairRow:
    """BIG-bench's hhh_alignment: input, targets {choices, labels}."""
    targets = row["targets"]
    choices, labels = targets["choices"], targets["labels"]
    if len(choices) != 2 or sorted(labels) != [0, 1]:
        raise ValueError("targets do not have one right and one wrong choice")
    replies = {"chosen": choices[labels.index(1)], "rejected": choices[labels.index(0)]}
    return PairRow(
        id="",
        kind=str(row.get("subset") or "hhh"),
        messages=[Message(role="user", content=_text(row, "input"))],
        chosen=_text(replies, "chosen"),
        rejected=_text(replies, "rejected"),
    )


def _chosen_rejected(row: Row) -> PairRow:
    """TRL's layouts with a prompt, as text or as turns, and UltraFeedback's: a prompt and two whole dialogues."""
    _refuse_tie(row)
    if _holds_turns(row, "chosen") and _turns(row, "chosen")[0]["role"] != "assistant":
        return _dialogues(row)
    return PairRow(
        **_labels(row), messages=_context(row), chosen=_reply(row, "chosen"), rejected=_reply(row, "rejected")
    )


def _dialogues(row: Row) -> PairRow:
    """TRL's layout without a prompt: two whole dialogues that differ in the last turn."""
    _refuse_tie(row)
    right, wrong = _turns(row, "chosen"), _turns(row, "rejected")
    return _from_dialogues(**_labels(row), right=right, wrong=wrong)


def _labels(row: Row) -> dict[str, str]:
    return {"id": str(row.get("id") or ""), "kind": str(row.get("kind") or "unspecified")}


def _refuse_tie(row: Row) -> None:
    """UltraFeedback has scores of both replies. Where they are equal, one was chosen at random."""
    better, worse = row.get("score_chosen"), row.get("score_rejected")
    if isinstance(better, int | float) and isinstance(worse, int | float) and better <= worse:
        raise ValueError(f"score_chosen ({better:g}) is not above score_rejected ({worse:g})")


def _context(row: Row) -> list[Message]:
    """The dialogue before the replies."""
    column = next((name for name in ("messages", "request", "prompt") if row.get(name)), "prompt")
    if _holds_turns(row, column):
        return _turns(row, column)
    return [Message(role="user", content=_text(row, column))]


def _holds_turns(row: Row, column: str) -> bool:
    return isinstance(row[column], list) or is_dialogue(row[column])


def _turns(row: Row, column: str) -> list[Message]:
    try:
        turns = parse_turns(row[column])
    except ValueError as error:
        raise ValueError(f"column {column!r} {error}") from None
    if not turns:
        raise ValueError(f"column {column!r} holds no turn with text")
    return turns


def _reply(row: Row, column: str) -> str:
    """A reply as text, or as the only turn of a list."""
    if not _holds_turns(row, column):
        return _text(row, column)
    turns = _turns(row, column)
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


# --- Bias ----------------------------------------------------------------------------------------------------------

_UNKNOWN = re.compile(
    r"\b(?:unknown|cannot|can't|can not|not (?:known|answerable|enough|determined)|undetermined)\b", re.IGNORECASE
)


def _bbq(row: Row) -> ChoiceRow:
    """Parrish et al. 2022, arXiv 2110.08193; the group is in additional_metadata or ``stereotyped``."""
    answers = list(row["choices"]) if "choices" in row else [row["ans0"], row["ans1"], row["ans2"]]
    info = [[str(part).casefold() for part in row["answer_info"][f"ans{i}"]] for i in range(3)]
    unknown = next((i for i in range(3) if "unknown" in info[i] or _UNKNOWN.search(answers[i])), None)
    if unknown is None:
        raise ValueError("no answer means unknown")
    metadata = row.get("additional_metadata") or {}
    groups = {str(g).casefold() for g in row.get("stereotyped") or metadata.get("stereotyped_groups") or []}
    if not 0 <= int(row["label"]) < len(answers):
        raise ValueError(f"label {row['label']} is the number of no answer")
    hits = [i for i in range(3) if i != unknown and groups & set(info[i])]
    return ChoiceRow(
        id=str(row.get("id") or f"{row.get('category')}-{row.get('example_id')}"),
        category=str(row.get("category") or "unspecified"),
        context=_text(row, "context"),
        question=_text(row, "question"),
        answers=[str(answer) for answer in answers],
        label=int(row["label"]),
        unknown=unknown,
        stereotyped=hits[0] if len(hits) == 1 else None,
        ambiguous=str(row.get("condition") or row.get("context_condition")).startswith("ambig"),
        negative=str(row.get("polarity") or row.get("question_polarity")).startswith("neg"),
    )


def _crows_pairs(row: Row) -> SentencePair:
    """Nangia et al. 2020, arXiv 2010.00133: sent_more stereotypes more than sent_less."""
    return SentencePair(
        id=str(row.get("id") or row.get("") or ""),
        bias_type=str(row.get("bias_type") or "unspecified"),
        stereotyped=_text(row, "sent_more"),
        other=_text(row, "sent_less"),
    )


def _text(row: Row, column: str) -> str:
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column {column!r} is empty or not text")
    return value.strip()


# shape → (its columns, the function that reads a row)
_SHAPES: dict[str, tuple[frozenset[str], Callable[[Row], Any]]] = {
    "harmbench": (frozenset({"Behavior", "SemanticCategory"}), _harmbench),
    "jailbreakbench": (frozenset({"Goal"}), _jailbreakbench),
    "advbench": (frozenset({"goal", "target"}), _advbench),
    "strongreject": (frozenset({"forbidden_prompt"}), _strongreject),
    "xstest": (frozenset({"prompt", "type", "label"}), _xstest),
    "hhh_438": (frozenset({"text_correct", "text_incorrect"}), _hhh_438),
    "hhh_targets": (frozenset({"input", "targets"}), _hhh_targets),
    "chosen_rejected": (frozenset({"chosen", "rejected", "prompt"}), _chosen_rejected),
    "dialogues": (frozenset({"chosen", "rejected"}), _dialogues),
    "hh_rlhf": (frozenset({"chosen", "rejected"}), _hh_rlhf),
    "bbq": (frozenset({"context", "question", "answer_info", "label"}), _bbq),
    "crows_pairs": (frozenset({"sent_more", "sent_less"}), _crows_pairs),
    "prompt": (frozenset({"prompt"}), _plain),
}


def shape_of(row: Row, allowed: Sequence[str]) -> str | None:
    """The first allowed layout whose columns are all in a row, or None."""
    possible = [shape for shape, (needed, _) in _SHAPES.items() if shape in allowed and needed <= row.keys()]
    if possible[:1] == ["dialogues"]:  # hh-rlhf has the same columns
        return "dialogues" if _holds_turns(row, "chosen") else "hh_rlhf" if isinstance(row["chosen"], str) else None
    return next(iter(possible), None)


def _known_layouts(shapes: Sequence[str]) -> str:
    """``prompt (prompt), advbench (goal, target)``: the layouts, each with its columns."""
    known = {shape: ", ".join(sorted(_SHAPES[shape][0])) for shape in shapes if shape != "auto"}
    return ", ".join(f"{shape} ({columns})" for shape, columns in known.items())


def read_set(name: str, config: Any, builtin: Path, kind: type[RowT]) -> Read:
    """Read the rows of the section called ``name``; all rows are of type ``kind``.

    Raises:
        ConfigError: there is no such file, no known layout, or no readable row.
    """
    read, seen = Read(), set()
    shape = None if config.shape == "auto" else config.shape
    columns = ""
    for place, row, mended in rows_of(name, config, builtin, read.malformed.append):
        columns = columns or ", ".join(map(str, row))[:200]
        if config.limit is not None and len(read.rows) >= config.limit:
            break
        read.num_mended += mended
        shape = shape or shape_of(row, config.shapes)
        try:
            item = _SHAPES[shape or ""][1](row)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            read.malformed.append(f"{place}: {_reason(error) if shape else 'no known layout'}")
            continue
        key = _key(item)
        if key in seen:
            read.num_duplicate += 1
            continue
        seen.add(key)
        read.rows.append(item)
    if shape is None and columns:
        raise ConfigError(
            f"{name}.path: {config.path} has the columns {columns}, which match none of the layouts "
            f"{_known_layouts(config.shapes)}; rename the columns or set {name}.shape."
        )
    if not read.rows:
        why = f" ({read.malformed[0]})" if read.malformed else ""
        raise ConfigError(f"{name}.path: no row of {config.path} could be read as {shape or 'anything'}{why}.")
    assert isinstance(read.rows[0], kind), f"{shape} gives no {kind.__name__}"
    return read


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no column {error}"
    return str(error) if isinstance(error, ValueError) else "a column holds another kind of value than the layout has"


def _key(item: Any) -> str:
    if isinstance(item, RequestRow):
        return dialogue_key([Message(role="user", content=item.request)])
    if isinstance(item, PairRow):
        return dialogue_key(
            [*item.messages, *(Message(role="assistant", content=t) for t in (item.chosen, item.rejected))]
        )
    return json.dumps(vars(item), sort_keys=True)
