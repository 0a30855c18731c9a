"""What a question about a run gets to read, and what it answers with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from pipeline.constitution.schema import Constitution
from pipeline.core.stage import Context, Cost, Prepared
from pipeline.engines.base import Engine, Weights
from pipeline.engines.roles import policy_engine, weights_of
from pipeline.evals.measures import by_model
from pipeline.evals.results import Estimate
from pipeline.records import Exchange, Preference, Prompt, RecordT, TrainingRow, Verdict, read_records

Measures = dict[str, dict[str, Estimate]]
"""model → measure → estimate, for the gate; a measure is one of ``evals/measures.py``, or ``measure:cell``."""


class Findings(BaseModel):
    """The answer to one question: a part of ``explanation.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def measures(self) -> Measures:
        """The numbers that a guideline can limit."""
        return {}


@dataclass(frozen=True)
class Material:
    """The models, and what is on record about how they came about. Records are empty where the run has none."""

    context: Context
    models: Mapping[str, str]
    """Name → path. The first is the model before training; the last is the one to explain."""
    confidence: float
    split: str
    notes: list[str] = field(default_factory=list)
    """Sentences for readers: what could not be measured, and why."""

    @property
    def first(self) -> str:
        return next(iter(self.models))

    @property
    def last(self) -> str:
        return list(self.models)[-1]

    @property
    def constitution(self) -> Constitution:
        return self.context.constitution

    @property
    def seed(self) -> int:
        return self.context.seed

    def weights(self, model: str) -> Weights:
        return weights_of(self.context, self.models[model], model)

    def engine(self, model: str) -> Engine:
        """Open the engine that generates with a model. Let go of the one before: two may not fit the memory."""
        return policy_engine(self.context, self.models[model], model)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """All prompts of the run, of all splits."""
        return self._records("prompts", "prompts.jsonl", Prompt)

    @property
    def held_out(self) -> list[Prompt]:
        """The prompts of the evaluated split."""
        return [prompt for prompt in self.prompts if prompt.split == self.split]

    @cached_property
    def exchanges(self) -> list[Exchange]:
        return self._records("critique", "exchanges.jsonl", Exchange)

    @cached_property
    def rows(self) -> list[TrainingRow]:
        return self._records("sft", "rows.jsonl", TrainingRow)

    @cached_property
    def preferences(self) -> list[Preference]:
        return self._records("preferences", "preferences.jsonl", Preference)

    @cached_property
    def verdicts(self) -> dict[str, list[Verdict]]:
        """Model → its judged replies to the cases of the evaluation."""
        return by_model(self._records("evaluate", "verdicts.jsonl", Verdict))

    def folder(self, stage: str) -> Path | None:
        """The folder of a stage of the run; None if it has none."""
        return self.context.folders.get(stage)

    def _records(self, stage: str, file: str, kind: type[RecordT]) -> list[RecordT]:
        folder = self.folder(stage)
        return list(read_records(folder / file, kind)) if folder else []


class Question(ABC):
    """One question about a run. Sub-classes have no state.

    To add one, write a class in a file of its own, name it in ``pipeline/explain/asked.py``, and show its findings in
    ``report/explained/``.
    """

    name: ClassVar[str]
    """Its section of the configuration, and of ``explanation.json``."""
    asks_labeller: ClassVar[bool] = False
    """It asks the engine of the run's labeller."""

    def check(self, config: Any, prepared: Prepared) -> list[str]:
        """Refuse what would fail later, before anything is spent. Returns warnings.

        Raises:
            ConfigError: one sentence with the field, the value and the remedy.
        """
        return []

    def reads(self, config: Any) -> dict[str, Any]:
        """What decides the findings beside the settings and the inputs, such as the words of a question; for the cache
        key."""
        return {}

    def cost(self, config: Any, prepared: Prepared) -> Cost:
        """At most what it asks of engines and reads; nothing if it reads records only."""
        return Cost()

    @abstractmethod
    def answer(self, config: Any, material: Material) -> Any:
        """Compute the findings.

        Raises:
            NotMeasuredError: it can't be answered for this run; a clause that says why.
        """
