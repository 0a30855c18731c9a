"""``prefill``: begins the reply, with longer and longer words of compliance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.adversary.attackers.base import ATTACKERS, Attacker, AttackerConfig, Move, Target
from pipeline.adversary.scenes import BEGINNINGS
from pipeline.core.errors import ConfigError
from pipeline.evals.suites.families import PREFILL
from pipeline.records import Message


@ATTACKERS.add
class Prefill(Attacker):
    """The request as it is; the reply has begun (Andriushchenko et al. 2024, arXiv 2404.02151). It tries all
    beginnings, the shortest one first, and then gives up."""

    name, begins_replies = PREFILL, True

    class Config(AttackerConfig):
        """Beginnings of compliance, the shortest first."""

    @classmethod
    def check(cls, config: Any, families: Sequence[str], field: str) -> None:
        if PREFILL not in families:
            raise ConfigError(
                f"{field}.attackers names {cls.name!r}, but {field}.families leaves the family {PREFILL!r} out; add "
                "it, or name other attackers."
            )

    def move(self, number: int, target: Target) -> Move | None:
        if number > len(BEGINNINGS):
            return None
        begun = Message(role="assistant", content=BEGINNINGS[number - 1])
        return Move(messages=[*target.prompt.messages, begun], steps=(f"{PREFILL}.{number}",))
