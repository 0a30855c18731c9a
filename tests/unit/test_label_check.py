"""A labeller is tested on the shipped pairs before it labels: one that knows, one that guesses, one that is silent."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.engines.base import ChoiceQuery, EngineConfig, Query, ReplyQuery
from pipeline.evals.label_check import METRIC, Checked, check_labeller, cost_of_check
from pipeline.evals.suites.pairs import PairsConfig, read_pairs
from pipeline.labellers.base import LABELLERS
from tests.fakes import FakeEngine, FakeLogbook

WRITTEN = load_constitution(find_constitution("default"))
PAIRS = read_pairs(PairsConfig(source="builtin"), "pairs", "pair", "test", [])
RIGHT = {pair.reply_a for pair in PAIRS}
AB = LABELLERS.parse({"kind": "ab"})
FIRST, SECOND = [-0.1, -2.5], [-2.5, -0.1]


def knows(query: Query) -> list[float]:
    assert isinstance(query, ChoiceQuery)
    text = query.messages[-1]["content"]
    return FIRST if any(f"(A) {reply}" in text for reply in RIGHT) else SECOND


def says_a(query: Query) -> list[float]:
    return FIRST


def is_silent(query: Query) -> list[float]:
    return [-math.inf, -math.inf]


def check(folder: Path, answer: object, num_pairs: int = 20) -> tuple[Checked, FakeEngine]:
    engine = FakeEngine(answer=answer)  # type: ignore[arg-type]
    return check_labeller(engine, AB, WRITTEN, 0, FakeLogbook(folder), num_pairs), engine


def test_a_labeller_that_knows_is_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found, engine = check(tmp_path, knows)
    assert (found.right.count, found.right.total, found.num_unreadable) == (20, 20, 0) and not found.may_guess
    assert sum(share.total or 0 for share in found.by_kind.values()) == 20
    assert "agreed with people on 100\u00a0% [84, 100] of 20 shipped pairs (" in found.said()
    assert len(engine.asked) == 2 * 20
    said = capsys.readouterr()
    assert "agreed with people" in said.err and "guessing" not in said.out + said.err


@pytest.mark.parametrize("answer", [says_a, is_silent])
def test_one_that_guesses_or_is_silent_gives_a_warning_before_it_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: object
):
    found, _ = check(tmp_path, answer)
    assert found.may_guess
    said = capsys.readouterr()
    assert "nothing shows that the labeller ab:fake does better than guessing" in said.out + said.err


@pytest.mark.parametrize("kind", ["request", "likelihood"])
def test_where_openings_are_compared_the_pairs_are_about_declining(tmp_path: Path, kind: str):
    """Only a labeller that tells harmful requests from look-alikes is right on more than half of them."""
    harmful = [pair.prompt.request for pair in PAIRS if pair.prompt.kind == "harmless"]
    examples = {contrast.request for contrast, *_ in WRITTEN.contrast_prompts()}

    def knows_harm(query: Query) -> list[float]:
        if isinstance(query, ReplyQuery):
            return [-1.0 if query.reply == WRITTEN.opening() else -2.0]
        asked = query.messages[-1]["content"].removeprefix("Request: ").partition("\n\n")[0]
        return FIRST if asked in harmful or asked in examples else SECOND

    own = {"ab_weight": 0} if kind == "request" else {}
    config, engine = LABELLERS.parse({"kind": kind} | own), FakeEngine(answer=knows_harm)
    found = check_labeller(engine, config, WRITTEN, 0, FakeLogbook(tmp_path), 40, WRITTEN.opening())
    assert {name: share.total for name, share in found.by_kind.items()} == {"harmless": 20, "look_alike": 20}
    assert found.right.count == 40 if kind == "request" else found.may_guess
    calls = cost_of_check(EngineConfig(kind="hf"), config, WRITTEN, 0, 40, WRITTEN.opening()).num_calls
    assert len(set(engine.asked)) == len(engine.asked) <= calls


def test_a_kill_costs_no_answers(tmp_path: Path):
    check(tmp_path, knows)
    _, engine = check(tmp_path, knows)
    assert not engine.asked


def test_the_report_reads_it_from_the_metrics(tmp_path: Path):
    found, _ = check(tmp_path, knows)
    assert Checked.of_metrics({METRIC: found.model_dump()}) == found
    assert Checked.of_metrics({}) is None and Checked.of_metrics({METRIC: None}) is None


def test_what_it_costs(tmp_path: Path):
    engine, shown = EngineConfig(kind="hf"), AB.model_copy(update={"num_examples": 8})
    plain, more = (cost_of_check(engine, config, WRITTEN, 0, 20).num_tokens_read for config in (AB, shown))
    assert plain > 20 * 2 * 100 and more > 2 * plain, "the texts count, and their examples"
    assert cost_of_check(engine, AB, WRITTEN, 0, 20).num_calls == 2 * 20
    assert cost_of_check(engine, AB, WRITTEN, 0, 0).num_calls == 0
