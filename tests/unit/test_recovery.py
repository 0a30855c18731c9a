"""Recovery rows: the answer has begun, and the refusal competes with the rest of it."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.preflight import preflight
from pipeline.core.errors import ConfigError
from pipeline.training.recovery import BREAK, recovery_rows

BREAK_ID, REFUSAL, ANSWER = 7, [1, 2], [10, 11, 12, 13]
CHAT: Any = SimpleNamespace(text_ids=lambda text: [BREAK_ID] if text == BREAK else [])


def row(prompt: int, answer: list[int] = ANSWER) -> dict[str, Any]:
    return {
        "prompt_ids": [prompt], "chosen_ids": REFUSAL, "rejected_ids": answer, "label_a": 1.0, "num_compared": 2
    }  # fmt: skip


def drawn(rows: list[dict[str, Any]], ratio: float, most: int = 2, length: int = 100) -> list[dict[str, Any]]:
    config = SimpleNamespace(recovery_ratio=ratio, recovery_tokens=most, max_length_tokens=length)
    return recovery_rows(rows, CHAT, config, random.Random(0))


def test_the_answer_has_begun_and_the_refusal_is_a_paragraph_of_its_own():
    found = drawn([row(prompt) for prompt in range(40)], ratio=1.0)
    assert sorted(r["prompt_ids"][0] for r in found) == list(range(40))
    assert {len(r["prompt_ids"]) - 1 for r in found} == {1, 2}, "one or two tokens are given"
    for r in found:
        assert r["prompt_ids"][1:] + r["rejected_ids"] == ANSWER
        assert (r["chosen_ids"], r["num_compared"], r["label_a"]) == ([BREAK_ID, *REFUSAL], 3, 1.0)


def test_some_of_the_answer_is_left_and_rows_without_enough_are_not_drawn():
    found = drawn([row(0), row(1, [10]), row(2, [10, 11])], ratio=1.0, most=50)
    assert sorted(r["prompt_ids"][0] for r in found) == [0, 2]
    assert all(r["rejected_ids"] for r in found)


def test_the_ratio_is_of_all_rows_and_long_rows_are_cut():
    rows = [row(prompt) for prompt in range(40)]
    assert len(drawn(rows, 0.25)) == 10
    assert drawn(rows, 0.0) == []
    assert all(len(r["prompt_ids"]) + len(r["chosen_ids"]) <= 4 for r in drawn(rows, 1.0, length=4))


@pytest.mark.parametrize("method", ["decide", "dpo"])
def test_without_recovery_rows_their_settings_change_no_cache_key(method: str):
    plain = compose_config([f"align={method}"]).align.key()
    assert plain == compose_config([f"align={method}", "align.recovery_tokens=3"]).align.key()
    assert plain != compose_config([f"align={method}", "align.recovery_ratio=0.2"]).align.key()
    assert not any(name.startswith("recovery_") for name in plain)


def test_sampled_pairs_have_no_answer_that_could_begin(tmp_path: Path):
    settings = ["align.recovery_ratio=0.2", "tracking=none", f"output_dir={tmp_path}"]
    with pytest.raises(ConfigError, match=r"align\.recovery_ratio is 0\.2, but preferences.pairs is 'sampled'"):
        preflight(compose_config(["recipe=paper", *settings]))
    without_opening = r"'plain_speech' does not show how a refusal begins, so no pair .* use align.recovery_ratio=0\.$"
    with pytest.raises(ConfigError, match=without_opening):
        preflight(compose_config(["constitution=plain_speech", *settings]))
