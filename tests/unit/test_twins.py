"""The shipped pools: in many manners, with a harmless twin for each harmful request, and no text nearly twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import pipeline.data
from pipeline.data.near_duplicates import near_duplicates

DATA = Path(pipeline.data.__file__).parent


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name).open(encoding="utf-8")]


POOLS = {name: rows(f"{name}.jsonl") for name in ("red_team", "look_alikes", "ordinary")}
HARMFUL = POOLS["red_team"]
TWINS = [row for row in POOLS["look_alikes"] if "twin_of" in row]


def requests(*of: list[dict[str, str]]) -> dict[str, str]:
    return {row["id"]: row["prompt"] for part in of for row in part}


@pytest.mark.parametrize(("pool", "least"), [("red_team", 600), ("look_alikes", 1000), ("ordinary", 600)])
def test_each_pool_has_many_rows_in_many_manners(pool: str, least: int):
    manners = Counter(row["manner"] for row in POOLS[pool])
    assert len(POOLS[pool]) >= least and len(manners) == 11
    assert min(manners.values()) >= 30 and max(manners.values()) <= 0.25 * len(POOLS[pool])


def test_kinds_are_balanced_and_length_gives_nothing_away():
    assert set(Counter(row["kind"] for row in HARMFUL).values()) == {50}
    lengths = [sum(len(row["prompt"]) for row in part) / len(part) for part in (HARMFUL, TWINS)]
    assert 0.85 < lengths[0] / lengths[1] < 1.15


def test_each_harmful_request_has_a_twin_and_most_are_in_its_manner():
    manner = {row["id"]: row["manner"] for row in HARMFUL}
    assert {row["twin_of"] for row in TWINS} == set(manner)
    alike = [row["manner"] == manner[row["twin_of"]] for row in TWINS]
    assert sum(alike) >= 0.85 * len(TWINS)
    ids = [row["id"] for part in POOLS.values() for row in part]
    assert len(ids) == len(set(ids))


def test_none_is_nearly_a_request_of_a_suite_or_of_another_row():
    pools = requests(*POOLS.values())
    suites = requests(rows("suites/red_team.jsonl"), rows("suites/look_alikes.jsonl"), rows("suites/references.jsonl"))
    twin_of = {row["id"]: row["twin_of"] for row in TWINS}
    for pair in near_duplicates(pools, suites):
        assert {twin_of.get(pair.id), twin_of.get(pair.other_id)} & {pair.id, pair.other_id}, pair
