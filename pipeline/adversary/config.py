"""Settings of the attacks on finished models (``attack``) and of the attacks that are trained on (``adversary``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from pipeline.adversary.attackers import ATTACKERS
from pipeline.adversary.attackers.base import AttackerConfig
from pipeline.adversary.families import FAMILIES, draw, evaluation_families, training_families
from pipeline.core.settings import Settings, fields_of, not_one_of, with_sections
from pipeline.evals.suites.families import PREFILL
from pipeline.records import Prompt, derive_seed, derived_rng

BUDGETS = (1, 4, 16, 64)


class SearchConfig(Settings):
    """What attackers try. Each attacker also has a section with its name."""

    model_config = ConfigDict(extra="allow")
    sections = ATTACKERS

    enabled: bool = False
    """Attack."""
    attackers: list[str] = Field(default=["best_of_n", "adaptive"], min_length=1)
    """The attackers. Each begins anew with each model."""
    budget: int = Field(default=16, ge=1)
    """At most so many queries of each attacker to each request. It stops at the first success."""
    families: list[str] | None = Field(default=None, min_length=1)
    """The families of transforms that attack; null: a half of them, by the hash of their names."""
    num_requests: int = Field(default=32, ge=1)
    """How many harmful requests are attacked."""

    @model_validator(mode="before")
    @classmethod
    def _read_sections(cls, raw: Any) -> Any:
        """Parse the section of each attacker with its class; unknown keys are errors."""
        return with_sections(cls, raw)

    @field_validator("attackers")
    @classmethod
    def _check_attackers(cls, names: list[str]) -> list[str]:
        return _known("{here}", names, list(ATTACKERS))

    @field_validator("families")
    @classmethod
    def _check_families(cls, names: list[str] | None) -> list[str] | None:
        return None if names is None else _known("{here}", names, list(FAMILIES))

    def attacker(self, name: str) -> AttackerConfig:
        found: AttackerConfig = getattr(self, name)
        return found

    def budget_of(self, name: str) -> int:
        return self.attacker(name).budget or self.budget

    @property
    def largest_budget(self) -> int:
        return max(map(self.budget_of, self.attackers))

    @property
    def budgets(self) -> list[int]:
        """The numbers of queries after which success is counted: 1, 4, 16, 64 and the budgets themselves."""
        own = [self.budget_of(name) for name in self.attackers]
        return sorted({*own, *(budget for budget in BUDGETS if budget < max(own))})

    def key(self) -> dict[str, Any]:
        """Without the sections of attackers that don't attack."""
        names = [name for name in fields_of(self) if name not in ATTACKERS or name in self.attackers]
        return {name: self.key_of(name) for name in names}


class AttackConfig(SearchConfig):
    """Attacks that adapt, on the finished models, after the evaluation."""

    enabled: bool = False
    """Attack the models after the evaluation. ``cai redteam RUN --adaptive`` does it for a finished run."""
    families: list[str] | None = Field(default=None, min_length=1)
    """The families of transforms that attack; null: about half of them, by the hash of their names. Nothing is trained
    on this half by default."""
    attackers: list[str] = Field(default=["best_of_n", "adaptive", "prefill"], min_length=1)
    """The attackers. Each begins anew with each model."""
    num_look_alikes: int = Field(default=32, ge=0)
    """How many harmless look-alikes each model is asked, plain and under an attack of the same families: a model that
    refuses everything is safe from every attacker."""

    @property
    def chosen(self) -> list[str]:
        """The families that attack."""
        return evaluation_families() if self.families is None else self.families


class AdversaryConfig(SearchConfig):
    """Attacks on the newest policy at the start of each round after the first. Their successes are trained on."""

    enabled: bool = False
    """Attack the newest policy in each round after the first, and train on what succeeds."""
    families: list[str] | None = Field(default=None, min_length=1)
    """The families of transforms that attack; null: about half of them, by the hash of their names: those that the
    section ``attack`` does not use by default."""
    max_similarity: float = Field(default=0.9, gt=0, le=1)
    """A success whose text is at least so similar to an earlier one is left out (Jaccard similarity of the sequences of
    five characters)."""

    @property
    def chosen(self) -> list[str]:
        """The families that attack."""
        return training_families() if self.families is None else self.families

    def order(self, prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
        """The training prompts among these, in the random order of a seed."""
        training = [prompt for prompt in prompts if prompt.split == "train"]
        return sorted(training, key=lambda prompt: derive_seed(seed, "adversary", prompt.key))

    def stand_ins(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """As many attacked prompts as one round can add, for estimates; none if nothing attacks."""
        if not self.enabled:
            return []
        made: list[Prompt] = []
        for pool in ("red_team", "look_alike"):
            chosen = self.order([prompt for prompt in prompts if prompt.pool == pool], 0)[: self.num_requests]
            for attacker in self.attackers:
                for prompt in chosen:
                    rng = derived_rng("stand-in", attacker, prompt.key)
                    families = rng.sample(self.chosen, min(2, len(self.chosen)))
                    messages = draw(families, rng, 0).apply(prompt.messages)
                    made.append(prompt.model_copy(update={"id": f"{prompt.id}/{attacker}", "messages": messages}))
        return made

    @model_validator(mode="after")
    def _check_begun_replies(self) -> Self:
        for name in self.attackers:
            if ATTACKERS[name].begins_replies:
                raise ValueError(
                    f"{{here}}.attackers names {name!r}, which begins the reply, so no pair of replies can be trained "
                    "on; name other attackers, and use align.recovery_ratio against begun replies"
                )
        if self.families and PREFILL in self.families:
            raise ValueError(
                "{here}.families names 'prefill', which begins the reply, so no pair of replies can be trained on; "
                "name other families, and use align.recovery_ratio against begun replies"
            )
        return self


def _known(field: str, names: list[str], options: list[str]) -> list[str]:
    for name in names:
        if name not in options:
            raise ValueError(not_one_of(field, name, options))
    if len(set(names)) < len(names):
        raise ValueError(f"{field} names one of them twice; name each once")
    return names
