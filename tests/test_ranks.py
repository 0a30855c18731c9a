"""Two CPU ranks do what one does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.training.history import read_history

Tiny = Callable[..., Config]


def test_two_ranks_equal_one(tiny: Tiny, tmp_path):
    """Same records, and the same SFT and DPO losses step by step at the same global batch."""
    one = run(tiny(f"output_dir={tmp_path / 'one'}"))
    two = run(tiny(f"output_dir={tmp_path / 'two'}", "launch.num_processes=2"))
    assert two.stages["align"].manifest.environment["num_processes"] == "2"
    assert one.stages["critique"].manifest.content_hash == two.stages["critique"].manifest.content_hash
    losses = {
        name: [[row["loss"] for row in read_history(result.stages[name].folder)] for result in (one, two)]
        for name in ("sft", "align")
    }
    for name, (alone, together) in losses.items():
        assert len(alone) >= 2 and alone == pytest.approx(together, abs=1e-5), name
    assert len(set(losses["align"][0])) > 1, "the loss never moved, so equality shows nothing"
