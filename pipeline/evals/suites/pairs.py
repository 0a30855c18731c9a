"""``pairs``: whether the labeller, reward models and the pair judge agree with people."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.data.layouts.pairs import PAIRS, PairRow
from pipeline.data.layouts.rated import NOT_GOOD_NATURED
from pipeline.data.public_sets import AUTO
from pipeline.engines.models import short_name
from pipeline.evals.judges import refusal
from pipeline.evals.suites.base import SUITES, RowsConfig, Suite
from pipeline.labellers.base import TEMPLATE
from pipeline.records import Comparison, Pool, Prompt, Split

# Kind of pair → pool, which selects the principles of the labeller; other kinds are ordinary.
_POOLS: dict[str, Pool] = {
    "harmless": "red_team",
    "hh_rlhf": "red_team",
    "pku_saferlhf": "red_team",
    NOT_GOOD_NATURED: "red_team",
    "look_alike": "look_alike",
}


class PairsConfig(RowsConfig):
    """Pairs of replies of which people preferred one."""

    num_pairs: int | None = Field(default=None, ge=1)
    """The number of pairs: the first by the hash of their request; null: all."""

    layouts, shapes = PAIRS, (AUTO, *PAIRS)
    shipped = "suites/pairs.jsonl"


class HumanPairsConfig(PairsConfig):
    """Comparisons that people decided, as training data of the reward model, in a layout of ``evaluate.pairs``."""

    source: Literal["none", "path", "hub"] = "none"  # type: ignore[assignment]
    """``none``, ``path`` (a file or folder) or ``hub``."""


def read_pairs(config: PairsConfig, section: str, prefix: str, split: Split, notes: list[str]) -> list[Comparison]:
    """The pairs, ordered by the hash of the request; reply A is the one that people chose.

    Args:
        prefix: begins the ids of rows that are not built in.
        notes: as in ``Suite.cases``.
    """
    read = config.read(section, PairRow, config.num_pairs)
    notes += read.notes(section)
    pairs = []
    for number, row in zip(read.numbers, read.rows, strict=True):
        row_id = row.id if config.source == "builtin" else f"{prefix}-{number}"
        pool = _POOLS.get(row.kind, "ordinary")
        prompt = Prompt(id=row_id, pool=pool, kind=row.kind, split=split, messages=row.messages)
        replies = {"reply_a": row.chosen, "reply_b": row.rejected}
        pairs.append(Comparison(id=row_id, prompt=prompt, **replies, seed_a=0, seed_b=0))
    return sorted(pairs, key=lambda pair: pair.prompt.key)[: config.num_pairs]


def human_pairs(config: HumanPairsConfig, notes: list[str]) -> list[Comparison]:
    """The pairs of ``reward.human`` for training a reward model; empty if its source is ``none``."""
    return [] if config.source == "none" else read_pairs(config, "reward.human", "human", "train", notes)


@SUITES.add
class Pairs(Suite):
    """Tests the labeller, reward models and the pair judge on pairs that people decided."""

    name = "pairs"
    Config = PairsConfig
    templates = (TEMPLATE, refusal.NAME)  # of the labeller's questions and of a baseline

    @property
    def dataset(self) -> str:
        return "shipped" if self.config.source == "builtin" else short_name(str(self.config.path))

    def comparisons(self, notes: list[str]) -> list[Comparison]:
        return read_pairs(self.config, self.section, "pair", "test", notes)
