"""A share of unusable answers: silent, a warning, or the end of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.counts import warn_of_share
from pipeline.core.errors import StageError


@pytest.mark.parametrize(("num_bad", "total", "warned"), [(0, 0, False), (5, 100, False), (6, 100, True)])
def test_above_five_percent_is_a_warning(num_bad: int, total: int, warned: bool, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr("pipeline.core.counts.warn", said.append)
    assert warn_of_share(num_bad, total, "answers are empty", "do better") == warned
    assert said == (["6 of 100 answers are empty; do better."] if warned else [])


def test_all_of_them_stop_the_run():
    with pytest.raises(StageError, match=r"^all 2 answers are empty; do better\.$"):
        warn_of_share(2, 2, "answers are empty", "do better")
    with pytest.raises(StageError, match=r"do better; if the settings stay the same, delete work first\.$"):
        warn_of_share(2, 2, "answers are empty", "do better", Path("work"))
