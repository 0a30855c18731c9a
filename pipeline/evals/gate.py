"""The gate: compare each limit of a guideline file with the confidence interval of its measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.core.yaml_files import Problem, load_yaml
from pipeline.evals.changes import base_measure
from pipeline.evals.measures import all_measures
from pipeline.evals.results import Decided, Estimate, Gate, Results, Ruling

BY_PRINCIPLE = "adherence"  # a guideline names the principle: adherence:ID
Ruled = Literal["PASS", "FAIL", "UNDECIDED"]
Limit = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # strict: a string is not accepted


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Guideline(_Part):
    """A limit in words and as a number. Exactly one of ``at_most`` and ``at_least`` is given."""

    id: str
    """The name of the guideline, unique in the file."""
    title: str
    """What a checkpoint must show, in one sentence."""
    why: str
    """The reason for the limit, for readers of the report."""
    measure: str
    """The name of the limited measure, as in the report's tables."""
    at_most: Limit | None = None
    """The highest value that passes."""
    at_least: Limit | None = None
    """The lowest value that passes."""

    @field_validator("measure")
    @classmethod
    def _measure_is_known(cls, measure: str) -> str:
        known = all_measures()
        name, _, principle = measure.partition(":")
        if name == BY_PRINCIPLE and not principle:
            raise ValueError(f"it says nothing of the principle; write {BY_PRINCIPLE}:ID with the id of a principle")
        if name not in known or (principle and name != BY_PRINCIPLE):
            raise ValueError(f"no measure has that name{did_you_mean(measure, known)}")
        return measure

    @field_validator("at_most", "at_least")
    @classmethod
    def _limit_fits_the_measure(cls, limit: float | None, info: ValidationInfo) -> float | None:
        name = info.data.get("measure")  # absent if the measure is unknown
        if limit is None or name is None:
            return limit
        measure = base_measure(name)
        if measure.is_fraction and not 0 <= limit <= 1:
            raise ValueError(f"{name} is a fraction; use a number from 0 to 1")
        bound = {"lower": "at_most", "higher": "at_least"}.get(measure.better or "")
        if bound not in {None, info.field_name}:
            raise ValueError(f"{measure.better} is better for {name}; use {bound} instead")
        return limit

    @model_validator(mode="after")
    def _one_limit(self) -> Guideline:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("give exactly one of at_most and at_least")
        return self


class Guidelines(_Part):
    """What a checkpoint must show before it is released."""

    name: str
    """The name of the set of guidelines."""
    version: str
    """Three numbers such as 1.0.0; increase it when a limit changes."""
    description: str
    """The purpose of the limits, in one sentence."""
    approval: Literal["required", "not required"] = "not required"
    """Whether a named person must approve the run (``cai approve``). Until then its exit code is 4."""
    guidelines: Annotated[list[Guideline], Field(min_length=1)]
    """The limits, each with its own verdict."""


def find_guidelines(name: str) -> Path:
    """The path of a built-in file by its name, or of any file by its path.

    Raises:
        ConfigError: there is no such file.
    """
    here = Path(__file__).parent.parent
    shipped = next(folder for folder in (here / "guidelines", here.parent / "guidelines") if folder.is_dir())
    names = sorted(path.stem for path in shipped.glob("*.yaml"))
    if name in names:
        return shipped / f"{name}.yaml"
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"evaluate.guidelines: there is no file {name}{did_you_mean(name, names)}.")
    return path


def written_or_none(name: str | None) -> str | None:
    """The name, or None if it is None, ``null`` or ``none``: on the command line, these switch the gate off."""
    return None if name in {None, "null", "none"} else name


def load_guidelines(path: Path) -> Guidelines:
    """Read and check a guideline file.

    Raises:
        ConfigError: one sentence with the file, line, column, field and remedy.
    """
    return load_yaml(
        path,
        Guidelines,
        "a guideline file",
        field="evaluate.guidelines",
        described_in="guidelines/default.yaml",
        check=_repeats,
    )


