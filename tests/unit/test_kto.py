"""KTO's rows: single replies, wanted and unwanted in turn."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pipeline.methods.kto import wanted_or_not


@pytest.mark.parametrize("num_pairs", [4, 5])
def test_a_pair_becomes_two_rows_that_never_meet(num_pairs: int):
    pairs = [
        {"prompt": f"p{n}", "chosen": f"a{n}", "rejected": f"b{n}", "label_a": 0.9 if n % 3 else 0.2}
        for n in range(num_pairs)
    ]
    rows = wanted_or_not([*pairs, {"prompt": "tie", "chosen": "a", "rejected": "b", "label_a": 0.5}], seed=0)
    better = {f"p{n}": f"a{n}" if n % 3 else f"b{n}" for n in range(num_pairs)}
    assert sorted((row["prompt"], row["label"]) for row in rows) == sorted((p, w) for p in better for w in (0, 1))
    assert all((row["completion"] == better[row["prompt"]]) == row["label"] for row in rows)
    neighbours = list(pairwise(rows))
    assert all(one["prompt"] != other["prompt"] for one, other in neighbours)
    assert sum(one["label"] == other["label"] for one, other in neighbours) <= 1, "they take turns"
    assert [row["prompt"] for row in rows] != [row["prompt"] for row in wanted_or_not(pairs, seed=1)]
