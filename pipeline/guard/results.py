"""Records of a guard: what it is made of (``guard.json``), and what it does to an evaluation (``guarded.json``)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from pipeline.evals.results import Cell, Change, Estimate
from pipeline.records import Pool


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StepCard(_Part):
    """One of the two steps."""

    layer: int
    auc: float
    """On training rows that were not learned, in the layer that was chosen on them."""
    num_harmful: int
    num_harmless: int


class HeldOut(_Part):
    """What the whole guard does to one pool of the validation prompts."""

    pool: Pool
    fired: Estimate
    by_request: int
    """How often the first step was certain."""


class GuardCard(_Part):
    """What a guard is made of, and what it promises."""

    model: str
    made_of: dict[str, int]
    """who labelled the training prompts → number of prompts"""
    families: list[str]
    """The families of attacks that it learned from."""
    num_layers: int
    request: StepCard
    reply: StepCard | None
    """None: ``notes`` say why there is no second step."""
    max_false_alarms: float
    confidence: float
    num_harmless: int
    """Held-out harmless requests on which the threshold was set."""
    num_alarms: int
    """Of these, how many are above the threshold."""
    bound: float
    """The upper bound on the rate of false alarms, at ``confidence``."""
    auc: Estimate
    """Of the whole guard, held-out harmful requests against held-out harmless ones."""
    held_out: list[HeldOut]
    attacked_harmless: Estimate
    """Held-out harmless requests under all attacks in turn: the share on which the first step is certain of harm. The
    bound does not cover them."""
    idle: str = ""
    """Why it never fires; empty if it does."""
    notes: list[str] = Field(default=[])


class Alarms(_Part):
    """How often the guard fires on one kind of evaluated requests."""

    requests: str
    harmful: bool
    fired: Estimate
    by_request: int
    """How often the first step was certain; in the other cases the second step fired."""
    lost_answers: Estimate
    """Share on which it fires though the model alone did not refuse: what the guard changes."""


class Guarded(_Part):
    """The aligned model with its guard beside the same model alone, on the same requests."""

    model: str
    system: str
    """The name of the model with its guard, in ``measures``, ``changes`` and ``attacks``."""
    card: GuardCard
    refusal: str
    measures: dict[str, dict[str, Estimate]]
    changes: list[Change]
    attacks: list[Cell]
    """Over all kinds of harm: each attack, and the families that the guard learned from and the others."""
    attack_changes: list[Change]
    alarms: list[Alarms]
    num_unread: int
    """Cases whose states can't be read; the guard does not fire on them."""
