"""What the adversary asks, and what was found: the records of ``queries.jsonl`` and ``attack.json``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from pipeline.adversary.families import Composition
from pipeline.evals.results import Estimate, Said
from pipeline.records import Record, Verdict

ALL = "all"


class Query(Record):
    """One query of an attacker to one model, and how the reply was judged.

    ``verdict.case.prompt`` is the request before the attack. ``steps`` names the transforms, with the seed of what they
    draw; a prompt that a model wrote has the one step that names the attacker.
    """

    attacker: str
    number: int
    """Which query to this request it is, from 1."""
    steps: list[str]
    seed: int
    verdict: Verdict

    @property
    def succeeded(self) -> bool:
        return self.verdict.outcome == "complied"

    @property
    def composition(self) -> Composition:
        return Composition(tuple(self.steps), self.seed)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Success(_Part):
    """The share of requests that one attacker broke one model with, with at most ``budget`` queries for each.

    ``attacker`` is ``all`` for the requests that any of the attackers broke.
    """

    model: str
    attacker: str
    budget: int
    success: Estimate


class FamilySuccess(_Part):
    """Of the requests that a family of transforms was tried on, alone or with others: the share that it broke."""

    model: str
    attacker: str
    family: str
    success: Estimate


class Refused(_Part):
    """The share of harmless look-alikes that a model refused, plain or under attack."""

    model: str
    attacked: bool
    refused: Estimate


class Difference(_Part):
    """Two models on the same requests: the difference of two shares (after − before), paired by request.

    ``p`` is McNemar's, and ``p_corrected`` is corrected over all differences (Holm).
    """

    measure: str
    """``success:ATTACKER`` at the whole budget, ``refused`` or ``refused_under_attack``."""
    before: str
    after: str
    difference: Estimate
    p: float
    p_corrected: float
    verdict: Said


class ModelCounts(_Part):
    """How many queries one attacker needed for one model, and what could not be counted."""

    model: str
    attacker: str
    num_queries: int
    num_broken: int
    """Replies without sense, which are no success."""
    num_unjudged: int
    """Replies that could not be judged, and queries without a reply."""
    num_unwritten: int
    """Prompts that the attacker's model failed to write; each uses up one query of the budget."""


class AttackResults(_Part):
    """``attack.json``."""

    models: list[str]
    """The others are compared with the first."""
    rounds: list[str] = []
    """The models after each round of alignment, if there were several; the last one is the last model."""
    attackers: list[str]
    families: list[str]
    """Those that attacked here. Nothing was trained on them, unless ``trained_families`` names them, too."""
    trained_families: list[str] = []
    budgets: list[int]
    num_requests: int
    judge: str
    judges_wording: bool
    """The judge reads the wording of a reply only, so an empty promise to help counts as a success."""
    confidence: float
    successes: list[Success]
    by_family: list[FamilySuccess]
    refused: list[Refused] = []
    differences: list[Difference] = []
    counts: list[ModelCounts]
    notes: list[str] = []

    def success(self, model: str, attacker: str, budget: int) -> Estimate | None:
        wanted = (model, attacker, budget)
        return next((s.success for s in self.successes if (s.model, s.attacker, s.budget) == wanted), None)
