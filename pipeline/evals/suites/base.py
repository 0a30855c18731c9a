"""The interface of a suite: conversations that every model answers, and measures of the replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import Field, model_validator

from pipeline.core.settings import Registry, Settings, not_one_of
from pipeline.data.files import source_content
from pipeline.data.layouts.base import Layouts
from pipeline.data.layouts.requests import REQUESTS, RequestRow
from pipeline.data.public_sets import AUTO, Read, read_set
from pipeline.data.sources import SourceConfig
from pipeline.engines.base import Answer, ChoiceQuery, ReplyQuery
from pipeline.evals.results import Estimate
from pipeline.evals.scores import Measure
from pipeline.records import Case, Comparison, Pool, Prompt, Verdict, dialogue_key

DATA = Path(__file__).parents[2] / "data"
READING = 2
"""Increase it when a layout gives other rows of the same file, so that earlier evaluations on it are not used."""
ItemT = TypeVar("ItemT")


class RowsConfig(SourceConfig):
    """The project's built-in rows, or a public set in one of the layouts (``shape``)."""

    shape: str = AUTO
    """The layout of the file; ``auto`` detects it from the columns."""

    layouts: ClassVar[Layouts[Any]]
    """The known layouts, of which those in ``shapes`` can be read here."""
    shapes: ClassVar[tuple[str, ...]]
    shipped: ClassVar[str]
    """The file that ``builtin`` means, relative to pipeline/data."""

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.shape not in self.shapes:
            raise ValueError(not_one_of("{here}.shape", self.shape, self.shapes))
        return self

    def read(self, section: str, kind: type, number: int | None = None) -> Read:
        """The rows.

        Args:
            section: the path of this section in the configuration, for messages.
            number: as in ``read_set``.
        """
        return read_set(section, self, DATA / self.shipped, kind, number)

    def key(self) -> dict[str, Any]:
        """Adds the content of the file, or the id and revision of a set on the hub."""
        content = source_content(type(self).__qualname__, self, DATA / self.shipped)
        reading = {} if self.source == "builtin" else {"reading": READING}
        return super().key() | {"content": content} | reading


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Questions for every model in addition to the cases; ``count(answers, confidence)`` returns measure → estimate."""

    queries: Sequence[ChoiceQuery | ReplyQuery]
    count: Callable[[Mapping[str, Answer], float], dict[str, Estimate]]


class Suite:
    """Cases, questions, pairs that people decided, measures and tables. Each part is optional."""

    name: ClassVar[str]
    Config: ClassVar[type[Settings]]
    """The class of its section, ``evaluate.NAME``."""
    templates: ClassVar[tuple[str, ...]] = ()
    """Versions of its wordings; they are part of the cache key of an evaluation that runs it."""
    counts_too: ClassVar[tuple[str, ...]] = ()
    """Other suites whose cases it also counts. The cases are used even if those suites are not run."""
    compares: ClassVar[bool] = False
    """Whether the pair judge compares replies to its cases."""
    measures: ClassVar[Mapping[str, Measure]] = {}
    """Name → measure, in the order of the table."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def section(self) -> str:
        return f"evaluate.{self.name}"

    @property
    def dataset(self) -> str:
        """The name of its rows in tables."""
        return self.name

    def cases(self, held_out: Sequence[Prompt], notes: list[str]) -> list[Case]:
        """The conversations. The suite's name is later added in front of their ids.

        Args:
            held_out: the run's own prompts of the evaluated split.
            notes: notes for the report, such as dropped rows, are appended to it.
        """
        return []

    def questions(self, notes: list[str]) -> Questions | None:
        """The questions, or None. ``notes`` as in ``cases``."""
        return None

    def comparisons(self, notes: list[str]) -> list[Comparison]:
        """Pairs that people decided, to test the labeller, reward models and pair judge. A is the reply they chose."""
        return []

    def tables(self, verdicts: Mapping[str, Sequence[Verdict]], confidence: float) -> dict[str, list[Any]]:
        """Field of ``Results`` → its rows. ``verdicts`` is by model."""
        return {}


SUITES: Registry[Suite] = Registry("suite", "suites")


def in_turn(items: Iterable[ItemT], kind: Callable[[ItemT], str]) -> list[ItemT]:
    """The first item of each kind, then the second of each kind, and so on, so that every prefix is balanced."""
    kinds: dict[str, list[ItemT]] = {}
    for item in items:
        kinds.setdefault(kind(item), []).append(item)
    columns = [kinds[name] for name in sorted(kinds)]
    return [item for layer in zip_longest(*columns) for item in layer if item is not None]


# --- Requests of one pool ------------------------------------------------------------------------------------------


SAFETY_SETS = ("harmbench", "advbench", "strongreject", "jailbreakbench", "xstest")
"""Sets that hold no ordinary requests."""
REQUEST_SHAPES: tuple[str, ...] = (AUTO, *REQUESTS)


class RequestsConfig(RowsConfig):
    """Requests of one pool."""

    num_requests: int | None = Field(default=None, ge=1)
    """The number of requests; null: all."""

    layouts, shapes = REQUESTS, REQUEST_SHAPES


class RequestSuite(Suite):
    """The built-in requests of a pool and those of the held-out split, or a public set instead."""

    pool: ClassVar[Pool]

    def cases(self, held_out: Sequence[Prompt], notes: list[str]) -> list[Case]:
        rows = self.requests(held_out, notes)[: self.config.num_requests]
        return [
            Case(id=prompt.id, suites=[self.name], prompt=prompt, messages=prompt.messages, reference=reference)
            for prompt, reference in rows
        ]

    def requests(self, held_out: Sequence[Prompt], notes: list[str]) -> list[tuple[Prompt, str | None]]:
        """Unique prompts with a reference answer or None, ordered by hash and balanced by kind and manner."""
        read = self.config.read(self.section, RequestRow)
        notes += read.notes(self.section)
        wanted = [row for row in read.rows if row.harmless is None or row.harmless == (self.pool != "red_team")]
        if len(wanted) < len(read.rows):
            notes.append(f"{self.section}: {len(read.rows) - len(wanted)} rows of the other class were left out.")
        builtin = self.config.source == "builtin"
        prompts = [(self._prompt(row, builtin), row.reference) for row in wanted]
        prompts += [(prompt, None) for prompt in held_out if builtin and prompt.pool == self.pool]
        rows: dict[str, tuple[Prompt, str | None]] = {}
        for prompt, reference in prompts:
            rows.setdefault(prompt.key, (prompt, reference))
        by_hash = [rows[key] for key in sorted(rows)]
        return in_turn(in_turn(by_hash, lambda row: row[0].manner), lambda row: row[0].kind)

    def _prompt(self, row: RequestRow, builtin: bool) -> Prompt:
        """Ids of rows from a file contain a hash of the text, because two files may use the same ids."""
        digest = dialogue_key(row.messages)[:10]
        row_id = row.id if builtin else "-".join(filter(None, (self.pool, row.id, digest)))
        return Prompt(id=row_id, pool=self.pool, kind=row.kind, manner=row.manner, split="test", messages=row.messages)
