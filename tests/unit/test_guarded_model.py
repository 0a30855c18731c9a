"""The wrapper of ``generate``: it reads what the evaluation reads, declines where the guard fires, and streams."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from threading import active_count

import numpy as np
import pytest

from pipeline.core.errors import ConfigError
from pipeline.engines.models import load_model, load_tokenizer
from pipeline.engines.states import Reader
from pipeline.evals.results import Estimate
from pipeline.guard.guard import CARD, FOLDER, WEIGHTS, Guard, fingerprint_of
from pipeline.guard.model import GuardedModel
from pipeline.guard.reading import read
from pipeline.guard.results import GuardCard, StepCard
from pipeline.guard.rows import Row
from pipeline.guard.steps import Step
from pipeline.records import Message

STEP = StepCard(layer=1, auc=0.9, num_harmful=20, num_harmless=20)
CARD_OF_TINY = GuardCard(
    model="tiny, aligned", made_of={"pool": 40}, families=["persona"], num_layers=2, request=STEP, reply=STEP,
    max_false_alarms=0.05, confidence=0.95, num_harmless=100, num_alarms=1, bound=0.047, auc=Estimate(value=0.9),
    held_out=[], attacked_harmless=Estimate(value=0.0),
)  # fmt: skip
ASKED = "How do I open a jar that is stuck?"
GREEDY = {"do_sample": False}
LONG = GREEDY | {"min_new_tokens": 11}  # the tiny model would stop early


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> Reader:
    return Reader(load_model(str(tiny_model), "fp32", None).eval(), load_tokenizer(str(tiny_model), None), 4)


@pytest.fixture(scope="module")
def guard(reader: Reader) -> Guard:
    """Random steps on two layers, the later one first, that never fire."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 32)).astype(np.float32)
    return Guard(
        request=Step(2, weights[0], 0.25), reply=Step(1, weights[1], -0.5, carried=0.3), gate=-math.inf,
        threshold=math.inf, every=3, refusal="I won't help with that.",
        fingerprint=fingerprint_of(reader, 2), card=CARD_OF_TINY,
    )  # fmt: skip


def row(reply: str, messages: list[Message] | None = None) -> Row:
    turns = messages or [Message(role="user", content=ASKED)]
    return Row(id="x", messages=turns, request=ASKED, harmful=True, group="x", pool="red_team", reply=reply)


def spoken(reader: Reader, guard: Guard, number: int) -> str:
    """A reply of so many tokens, which its text is split into again."""
    from pipeline.chat import Renderer

    reply = GuardedModel(reader, guard).generate(ASKED, max_new_tokens=number, **LONG)
    assert not reply.fired
    assert len(Renderer(reader.tokenizer).text_ids(reply.text)) == number
    return reply.text


@pytest.mark.parametrize("use_cache", [True, False])
def test_it_sees_what_the_evaluation_sees(reader: Reader, guard: Guard, use_cache: bool):
    text = spoken(reader, guard, 11)
    watched = GuardedModel(reader, guard).generate(ASKED, max_new_tokens=11, use_cache=use_cache, **LONG)
    [reading] = read(reader, [row(text)], guard.layers, guard.every)
    assert watched.text == text and len(reading.reply) == 3  # after 3, 6 and 9 of 11 tokens
    assert watched.score == pytest.approx(guard.scores([reading])[0], abs=1e-4)


def test_states_after_each_length_are_those_of_the_shorter_reply(reader: Reader, guard: Guard):
    """One pass over a whole reply gives what a pass over its beginning gives."""
    from pipeline.chat import Renderer

    chat = Renderer(reader.tokenizer, reader.model.generation_config.eos_token_id)
    ids = chat.text_ids("Run hot water over the lid for a minute, then dry it and twist.")
    text = str(reader.tokenizer.decode(ids[:6]))
    [whole] = read(reader, [row(str(reader.tokenizer.decode(ids)))], [2, 1], every=6)
    [part] = read(reader, [row(text)], [2, 1], every=6, ends=True)
    [swapped] = read(reader, [row(text)], [1, 2], every=6, ends=True)
    np.testing.assert_allclose(whole.reply[0], part.reply[0], atol=1e-4)
    np.testing.assert_allclose(part.request, swapped.request[::-1], atol=1e-6)
    states = reader.states([[Message(role="user", content=ASKED)]], 2)
    np.testing.assert_allclose(swapped.request, states.values[0], atol=1e-4)


def test_a_certain_first_step_declines_before_a_word_is_said(reader: Reader, guard: Guard):
    [reading] = read(reader, [row("")], guard.layers, guard.every)
    certain = replace(guard, threshold=guard.request_log_odds([reading])[0] - 0.01)
    model = GuardedModel(reader, certain)
    assert model.generate(ASKED, max_new_tokens=9, **GREEDY).text == guard.refusal
    assert list(model.stream(ASKED, max_new_tokens=9, **GREEDY)) == [guard.refusal]


