"""``best_of_n``: draws compositions of transforms until one works, and learns nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pydantic import Field

from pipeline.adversary.attackers.base import ATTACKERS, Attacker, AttackerConfig, Move, Target
from pipeline.adversary.families import draw

NUM_DRAWS = 20  # before it gives a request up: all it draws was asked before


@ATTACKERS.add
class BestOfN(Attacker):
    """Best-of-N (Hughes et al. 2024, arXiv 2412.03556): independent draws. There the draws are noise; here they are of
    all allowed families."""

    name = "best_of_n"

    class Config(AttackerConfig):
        """Independent draws of transforms."""

        max_composed: int = Field(default=2, ge=1)
        """The most families in one query, each with one transform after another."""

    def move(self, number: int, target: Target) -> Move | None:
        """Never the same query twice: some transforms draw nothing."""
        known = [query.verdict.case.messages for query in target.tried]
        for attempt in range(NUM_DRAWS):
            rng = self.rng(target.prompt.id, number, attempt)
            most = min(self.config.max_composed, len(self.setting.families))
            composition = draw(self.choose(rng.randint(1, most), rng), rng, rng.getrandbits(63))
            messages = composition.apply(target.prompt.messages)
            if messages not in known:
                return Move(messages=messages, steps=composition.steps, seed=composition.seed)
        return None

    def choose(self, number: int, rng: random.Random) -> Sequence[str]:
        """So many different families, in the order in which they are applied."""
        return rng.sample(list(self.setting.families), number)
