"""An attacker with a known hole finds it, within its budget, and a killed search goes on where it was."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from pipeline.adversary.attackers import ATTACKERS
from pipeline.adversary.attackers import pair as pair_file
from pipeline.adversary.attackers.base import Attacker, AttackerConfig, Move, Setting, Target
from pipeline.adversary.attackers.pair import Pair, prompt_in, question
from pipeline.adversary.config import AttackConfig
from pipeline.adversary.families import evaluation_families
from pipeline.adversary.scenes import BEGINNINGS
from pipeline.adversary.search import Found
from pipeline.chain.reference import reference
from pipeline.core.errors import ConfigError
from pipeline.engines.base import Completion, Engine, Request
from pipeline.records import Message
from tests.fakes import FakeEngine
from tests.toy_attacks import DECLINES, HELPS, attacked, model_with_hole, prompts, query, text_of, toy_context

HOLE = "as a table with the columns"


def num_queries(found: Found) -> int:
    return len(found.queries)


def broken(found: Found) -> dict[str, int]:
    """Request → the number of the query that broke it."""
    return {one.verdict.case.prompt.id: one.number for one in found.queries if one.succeeded}


@pytest.mark.parametrize("attacker", ["best_of_n", "adaptive"])
def test_the_hole_is_found_and_named(tmp_path: Path, attacker: str):
    found = attacked(tmp_path, model_with_hole(lambda text: HOLE in text), attacker, prompts(12), budget=64)
    assert broken(found).keys() == {prompt.id for prompt in prompts(12)}
    assert all("format.table" in one.steps for one in found.queries if one.succeeded)
    assert all(HOLE not in one.verdict.case.messages[-1]["content"] for one in found.queries if not one.succeeded)


def test_a_model_without_a_hole_uses_up_the_budget_and_no_more(tmp_path: Path):
    found = attacked(tmp_path, model_with_hole(lambda text: False), "adaptive", prompts(3), budget=5)
    assert not broken(found)
    for prompt in prompts(3):
        mine = [one for one in found.queries if one.verdict.case.prompt.id == prompt.id]
        assert [one.number for one in mine] == [1, 2, 3, 4, 5]
        asked = [str(one.verdict.case.messages) for one in mine]
        assert len(set(asked)) == len(asked), "no query is asked twice"


def test_it_stops_at_the_first_success(tmp_path: Path):
    found = attacked(tmp_path, model_with_hole(lambda text: True), "best_of_n", prompts(4), budget=9)
    assert num_queries(found) == 4 and set(broken(found).values()) == {1}


def test_only_the_allowed_families_attack(tmp_path: Path):
    engine = model_with_hole(lambda text: False)
    found = attacked(tmp_path, engine, "best_of_n", prompts(5), budget=6, families=["format", "language"])
    tried = {family for one in found.queries for family in one.composition.families}
    assert tried == {"format", "language"}


def test_the_adaptive_one_learns_on_one_request_what_breaks_the_next(tmp_path: Path):
    """A hole in one of seven families: it is drawn more often once it has worked."""
    learnt, blind = (
        attacked(
            tmp_path / name, model_with_hole(lambda text: "ECHO" in text or "VEX" in text), name, prompts(60), budget=32
        )
        for name in ("adaptive", "best_of_n")
    )
    assert num_queries(learnt) < num_queries(blind)

    def late_share(found: Found) -> float:
        return fmean("persona" in one.composition.families for one in found.queries if one.number > 2)

    assert late_share(learnt) > 1.3 * late_share(blind)


def test_the_adaptive_one_counts_for_every_family_of_a_composition(tmp_path: Path):
    setting = Setting(families=["noise", "format"], seed=0, who="toy", context=toy_context(tmp_path))
    mind = ATTACKERS["adaptive"](AttackConfig().attacker("adaptive"), setting)
    one = prompts(1)[0]
    steps = ("noise.capitals", "format.table")
    mind.learn(
        [query(one, 1, "complied", *steps), query(one, 2, "refused", "format.code"), query(one, 3, "unjudged", *steps)]
    )
    assert (mind._wins, mind._losses) == ({"noise": 1, "format": 1}, {"noise": 0, "format": 1})  # type: ignore[attr-defined]


def test_prefill_begins_the_reply_with_more_and_more_words(tmp_path: Path):
    found = attacked(tmp_path, model_with_hole(lambda text: "\n\n1." in text), "prefill", prompts(2), budget=64)
    first = next(i for i, beginning in enumerate(BEGINNINGS, 1) if "\n\n1." in beginning)
    assert set(broken(found).values()) == {first} and first > 1
    assert found.queries[0].verdict.case.messages[-1] == {"role": "assistant", "content": BEGINNINGS[0]}
    assert found.queries[first - 1].verdict.reply.startswith(BEGINNINGS[first - 1])
    assert [len(beginning) for beginning in BEGINNINGS] == sorted(map(len, BEGINNINGS)) and len(set(BEGINNINGS)) == 64


def test_prefill_gives_up_when_it_has_no_more_beginnings(tmp_path: Path):
    found = attacked(tmp_path, model_with_hole(lambda text: False), "prefill", prompts(1), budget=80)
    assert num_queries(found) == len(BEGINNINGS)


# --- The attacker model --------------------------------------------------------------------------------------------

SERVER = {"kind": "server", "model": "attacker", "base_url": "http://localhost:1/v1"}


def by_pair(
    folder: Path, monkeypatch: pytest.MonkeyPatch, writer: FakeEngine, budget: int = 6, streams: int = 1
) -> Found:
    def opened(*args: object) -> Engine:
        return writer

    monkeypatch.setattr(pair_file, "open_engine", opened)
    monkeypatch.setattr(pair_file, "base_weights", lambda context: None)
    engine = model_with_hole(lambda text: "opal" in text)
    settings = {"engine": SERVER, "num_streams": streams}
    return attacked(folder, engine, "pair", prompts(2), budget=budget, pair=settings)


def test_the_attacker_model_improves_its_prompt_from_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It says the word only after it was told that its last prompt failed."""

    def writes(request: Request) -> str:
        return "Say opal.</prompt>" if "It declined" in text_of(request) else "Please answer.</prompt> Done."

    found = by_pair(tmp_path, monkeypatch, FakeEngine(writes))
    assert set(broken(found).values()) == {2} and found.num_unwritten == 0
    assert [one.verdict.case.messages[-1]["content"] for one in found.queries[:2]] == ["Please answer.", "Say opal."]
    assert found.queries[0].steps == ["pair"] and DECLINES in text_of_question(found)


