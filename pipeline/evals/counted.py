"""What the numbers of ``results.json`` are counted from, beside the verdicts: ``counted.json`` is one ``Counted``.

With it and the verdicts, another machine counts the numbers again (``pipeline/evidence``).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from pipeline.evals.results import Role


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Duel(_Part):
    """The pair judge on two models' replies to one case. ``score``: 1 if the first model's reply is better, 0 if it is
    worse, ½ for a tie, None if the judge's answer can't be read."""

    model: str
    other: str
    case: str
    score: float | None


class Picked(_Part):
    """One pair that people decided. ``right``: 1 if their choice was picked, 0 if not, ½ for a tie, None if the answer
    can't be read."""

    id: str
    kind: str
    right: float | None


class PickedPairs(_Part):
    """What one labeller, reward model, judge or baseline picked of one set of pairs."""

    who: str
    role: Role
    dataset: str
    pairs: list[Picked]


class JudgedReply(_Part):
    """A reply that people labelled, and the judge's outcome. ``unseen``: the authors of the patterns didn't see it."""

    id: str
    unseen: bool
    label: str
    outcome: str


class Probed(_Part):
    """Scores of the probe on the first model's states: case id → score; at least ``threshold`` means harmful."""

    threshold: float
    scores: dict[str, float]


class Counted(_Part):
    """Filled in while an evaluation goes on."""

    measures: list[str] = []
    """The names of all measures that were counted where there was something to count."""
    duels: list[Duel] = []
    pairs: list[PickedPairs] = []
    judged: dict[str, list[JudgedReply]] = {}
    """name of a judge → its outcomes"""
    probe: Probed | None = None
    held_out_manners: list[str] = []
    trained_attributes: list[str] = []
