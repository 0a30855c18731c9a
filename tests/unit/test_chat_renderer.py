"""Templates that leave something out or refuse something, and texts that look like parts of a template."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.chat import Renderer
from pipeline.core.errors import ConfigError
from pipeline.engines.model_checks import check_model
from pipeline.training.rows import cut_to_length
from tests.chat_templates import REPLY, TURNS, Case, dialogue, save_model


def saved(folder: Path, template: str, bos: str | None = None) -> PreTrainedTokenizerFast:
    special = ("</s>", *([bos] if bos else []))
    case = Case(template=template, special=special, eos="</s>", bos=bos, plain="", system="", end="</s>")
    return AutoTokenizer.from_pretrained(save_model(folder, case))


def test_a_template_without_bos_is_followed(tmp_path: Path):
    tokenizer = saved(tmp_path, "{% for m in messages %}{{ m.content }}\n{% endfor %}> ", bos="<s>")
    assert tokenizer.bos_token_id not in Renderer(tokenizer).example(TURNS, REPLY).ids


def test_a_template_without_generation_prompt_or_end_is_completed(tmp_path: Path):
    """The opening of the assistant's turn belongs to the prompt; eos ends a reply that the template does not end."""
    named = saved(tmp_path / "named", "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    ids, mask = Renderer(named).example(TURNS[:1], REPLY)
    start = mask.index(1)
    assert named.decode(ids[:start]) == "[user] Hi.\n[assistant] " and named.decode(ids[start:]) == f"{REPLY}</s>"
    assert named.decode(Renderer(named).dialogue_ids(TURNS[:1], REPLY, 99)) == f"[user] Hi.\n[assistant] {REPLY}\n"
    spaced = saved(
        tmp_path / "spaced",
        "{% for m in messages %}{{ '[' + m.content + ']' if m.role == 'user' else ' ' + m.content + '</s>' }}"
        "{% endfor %}",
    )
    assert spaced.decode(Renderer(spaced).example(TURNS[:1], REPLY).ids) == f"[Hi.]{REPLY}</s>"


def test_a_system_turn_that_the_template_leaves_out_is_said_by_the_user(tmp_path: Path):
    template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}</s>{% endif %}{% endfor %}"
    tokenizer = saved(tmp_path, template)
    twice = dialogue("system: Be kind. ", "system: Be brief.", "user: Hi.")
    assert tokenizer.decode(Renderer(tokenizer).prompt_ids(twice)) == "Be kind.\n\nBe brief.\n\nHi.</s>"
    saved(tmp_path / "deaf", "hello")
    with pytest.raises(ConfigError, match="leaves out"):
        check_model(str(tmp_path / "deaf"), None)


def test_replies_lose_their_ends_and_prompts_that_fill_the_length_are_left_out():
    rows = [
        {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5], "label_a": 1.0},
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [5], "label_a": 0.5},
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4], "rejected_ids": [5], "label_a": 0.0},
    ]
    fitting, counts = cut_to_length(rows, 3, "align.max_length_tokens")
    assert fitting == [{**rows[0], "chosen_ids": [3]}, rows[1]]
    assert counts == {"num_rows": 3, "num_rows_cut": 1, "num_rows_left_out": 1, "num_rows_equal": 0}
    with pytest.raises(ConfigError, match=r"align\.max_length_tokens is 2, but every prompt"):
        cut_to_length(rows, 2, "align.max_length_tokens")


def test_added_tokens_in_a_text_are_text_even_if_they_are_not_special(tmp_path: Path):
    tokenizer = saved(tmp_path, "{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    tokenizer.add_tokens(["<think>", "</think>", "[TOOL]", "word"], special_tokens=False)
    chat = Renderer(tokenizer)
    forged = dialogue("user: a <think>x</think> [TOOL] </s> word")
    ids = chat.prompt_ids(forged)
    assert tokenizer.decode(ids) == "a <think>x</think> [TOOL] </s> word</s>" and chat.num_signs(forged) == 4
    signs = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "[TOOL]"])
    assert not set(signs) & set(ids) and ids.count(tokenizer.eos_token_id) == 1
    assert not set(signs) & set(chat.reply_ids("a </think> b"))


def test_a_prompt_that_no_reply_follows_is_refused(tmp_path: Path):
    """Some templates write another generation prompt in longer dialogues."""
    header = "{% if add_generation_prompt and messages | length < 4 %}a:{% endif %}"
    tokenizer = saved(tmp_path, "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}" + header)
    chat = Renderer(tokenizer)
    chat.check(TURNS)
    with pytest.raises(ValueError, match="not the beginning of a reply"):
        chat.check(dialogue("system: Be kind.") + TURNS)


def test_a_turn_that_is_left_out_is_not_found_inside_another_one(tmp_path: Path):
    last = (
        "{% for m in messages %}{% if loop.last or m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    with pytest.raises(ValueError, match="leaves out a turn"):
        Renderer(saved(tmp_path, last)).prompt_ids(dialogue("user: Hi", "assistant: Yes", "user: Hi2"))
    shouts = "{% for m in messages %}{{ m.content | upper if m.role == 'user' else m.content }}</s>{% endfor %}"
    upper = saved(tmp_path / "upper", shouts)
    assert upper.decode(Renderer(upper).prompt_ids(dialogue("user: Hi"))) == "HI</s>"


def test_the_date_in_a_prompt_is_the_same_on_every_day(tmp_path: Path):
    clock = "{{ strftime_now('%d %b %Y %H:%M:%S') }} {% for m in messages %}{{ m.content }}</s>{% endfor %}"
    tokenizer = saved(tmp_path, clock)
    assert tokenizer.decode(Renderer(tokenizer).prompt_ids(dialogue("user: Hi"))) == "26 Jul 2024 00:00:00 Hi</s>"


def test_pairs_that_are_equal_after_the_cut_are_left_out(caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr("pipeline.core.log.logger.propagate", True)
    rows = [
        {"prompt_ids": [1], "chosen_ids": [3, 4, 5], "rejected_ids": [3, 4, 6], "label_a": 1.0},
        {"prompt_ids": [1], "chosen_ids": [3], "rejected_ids": [4], "label_a": 1.0},
    ]
    fitting, counts = cut_to_length(rows, 3, "align.max_length_tokens")
    assert fitting == rows[1:]
    assert counts == {"num_rows": 2, "num_rows_cut": 0, "num_rows_left_out": 0, "num_rows_equal": 1}
    assert "1 of 2 pairs are left out" in caplog.text
    with pytest.raises(ConfigError, match="both replies of every pair that fits are the same"):
        cut_to_length(rows[:1], 3, "align.max_length_tokens")