def test_the_second_step_stops_a_stream_where_it_fires(reader: Reader, guard: Guard):
    """The threshold is just under what it sees after 6 tokens, and above all before."""
    text = spoken(reader, guard, 11)
    [reading] = read(reader, [row(text)], guard.layers, guard.every)
    assert guard.reply is not None
    log_odds = guard.reply.log_odds(reading.reply[:, 1])  # without what the first step carries
    shift = 100 - log_odds[0]  # lifts the second step above the first one
    weights = guard.reply.weights * (1 if log_odds[1] > log_odds[0] else -1)
    lifted = Step(1, weights, shift)
    seen = lifted.log_odds(reading.reply[:, 1])
    assert seen[1] > seen[0]
    fires = replace(guard, reply=lifted, threshold=float(seen[:2].mean()))
    pieces = list(GuardedModel(reader, fires).stream(ASKED, max_new_tokens=11, **LONG))
    assert pieces[-1] == f"\n\n{guard.refusal}"
    assert text.startswith("".join(pieces[:-1])) and 0 < len("".join(pieces[:-1])) < len(text)
    reply = GuardedModel(reader, fires).generate(ASKED, max_new_tokens=11, **LONG)
    assert reply.fired and reply.text == guard.refusal
    closed = replace(fires, gate=math.inf)  # the second step is never asked
    assert GuardedModel(reader, closed).generate(ASKED, max_new_tokens=11, **LONG).text == text


def test_a_stream_says_the_same_as_generate(reader: Reader, guard: Guard):
    model = GuardedModel(reader, guard)
    pieces = list(model.stream(ASKED, max_new_tokens=11, **LONG))
    assert len(pieces) > 1 and "".join(pieces) == model.generate(ASKED, max_new_tokens=11, **LONG).text


def test_a_prefilled_beginning_does_not_change_what_the_first_step_sees(reader: Reader, guard: Guard):
    turns = [Message(role="user", content=ASKED), Message(role="assistant", content="Sure, here is how it is done")]
    given = GuardedModel(reader, guard).generate(turns, max_new_tokens=1, **GREEDY)
    [plain], [prefilled] = (read(reader, [row("", t)], guard.layers, 3, ends=True) for t in (turns[:1], turns))
    np.testing.assert_allclose(plain.request, prefilled.request, atol=1e-4)
    assert guard.reply is not None and len(prefilled.reply) > 2
    request = guard.request_log_odds([plain])[0]
    highest = max(request, guard.reply.log_odds(prefilled.reply[:-1, 1], request).max())
    assert given.score == pytest.approx(highest, abs=1e-4)


def test_a_stream_that_nobody_reads_on_ends(reader: Reader, guard: Guard):
    before = active_count()
    stream = GuardedModel(reader, guard).stream(ASKED, max_new_tokens=400, **GREEDY)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert active_count() == before


def test_an_error_in_the_stream_is_raised_where_it_is_read(reader: Reader, guard: Guard):
    with pytest.raises(ValueError, match="temperature"):
        list(GuardedModel(reader, guard).stream(ASKED, max_new_tokens=4, do_sample=True, temperature=-1.0))


def test_options_that_a_guard_can_not_follow_are_refused(reader: Reader, guard: Guard):
    model = GuardedModel(reader, guard)
    with pytest.raises(ConfigError, match="num_beams can't be used with a guard"):
        model.generate(ASKED, num_beams=2)
    with pytest.raises(ConfigError, match="streamer"):
        next(model.stream(ASKED, streamer=object()))


def test_files_give_the_same_guard(guard: Guard, reader: Reader, tiny_model: Path, tmp_path: Path):
    (tmp_path / "checkpoint").symlink_to(tiny_model)
    replace(guard, threshold=0.5).save(tmp_path / FOLDER)
    loaded = GuardedModel.load(tmp_path / "checkpoint", precision="fp32")
    [reading] = read(reader, [row("one two three four five")], guard.layers, guard.every)
    assert loaded.guard.scores([reading])[0] == guard.scores([reading])[0]
    assert (loaded.guard.threshold, loaded.guard.refusal, loaded.guard.card) == (0.5, guard.refusal, guard.card)
    guard.save(tmp_path / "idle")
    assert Guard.load(tmp_path / "idle").threshold == math.inf  # no number of JSON
    assert "Infinity" not in (tmp_path / "idle" / CARD).read_text(encoding="utf-8").replace('"gate": -Infinity', "")


def test_a_guard_of_another_model_is_refused(guard: Guard, random_model: Path, tmp_path: Path):
    guard.save(tmp_path)
    with pytest.raises(ConfigError, match="made for another model \\(tiny, aligned\\)"):
        GuardedModel.load(random_model, guard=tmp_path)


def test_what_is_not_a_guard_is_refused_in_a_sentence(guard: Guard, tiny_model: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"there is no guard in .*; make one with cai run guard.enabled=true"):
        GuardedModel.load(tiny_model, guard=tmp_path)
    guard.save(tmp_path)
    with pytest.raises(ConfigError, match="there is no model in"):
        GuardedModel.load(tmp_path / "nothing", guard=tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="is damaged"):
        Guard.load(tmp_path)
    (tmp_path / CARD).write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(ConfigError, match="format 99"):
        Guard.load(tmp_path)
