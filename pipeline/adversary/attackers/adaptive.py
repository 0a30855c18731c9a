"""``adaptive``: learns on earlier requests which families work, and draws those more often."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from pipeline.adversary.attackers.base import ATTACKERS, Setting
from pipeline.adversary.attackers.best_of_n import BestOfN
from pipeline.adversary.families import family_of
from pipeline.adversary.records import Query


@ATTACKERS.add
class Adaptive(BestOfN):
    """Thompson sampling (Thompson 1933) over the families: each has a Beta(1 + successes, 1 + failures) over its rate,
    and those with the highest draws attack. What is learnt on one request is used on all others."""

    name = "adaptive"

    class Config(BestOfN.Config):
        """Draws of transforms, more often of those that have worked."""

    def __init__(self, config: Any, setting: Setting) -> None:
        super().__init__(config, setting)
        self._wins = dict.fromkeys(setting.families, 0)
        self._losses = dict.fromkeys(setting.families, 0)

    def choose(self, number: int, rng: random.Random) -> Sequence[str]:
        drawn = {
            family: rng.betavariate(1 + self._wins[family], 1 + self._losses[family])
            for family in self.setting.families
        }
        return sorted(drawn, key=lambda family: -drawn[family])[:number]

    def learn(self, tried: Sequence[Query]) -> None:
        """Every family of a composition shares its result. A reply that could not be judged says nothing."""
        for query in tried:
            if query.verdict.outcome == "unjudged":
                continue
            counts = self._wins if query.succeeded else self._losses
            for family in set(map(family_of, query.steps)):
                counts[family] += 1
