"""The pairs that are made of several samples of a policy, and what is counted where none can be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.core.cache import cache_key
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context
from pipeline.engines.base import Completion, Request
from pipeline.labellers import sampling
from pipeline.records import Comparison, Message, Prompt, derive_seed
from tests.fakes import FakeEngine

PROMPTS = [
    Prompt(id=name, pool="ordinary", kind="k", split="train", messages=[Message(role="user", content=f"About {name}?")])
    for name in ("tea", "rice")
]
SEED = 5


class Refusing(FakeEngine):
    """A server that refuses the requests whose reply is None."""

    def __init__(self, replies: Mapping[str, str | None]) -> None:
        super().__init__()
        self._replies = replies

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        said = {request.id: self._replies[request.id] for request in batch}
        return [
            Completion(id=name, text=text or "", num_tokens=3, finish="refused" if text is None else "stop")
            for name, text in said.items()
        ]


def sampled(
    out: Path, monkeypatch: pytest.MonkeyPatch, number: int, engine: FakeEngine
) -> tuple[list[Comparison], sampling.Sampler]:
    config = compose_config(["recipe=feedback", f"preferences.num_samples={number}"])
    reads: dict[str, Any] = {"seed": SEED, "model": config.model, "policy_engine": config.policy_engine}
    context = Context(stage="preferences", reads=reads, folders={"sft": out}, out=out, launch=config.launch)
    monkeypatch.setattr(sampling, "policy_engine", lambda context, path, who: engine)
    sampler = sampling.Sampler(config.preferences, context)
    return sampler.sampled_pairs(PROMPTS), sampler


def test_four_samples_are_two_pairs_of_a_prompt_and_none_is_in_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs, sampler = sampled(tmp_path, monkeypatch, 4, FakeEngine(reply=lambda request: f"It is {request.seed}."))
    assert [(pair.id, pair.prompt.id) for pair in pairs] == [
        ("tea", "tea"),
        ("tea/pair-2", "tea"),
        ("rice", "rice"),
        ("rice/pair-2", "rice"),
    ]
    seeds = [seed for pair in pairs for seed in (pair.seed_a, pair.seed_b)]
    assert len(set(seeds)) == 8
    assert [reply for pair in pairs for reply in (pair.reply_a, pair.reply_b)] == [f"It is {seed}." for seed in seeds]
    assert sampler.num_dropped == 0


def test_two_samples_are_those_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    engine = FakeEngine(reply=lambda request: f"Two words more or less are not the same {request.id[-1]}.")
    pairs, sampler = sampled(tmp_path, monkeypatch, 2, engine)
    assert engine.asked == ["tea/a", "rice/a", "tea/b", "rice/b"]
    assert [pair.id for pair in pairs] == ["tea", "rice"] and not sampler.num_dropped, "similar ones are compared, too"
    for pair in pairs:
        for side, seed in (("a", pair.seed_a), ("b", pair.seed_b)):
            assert seed == derive_seed(SEED, pair.prompt.key, "preference", side)


LONG = "Boil the water first, then let the leaves stand in it for three minutes, and take them out before it is bitter."
NEARLY = LONG.upper().replace("BITTER.", "bitter!")


@pytest.mark.parametrize(
    ("replies", "kept", "counts"),
    [
        (["One.", "Two.", "Three.", "Four."], [("One.", "Two."), ("Three.", "Four.")], (0, 0, 0)),
        (["One.", "One.", "Two.", "Three."], [("One.", "Two.")], (0, 0, 1)),
        (["One.", "Two.", "One.", "Two."], [("One.", "Two.")], (0, 0, 1)),  # no pair is there twice
        ([LONG, NEARLY, "Two.", "Three."], [(LONG, "Two.")], (0, 0, 1)),
        (["One.", "One.", "One.", "One."], [], (0, 0, 2)),
        (["", "One.", "", "Two."], [("One.", "Two.")], (0, 1, 0)),
        ([None, "", "One.", "One."], [], (1, 0, 1)),
        ([None, "One.", None, None], [], (2, 0, 0)),
    ],
)
def test_alike_empty_and_missing_replies_make_no_pair_and_are_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replies: list[str | None],
    kept: list[tuple[str, str]],
    counts: tuple[int, int, int],
):
    said: dict[str, str | None] = {f"tea/{side}": reply for side, reply in zip("ab34", replies, strict=True)}
    said |= {f"rice/{side}": f"Number {side * 9}." for side in "ab34"}
    pairs, sampler = sampled(tmp_path, monkeypatch, 4, Refusing(said))
    assert [(pair.reply_a, pair.reply_b) for pair in pairs if pair.prompt.id == "tea"] == kept
    assert (sampler.num_unanswered, sampler.num_empty, sampler.num_identical) == counts
    assert len(pairs) + sampler.num_dropped == 4


class Long(FakeEngine):
    """Replies that reach the limit, but for those about tea."""

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        return [
            Completion(
                id=request.id,
                text=f"The first sentence of {request.seed}. And then",
                num_tokens=9,
                finish="stop" if request.id.startswith("tea") else "length",
            )
            for request in batch
        ]


def test_a_reply_that_reached_the_limit_is_a_beginning_and_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tea, rice), sampler = sampled(tmp_path, monkeypatch, 2, Long())
    assert (tea.begun_a, tea.begun_b, rice.begun_a, rice.begun_b) == (False, False, True, True)
    assert tea.reply_a.endswith("And then") and rice.reply_a.endswith(".") and sampler.num_cut == 2


def test_an_impossible_number_of_samples_is_refused():
    for overrides, message in (
        (["preferences.num_samples=3"], r"preferences.num_samples is 3; it must be a multiple of 2"),
        (["preferences.num_samples=0"], r"preferences.num_samples is 0; it must be at least 2"),
        (["preferences.pairs=contrast"], r"preferences.num_samples is 4, but preferences.pairs is 'contrast', which"),
    ):
        with pytest.raises(ConfigError, match=message):
            compose_config(["recipe=feedback", *overrides])


def test_the_key_lacks_only_new_settings_with_their_usual_value():
    plain, checked = (compose_config([f"preferences.num_checked={n}"]).preferences for n in (60, 5))
    assert checked.key() == plain.key() | {"num_checked": 5}
    assert plain.model_dump().keys() - plain.key().keys() == {"num_samples", "num_checked", "num_counterfactuals"}
    assert plain.key()["engine"] is None, "a setting that is null is not left out"


def test_results_of_two_samples_keep_their_key():
    two, four = (compose_config(["recipe=feedback", f"preferences.num_samples={n}"]).preferences.key() for n in (2, 4))
    assert "num_samples" not in two and four == two | {"num_samples": 4} and cache_key(two) != cache_key(four)
