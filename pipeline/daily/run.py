"""A finished run, in Python: its tables, its records and its checkpoint.

from pipeline import Run

run = Run.load("latest")
run.gate                                  # PASS, FAIL or UNDECIDED
run.table("changes")                      # a pandas DataFrame
run.preferences.to_datasets()             # datasets.Dataset: prompt, chosen, rejected
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pipeline.chain.checkpoints import read_config
from pipeline.chain.config import Config
from pipeline.chain.runs import find_run, finished_tasks
from pipeline.constitution.files import load_constitution
from pipeline.constitution.schema import Constitution
from pipeline.core.errors import ArtifactError, ConfigError, did_you_mean
from pipeline.core.stage import ROUND
from pipeline.records import Exchange, Preference, Prompt, Record, TrainingRow, Verdict, read_records

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

RecordT = TypeVar("RecordT", bound=Record)


class Records(Generic[RecordT]):
    """The records of one file of a run, read anew by each loop."""

    def __init__(self, path: Path, kind: type[RecordT]) -> None:
        self.path, self.kind = path, kind

    def __iter__(self) -> Iterator[RecordT]:
        """Raises ArtifactError for a damaged line."""
        return iter(read_records(self.path, self.kind))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def to_pandas(self) -> DataFrame:
        """One row for each record; what is inside another record gets a dotted name."""
        import pandas

        return pandas.json_normalize([record.model_dump(mode="json") for record in self])

    def to_datasets(self) -> Dataset:
        """For preferences and training rows in TRL's layout, for others the records as they are."""
        from datasets import Dataset

        layouts: dict[type[Record], Any] = {Preference: _pair, TrainingRow: _sft_row}
        as_row = layouts.get(self.kind, lambda record: record.model_dump(mode="json"))
        return Dataset.from_list([row for record in self if (row := as_row(record)) is not None])


def _pair(preference: Preference) -> dict[str, Any] | None:
    """Prompt, chosen and rejected as turns. A comparison without a label, or with a label of ½, is left out."""
    label, pair = preference.probability_a, preference.comparison
    if label is None or label == 0.5:
        return None
    replies = (pair.reply_a, pair.reply_b) if label > 0.5 else (pair.reply_b, pair.reply_a)
    chosen, rejected = ([{"role": "assistant", "content": reply}] for reply in replies)
    return {
        "prompt": list(pair.prompt.messages),
        "chosen": chosen,
        "rejected": rejected,
        "probability_chosen": max(label, 1 - label),
        "id": pair.id,
        "pool": pair.prompt.pool,
    }


def _sft_row(row: TrainingRow) -> dict[str, Any]:
    completion = [{"role": "assistant", "content": row.reply}]
    return {"prompt": list(row.messages), "completion": completion, "id": row.id, "origin": row.origin}


class Run:
    """A run on the disk. Nothing is loaded before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.name = self.folder.name

    @classmethod
    def load(cls, name: str = "latest", output_dir: str = "outputs") -> Run:
        """Find a run by its name or folder. Raises ConfigError if there is none."""
        return cls(find_run(output_dir, name))

    def __repr__(self) -> str:
        return f"Run({self.name!r}, gate={self.gate})"

    @property
    def config(self) -> Config:
        return read_config(self.folder)

    @property
    def constitution(self) -> Constitution:
        return load_constitution(self.folder / "constitution.yaml")

    @property
    def gate(self) -> str | None:
        """PASS, FAIL or UNDECIDED; None without guidelines, or before the report."""
        try:
            gate = json.loads((self.folder / "gate.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return gate and str(gate["verdict"])

    @property
    def checkpoint(self) -> Path:
        """The aligned model, a folder for ``from_pretrained``. Raises ConfigError before it is trained."""
        path = self.folder / "checkpoint"
        if not path.exists():
            raise ConfigError(f"the run {self.name} has no checkpoint; run it on until=align at least.")
        return path.resolve()

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    # --- Tables and records --------------------------------------------------------------------------------------

    @property
    def tables(self) -> list[str]:
        """The names of the report's tables."""
        return sorted(path.stem for path in (self.folder / "tables").glob("*.json"))

    def table(self, name: str) -> DataFrame:
        """A table of the report, such as ``measures`` or ``changes``. Raises ConfigError for an unknown name."""
        import pandas

        if name not in self.tables:
            why = did_you_mean(name, self.tables) if self.tables else "; it has none before its report is written"
            raise ConfigError(f"the run {self.name} has no table {name!r}{why}.")
        return pandas.DataFrame(json.loads((self.folder / "tables" / f"{name}.json").read_text(encoding="utf-8")))

    @property
    def prompts(self) -> Records[Prompt]:
        return self._records("prompts", "prompts.jsonl", Prompt)

    @property
    def exchanges(self) -> Records[Exchange]:
        """First replies, critiques and revisions."""
        return self._records("critique", "exchanges.jsonl", Exchange)

    @property
    def sft_rows(self) -> Records[TrainingRow]:
        return self._records("sft", "rows.jsonl", TrainingRow)

    @property
    def preferences(self) -> Records[Preference]:
        """Comparisons with labels; of several rounds, those of the last."""
        return self._records("preferences", "preferences.jsonl", Preference)

    @property
    def verdicts(self) -> Records[Verdict]:
        """Every evaluated reply of every model."""
        return self._records("evaluate", "verdicts.jsonl", Verdict)

    def _records(self, stage: str, file: str, kind: type[RecordT]) -> Records[RecordT]:
        finished = finished_tasks(self.folder, self.config)
        tasks = [task for task in finished if task == stage or task.startswith(f"{stage}{ROUND}")]
        if not tasks:
            raise ArtifactError(f"the run {self.name} has no finished stage {stage}; finish it, or ask another run.")
        return Records(finished[tasks[-1]] / file, kind)