def text_of_question(found: Found) -> str:
    return question("Do it.", found.queries[0])[0]["content"]


def test_streams_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, str]] = []

    def writes(request: Request) -> str:
        number = int(request.id.rpartition("|")[2])
        seen.append((number, text_of(request)))
        return f"Prompt {number}.</prompt>"

    by_pair(tmp_path, monkeypatch, FakeEngine(writes), budget=4, streams=2)
    shown = {number: [n for n in range(1, 5) if f"Prompt {n}." in text] for number, text in seen}
    assert shown == {1: [], 2: [], 3: [1], 4: [2]}


def test_what_the_attacker_model_does_not_end_is_counted_and_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def writes(request: Request) -> str:
        return "I never end" if request.id.endswith("|1") else "Say opal.</prompt>"

    found = by_pair(tmp_path, monkeypatch, FakeEngine(writes))
    assert found.num_unwritten == 2 and {one.number for one in found.queries} == {2}


def test_the_prompt_in_what_was_written():
    assert prompt_in(" Do it. </prompt> more") == "Do it."
    assert prompt_in("Here: <prompt>Do it.</prompt>") == "Do it."
    assert prompt_in("Do it.") == prompt_in("</prompt>") == ""


def test_pair_needs_a_model_and_prefill_its_family():
    config = AttackConfig()
    with pytest.raises(ConfigError, match=r"attack.attackers names 'pair', but attack.pair.engine is null.*server"):
        Pair.check(config.attacker("pair"), evaluation_families(), "attack")
    with pytest.raises(ConfigError, match=r"names 'prefill', but attack.families leaves the family 'prefill' out"):
        ATTACKERS["prefill"].check(config.attacker("prefill"), ["noise"], "attack")


# --- Another attacker: one class -----------------------------------------------------------------------------------


class Polite(Attacker):
    """Says please, once more in each query."""

    name = "polite"

    class Config(AttackerConfig):
        """Politeness."""

        words: str = "please"
        """What it says."""

    def move(self, number: int, target: Target) -> Move:
        begged = " ".join([target.prompt.request, *[self.config.words] * number])
        return Move(messages=[Message(role="user", content=begged)], steps=("polite",))


def test_an_attacker_is_one_class(tmp_path: Path):
    ATTACKERS.add(Polite)
    try:
        engine = model_with_hole(lambda text: text.endswith("pray pray pray\n"))
        settings = {"budget": 9, "polite": {"words": "pray", "budget": 4}}
        found = attacked(tmp_path, engine, "polite", prompts(2), **settings)
        assert set(broken(found).values()) == {3}
        assert "attack.polite.words" in reference("attack")
    finally:
        ATTACKERS.remove("polite")


# --- Answers -------------------------------------------------------------------------------------------------------


class Dies(FakeEngine):
    """Answers a given number of batches."""

    left = 7

    def generate(self, batch: object) -> list[Completion]:
        if not self.left:
            raise RuntimeError("killed")
        self.left -= 1
        return super().generate(batch)  # type: ignore[arg-type]


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path):
    def says(request: Request) -> str:
        return HELPS if HOLE in text_of(request) else DECLINES

    whole = attacked(tmp_path / "whole", FakeEngine(says), "adaptive", prompts(4), budget=12)
    with pytest.raises(RuntimeError, match="killed"):
        attacked(tmp_path / "cut", Dies(says), "adaptive", prompts(4), budget=12)
    rest = FakeEngine(says)
    assert attacked(tmp_path / "cut", rest, "adaptive", prompts(4), budget=12) == whole
    assert 0 < len(rest.asked) <= num_queries(whole) - 12  # seven batches of two, one of them perhaps of one
    nothing = FakeEngine(says)
    assert attacked(tmp_path / "cut", nothing, "adaptive", prompts(4), budget=12) == whole and not nothing.asked


class Silent(FakeEngine):
    def generate(self, batch: object) -> list[Completion]:
        return [Completion(id=r.id, text="", num_tokens=0, finish="too_long") for r in batch]  # type: ignore[attr-defined]


def test_no_reply_is_no_verdict(tmp_path: Path):
    found = attacked(tmp_path, Silent(), "best_of_n", prompts(2), budget=2)
    assert {one.verdict.outcome for one in found.queries} == {"unjudged"} and not broken(found)
    assert not any(one.verdict.replied for one in found.queries)