def _repeats(written: Guidelines) -> Iterator[Problem]:
    """Ids that occur twice."""
    ids: dict[str, int] = {}
    for index, guideline in enumerate(written.guidelines):
        if (earlier := ids.setdefault(guideline.id, index)) != index:
            problem = f"id {guideline.id!r} is already that of guidelines[{earlier}]; give it another"
            yield ("guidelines", index, "id"), problem


def rule(guidelines: Guidelines, results: Results) -> Gate:
    """Apply the guidelines to the last model."""
    measured = results.measures[results.models[-1]]
    doubtful = set() if all(card.beats_one_verdict for card in results.judges) else set(results.judged)
    rulings = [
        _ruling(guideline, measured.get(guideline.measure), guideline.measure in doubtful)
        for guideline in guidelines.guidelines
    ]
    return Gate(guidelines=f"{guidelines.name} {guidelines.version}", verdict=overall(rulings), rulings=rulings)


def overall(rulings: Iterable[Ruling]) -> Decided:
    """The verdict of the gate: the worst of the rulings."""
    given = {ruling.verdict for ruling in rulings}
    order: tuple[Decided, ...] = ("FAIL", "OVERRIDDEN", "UNDECIDED")
    return next((verdict for verdict in order if verdict in given), "PASS")


def overridden(gate: Gate, said: Mapping[str, str]) -> Gate:
    """The gate with its overridden guidelines. Only a ruling FAIL can be overridden, and it never becomes PASS.

    Args:
        said: id of a guideline → who overrides it and why, as a clause.
    """
    rulings = [
        ruling.model_copy(update={"verdict": "OVERRIDDEN", "reason": f"it fails: {ruling.reason}; {said[ruling.id]}"})
        if ruling.id in said and ruling.verdict == "FAIL"
        else ruling
        for ruling in gate.rulings
    ]
    return gate.model_copy(update={"verdict": overall(rulings), "rulings": rulings})


def _ruling(guideline: Guideline, found: Estimate | None, is_doubtful: bool) -> Ruling:
    verdict, reason = judge_limit(found, guideline.at_most, guideline.at_least)
    if is_doubtful and verdict != "UNDECIDED":
        verdict, reason = "UNDECIDED", "the judge may be no better than one verdict for all replies"
    measure = base_measure(guideline.measure)
    cell = guideline.measure.partition(":")[2]
    limit = guideline.at_most if guideline.at_most is not None else guideline.at_least
    assert limit is not None
    number = f"{100 * limit:g} %" if measure.unit == "rate" else f"{limit:g}"
    return Ruling(
        id=guideline.id,
        title=guideline.title,
        why=guideline.why,
        measure=f"{measure.title}: {cell}" if cell else measure.title,
        limit=f"at {'most' if guideline.at_most is not None else 'least'} {number}",
        found=str(found) if found is not None else "not measured",
        verdict=verdict,
        reason=reason,
    )


def judge_limit(found: Estimate | None, at_most: float | None, at_least: float | None) -> tuple[Ruled, str]:
    """The verdict and its reason. PASS or FAIL only if the whole interval is on one side of the limit."""
    if found is None or found.value is None:
        return "UNDECIDED", "not measured"
    low, high = found.low, found.high
    if low is None or high is None:
        return "UNDECIDED", "there were too few cases for an interval"
    if at_most is not None:
        inside, outside = high <= at_most, low > at_most
    else:
        assert at_least is not None
        inside, outside = low >= at_least, high < at_least
    if inside:
        return "PASS", "the whole interval lies within the limit"
    if outside:
        return "FAIL", "the whole interval lies beyond the limit"
    return "UNDECIDED", "the interval covers the limit"


def gate_metrics(gate: Gate | None) -> dict[str, Any]:
    """The verdict and the titles of failed guidelines, for the terminal and the exit code."""
    failed = [ruling.title for ruling in gate.rulings if ruling.verdict == "FAIL"] if gate else []
    return {"gate": gate.verdict if gate else None, "failed": failed}
