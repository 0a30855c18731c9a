"""The interface of attackers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pipeline.adversary.records import Query
from pipeline.core.settings import Registry, Settings
from pipeline.core.stage import Cost
from pipeline.engines.base import EngineConfig
from pipeline.records import Message, Prompt, derived_rng

if TYPE_CHECKING:
    import random

    from pipeline.core.stage import Context


class AttackerConfig(Settings):
    """Settings of an attacker."""

    budget: int | None = Field(default=None, ge=1)
    """At most so many queries for each request; null: the budget of all attackers."""

    @property
    def asked(self) -> EngineConfig | None:
        """The engine of its own model; None: it has none."""
        return None


@dataclass
class Target:
    """A request that has not been broken yet, and what was tried on it."""

    prompt: Prompt
    tried: list[Query] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Move:
    """The next query to a request: the conversation, and the transforms that made it."""

    messages: list[Message]
    steps: tuple[str, ...]
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where an attacker works. ``who``: the model that it attacks; the attacker starts anew with each model."""

    families: Sequence[str]
    seed: int
    who: str
    context: Context


class Attacker(ABC):
    """Chooses the next query to each request. It is asked round by round, for all requests that are not broken yet.

    To add one, write a class in a file of its own and import the file in ``pipeline/adversary/attackers/__init__.py``.
    """

    name: ClassVar[str]
    Config: ClassVar[type[AttackerConfig]]
    template: ClassVar[str] = ""
    """The version of its own wordings, for the cache key."""
    gives_up: ClassVar[bool] = True
    """A request that it has no query for is over. False: the next query may succeed."""
    begins_replies: ClassVar[bool] = False
    """Its queries begin the reply of the model, so no pair of replies to them can be trained on."""

    def __init__(self, config: Any, setting: Setting) -> None:
        self.config, self.setting = config, setting
        self.num_unwritten = 0
        """Prompts that its model failed to write."""

    @classmethod  # noqa: B027 (most attackers need nothing)
    def check(cls, config: Any, families: Sequence[str], field: str) -> None:
        """Refuse what would fail later. ``field`` is the path of the section that has the attackers.

        Raises:
            ConfigError: one sentence with the field, the value and the remedy.
        """

    @classmethod
    def cost(cls, config: Any, num_moves: int) -> Cost:
        """At most what its own model costs for so many queries."""
        return Cost()

    def moves(self, number: int, targets: Sequence[Target]) -> dict[str, Move]:
        """Prompt id → query ``number`` to it. By default each request is asked for alone (``move``)."""
        found = {target.prompt.id: self.move(number, target) for target in targets}
        return {prompt_id: move for prompt_id, move in found.items() if move is not None}

    @abstractmethod
    def move(self, number: int, target: Target) -> Move | None:
        """The next query to one request; None: it has no more ideas."""

    def learn(self, tried: Sequence[Query]) -> None:  # noqa: B027 (most attackers learn nothing)
        """Take in how the queries of a round were answered."""

    def rng(self, *parts: object) -> random.Random:
        return derived_rng(self.setting.seed, "attack", self.name, self.setting.who, *parts)


ATTACKERS: Registry[Attacker] = Registry("attacker", "attackers")
