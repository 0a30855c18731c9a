"""The gate: a written guideline file against what was found. Each limit is judged on the bound of the interval."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, StrictFloat, StrictInt, ValidationError, model_validator

from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.evals.measures import DERIVED, MEASURES, better_of, is_fraction, title_of
from pipeline.evals.results import Estimate, Gate, Results, Ruling

Ruled = Literal["PASS", "FAIL", "UNDECIDED"]


class Guideline(BaseModel):
    """One limit, in words and in a number. Exactly one of ``at_most`` and ``at_least`` is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    title: str
    why: str
    measure: str
    at_most: StrictInt | StrictFloat | None = None
    at_least: StrictInt | StrictFloat | None = None

    @model_validator(mode="after")
    def _check(self) -> Guideline:
        known = [*MEASURES, *DERIVED]
        if self.measure not in known:
            raise ValueError(f"measure {self.measure!r} is unknown{did_you_mean(self.measure, known)}")
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("give exactly one of at_most and at_least")
        side, limit = ("at_most", self.at_most) if self.at_most is not None else ("at_least", self.at_least)
        assert limit is not None
        if not math.isfinite(limit):
            raise ValueError(f"{side} is {limit}; give a number")
        if is_fraction(self.measure) and not 0 <= limit <= 1:
            raise ValueError(f"{side} is {limit:g}, but {self.measure} is a fraction; give a number from 0 to 1")
        better = better_of(self.measure)
        if better is not None and (better == "lower") != (side == "at_most"):
            raise ValueError(f"{side} on {self.measure}, where {better} is better; give the other bound")
        return self


class Guidelines(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    version: str
    description: str
    guidelines: list[Guideline]

    @model_validator(mode="after")
    def _check(self) -> Guidelines:
        ids = [guideline.id for guideline in self.guidelines]
        if twins := [name for name in ids if ids.count(name) > 1]:
            raise ValueError(f"id {twins[0]!r} stands twice")
        if not ids:
            raise ValueError("guidelines is empty")
        return self


def find_guidelines(name: str) -> Path:
    """A shipped file by its name, or any file by its path."""
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
    """``null`` on the command line switches the gate off, as it does in the configuration."""
    return None if name in {None, "null", "none"} else name


def load_guidelines(path: Path) -> Guidelines:
    """Read and check a guideline file.

    Raises:
        ConfigError: file and field at fault.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ConfigError(f"evaluate.guidelines: {path} is no guideline file; see guidelines/default.yaml.")
        return Guidelines.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"evaluate.guidelines: {path} can't be read ({str(error).splitlines()[0]}).") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"evaluate.guidelines: {path}: {place}: {message}.") from None


def rule(guidelines: Guidelines, results: Results) -> Gate:
    """Judge the last model. FAIL if any guideline fails, else UNDECIDED if any is, else PASS."""
    measured = results.measures[results.models[-1]]
    rulings = [_ruling(guideline, measured.get(guideline.measure)) for guideline in guidelines.guidelines]
    verdicts = {ruling.verdict for ruling in rulings}
    overall: Ruled = "FAIL" if "FAIL" in verdicts else "UNDECIDED" if "UNDECIDED" in verdicts else "PASS"
    return Gate(guidelines=f"{guidelines.name} {guidelines.version}", verdict=overall, rulings=rulings)


def _ruling(guideline: Guideline, found: Estimate | None) -> Ruling:
    verdict, reason = judge_limit(found, guideline.at_most, guideline.at_least)
    rate = guideline.measure in MEASURES and MEASURES[guideline.measure].unit == "rate"
    limit = guideline.at_most if guideline.at_most is not None else guideline.at_least
    assert limit is not None
    number = f"{100 * limit:g} %" if rate else f"{limit:g}"
    return Ruling(
        id=guideline.id,
        title=guideline.title,
        why=guideline.why,
        measure=title_of(guideline.measure),
        limit=f"at {'most' if guideline.at_most is not None else 'least'} {number}",
        found=str(found) if found is not None else "not measured",
        verdict=verdict,
        reason=reason,
    )


def judge_limit(found: Estimate | None, at_most: float | None, at_least: float | None) -> tuple[Ruled, str]:
    """PASS or FAIL only where the whole interval lies on one side of the limit."""
    if found is None or found.value is None:
        return "UNDECIDED", "not measured"
    low, high = found.low, found.high
    if low is None or high is None:
        return "UNDECIDED", "too little was asked for an interval"
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
    """The gate in short, for the terminal and the exit code."""
    failed = [ruling.title for ruling in gate.rulings if ruling.verdict == "FAIL"] if gate else []
    return {"gate": gate.verdict if gate else None, "failed": failed}
