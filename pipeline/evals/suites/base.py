"""What a suite is: conversations that are put to every model, and what is counted of the replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import Field, model_validator

from pipeline.core.settings import Registry, Settings, not_one_of
from pipeline.data.files import source_content
from pipeline.data.public_sets import Read, RequestRow, RowT, read_set
from pipeline.data.sources import SourceConfig
from pipeline.engines.base import Answer, ChoiceQuery, ReplyQuery
from pipeline.evals.results import Estimate
from pipeline.evals.scores import Measure
from pipeline.records import Case, Comparison, Message, Pool, Prompt, Verdict, dialogue_key

DATA = Path(__file__).parents[2] / "data"
ItemT = TypeVar("ItemT")


class RowsConfig(SourceConfig):
    """Rows that ship with the project, or a public set in one of the layouts (``shape``)."""

    shape: str = "auto"
    """The layout of the file; ``auto`` tells it by its columns."""

    shapes: ClassVar[tuple[str, ...]]
    shipped: ClassVar[str]
    """The file that ``builtin`` stands for, below pipeline/data."""

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.shape not in self.shapes:
            raise ValueError(not_one_of("{here}.shape", self.shape, self.shapes))
        return self

    def read(self, section: str, kind: type[RowT]) -> Read:
        """The rows; ``section`` is what the configuration calls them."""
        return read_set(section, self, DATA / self.shipped, kind)

    def key(self) -> dict[str, Any]:
        """With the content of the file, or the id and revision of a set on the hub."""
        content = source_content(type(self).__qualname__, self, DATA / self.shipped)
        return super().key() | {"content": content}


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What a suite asks every model beside its cases, and the measures that follow from the answers."""

    queries: Sequence[ChoiceQuery | ReplyQuery]
    count: Callable[[Mapping[str, Answer], float], dict[str, Estimate]]


class Suite:
    """Every part is optional: cases to reply to, questions, pairs that people decided, measures and tables."""

    name: ClassVar[str]
    Config: ClassVar[type[Settings]]
    """Its section ``evaluate.NAME``."""
    templates: ClassVar[tuple[str, ...]] = ()
    """Versions of what it words itself; the cache key of an evaluation that runs it holds them."""
    counts_too: ClassVar[tuple[str, ...]] = ()
    """Other suites whose cases it also counts. They are asked even where those suites are not run."""
    compares: ClassVar[bool] = False
    """Whether the pair judge compares the models' replies to its cases."""
    measures: ClassVar[Mapping[str, Measure]] = {}
    """What is counted, by name, in the order of the table."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def section(self) -> str:
        return f"evaluate.{self.name}"

    @property
    def dataset(self) -> str:
        """What tables call its rows."""
        return self.name

    def cases(self, held_out: Sequence[Prompt], notes: list[str]) -> list[Case]:
        """The conversations. Their ids get the suite's name in front.

        Args:
            held_out: the run's own prompts of the evaluated split.
            notes: takes what a reader must know, such as rows that were dropped.
        """
        return []

    def questions(self, notes: list[str]) -> Questions | None:
        return None

    def comparisons(self, notes: list[str]) -> list[Comparison]:
        """Pairs that people decided, the reply that they chose as A: labeller, reward models and pair judge are tried
        on them."""
        return []

    def tables(self, verdicts: Mapping[str, Sequence[Verdict]], confidence: float) -> dict[str, list[Any]]:
        """Field of ``Results`` → its rows, from each model's verdicts."""
        return {}


SUITES: Registry[Suite] = Registry("suite", "suites")


def in_turn(items: Iterable[ItemT], kind: Callable[[ItemT], str]) -> list[ItemT]:
    """One of each kind, then the next of each kind, and so on: any beginning of the list is balanced."""
    kinds: dict[str, list[ItemT]] = {}
    for item in items:
        kinds.setdefault(kind(item), []).append(item)
    columns = [kinds[name] for name in sorted(kinds)]
    return [item for layer in zip_longest(*columns) for item in layer if item is not None]


# --- Requests of one pool ------------------------------------------------------------------------------------------


REQUEST_SETS = ("harmbench", "advbench", "strongreject", "jailbreakbench", "xstest")
REQUEST_SHAPES: tuple[str, ...] = ("auto", "prompt", *REQUEST_SETS)


class RequestsConfig(RowsConfig):
    """Requests of one pool."""

    num_requests: int | None = Field(default=None, ge=1)
    """Requests; null: all."""

    shapes = REQUEST_SHAPES


class RequestSuite(Suite):
    """Asks the shipped requests of a pool and those of the held-out split, or a public set in their place."""

    pool: ClassVar[Pool]

    def cases(self, held_out: Sequence[Prompt], notes: list[str]) -> list[Case]:
        rows = self.requests(held_out, notes)[: self.config.num_requests]
        return [
            Case(id=prompt.id, suites=[self.name], prompt=prompt, messages=prompt.messages, reference=reference)
            for prompt, reference in rows
        ]

    def requests(self, held_out: Sequence[Prompt], notes: list[str]) -> list[tuple[Prompt, str | None]]:
        """The prompts with their reference answers, drawn by hash, kinds in turn."""
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
        return in_turn((rows[key] for key in sorted(rows)), lambda row: row[0].kind)

    def _prompt(self, row: RequestRow, builtin: bool) -> Prompt:
        """Rows of a file get an id that follows from their text: two files may number theirs alike."""
        messages = [Message(role="user", content=row.request)]
        digest = dialogue_key(messages)[:10]
        row_id = row.id if builtin else "-".join(filter(None, (self.pool, row.id, digest)))
        return Prompt(id=row_id, pool=self.pool, kind=row.kind, split="test", messages=messages)
