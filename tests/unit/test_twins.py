"""The requests in ``pipeline/data/more``: harmful ones in ten manners, each with a harmless twin in the same manner."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pipeline.data
from pipeline.data.near_duplicates import near_duplicates

DATA = Path(pipeline.data.__file__).parent
HARMFUL = [row for path in sorted((DATA / "more").glob("red_team_*.jsonl")) for row in map(json.loads, path.open())]
TWINS = [row for path in sorted((DATA / "more").glob("twins_*.jsonl")) for row in map(json.loads, path.open())]


def requests(*names: str) -> dict[str, str]:
    """Id → text of the rows that ship in these files."""
    rows = [json.loads(line) for name in names for line in (DATA / name).open(encoding="utf-8")]
    return {row["id"]: row["prompt"] for row in rows}


def test_manners_and_kinds_are_balanced():
    manners, kinds = Counter(row["manner"] for row in HARMFUL), Counter(row["kind"] for row in HARMFUL)
    assert len(manners) == 10 and min(manners.values()) >= 0.7 * max(manners.values())
    assert set(kinds.values()) == {28}
    lengths = [sum(len(row["prompt"]) for row in rows) / len(rows) for rows in (HARMFUL, TWINS)]
    assert 0.85 < lengths[0] / lengths[1] < 1.15  # length must not give the harm away


def test_each_twin_is_in_the_manner_of_its_harmful_request():
    manner = {row["id"]: row["manner"] for row in HARMFUL}
    twin_of = [row["twin_of"] for row in TWINS]
    assert set(manner) <= set(twin_of) <= set(manner) | set(requests("red_team.jsonl"))
    assert all(row["manner"] == manner.get(row["twin_of"], row["manner"]) for row in TWINS)
    ids = [row["id"] for row in HARMFUL + TWINS]
    assert len(ids) == len(set(ids))


def test_none_is_nearly_a_request_of_a_suite_or_of_another_row():
    rows = {row["id"]: row["prompt"] for row in HARMFUL + TWINS}
    suites = requests("suites/red_team.jsonl", "suites/look_alikes.jsonl")
    assert near_duplicates(rows, suites) == []
    pools = requests("red_team.jsonl", "look_alikes.jsonl", "ordinary.jsonl")
    twin_of = {row["id"]: row["twin_of"] for row in TWINS}
    for pair in near_duplicates(rows, pools):
        assert twin_of.get(pair.id) == pair.other_id, pair
