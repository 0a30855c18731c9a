"""Replies whose beginning is given: the tokens that follow it, and beginnings that end inside a character."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.chat import Renderer
from pipeline.core.text import joined
from pipeline.engines.base import Weights
from pipeline.engines.models import load_tokenizer
from pipeline.explain.prefilling import _Cutter

BEGUN, REST = "Sure, here is", "how to do it"


@pytest.fixture(scope="module")
def chat(tiny_model: Path) -> Renderer:
    return Renderer(load_tokenizer(str(tiny_model), None), None)


def test_what_follows_is_encoded_with_the_space_that_the_engine_cut_off(chat: Renderer):
    assert chat.text_ids(BEGUN) + chat.continued_ids(BEGUN, REST) == chat.text_ids(f"{BEGUN} {REST}")
    assert chat.continued_ids(BEGUN, REST) != chat.text_ids(REST), "the first word is another token after a space"
    assert chat.continued_ids("", REST) == chat.text_ids(REST)


def test_no_space_is_put_where_there_is_one_or_before_a_sign():
    assert joined("Sure. ", "How") == "Sure. How" and joined("Sure", ", here") == "Sure, here"
    assert joined("", "How") == "How" and joined("Sure", "how") == "Sure how"


def test_a_beginning_does_not_end_inside_a_character(tiny_model: Path):
    reply = "Ждём 日本語 soon"
    cutter = _Cutter(Weights(path=str(tiny_model), revision=None, precision="fp32", name="base"))
    for count in range(1, cutter.num_tokens(reply)):
        assert reply.startswith(cutter.first_tokens(reply, count)), count
    assert cutter.first_tokens(reply, cutter.num_tokens(reply)) == reply
