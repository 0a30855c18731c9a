"""The page about the paper's volume has the numbers that the plan's code gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.estimates import hours_of
from pipeline.core.stage import Cost
from tests.conftest import load_script

PAGE = Path(__file__).parents[2] / "docs" / "paper_volume.md"


def test_the_page_has_the_numbers_of_the_plan():
    script, page = load_script("paper_volume"), PAGE.read_text(encoding="utf-8").splitlines()
    prepared = script.paper_volume()
    for line in [*script.volume(prepared), *script.time_and_money(prepared)]:
        assert line in page, line


def test_kept_beginnings_cost_no_time():
    launch = compose_config(["launch.rates.written=10", "launch.rates.read=100"]).launch
    cost = Cost(num_calls=1, num_tokens_read=720_000, num_tokens_repeated=360_000)
    assert hours_of(cost, launch) == pytest.approx(1.0)
    assert hours_of(replace(cost, num_tokens_repeated=0), launch) == pytest.approx(2.0)
