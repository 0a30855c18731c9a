"""KTO's rows: single replies, wanted and unwanted in turn."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pipeline.training.kto import wanted_or_not, with_mismatched


@pytest.mark.parametrize("num_pairs", [4, 5])
def test_a_pair_becomes_two_rows_that_never_meet(num_pairs: int):
    pairs = [
        {"prompt_ids": f"p{n}", "chosen_ids": f"a{n}", "rejected_ids": f"b{n}", "label_a": 0.9 if n % 3 else 0.2}
        for n in range(num_pairs)
    ]
    tie = {"prompt_ids": "tie", "chosen_ids": "a", "rejected_ids": "b", "label_a": 0.5}
    rows = wanted_or_not([*pairs, tie], seed=0)
    better = {f"p{n}": f"a{n}" if n % 3 else f"b{n}" for n in range(num_pairs)}
    assert sorted((row["prompt_ids"], row["label"]) for row in rows) == sorted((p, w) for p in better for w in (0, 1))
    assert all((row["completion_ids"] == better[row["prompt_ids"]]) == row["label"] for row in rows)
    neighbours = list(pairwise(rows))
    assert all(one["prompt_ids"] != other["prompt_ids"] for one, other in neighbours)
    assert sum(one["label"] == other["label"] for one, other in neighbours) <= 1, "they take turns"
    assert [row["prompt_ids"] for row in rows] != [row["prompt_ids"] for row in wanted_or_not(pairs, seed=1)]


def test_the_kl_is_estimated_from_the_neighbour_in_the_batch():
    rows = with_mismatched([{"completion_ids": [n]} for n in range(5)], batch_rows=2)
    assert [row["KL_completion_ids"] for row in rows] == [[1], [0], [3], [2], [4]]
