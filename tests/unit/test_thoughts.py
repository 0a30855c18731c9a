"""Thoughts are cut off replies."""

from __future__ import annotations

import pytest

from pipeline.engines.thoughts import without_thoughts


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        (" No <b>tags</b> at all. ", " No <b>tags</b> at all. "),
        ("<think>\nHmm.\n</think>\n\nSure.", "Sure."),
        ("<thinking>a</thinking>Sure. <thought>b</thought>", "Sure."),
        ("<REASONING>a</REASONING> Sure.", "Sure."),
        ("[THINK]a[/THINK]Sure.", "Sure."),
        ("<think>a <think>b</think> c</think> Sure.", "Sure."),
        ("The template opened it.\n</think>\n\nSure.", "Sure."),
        ("<think></think>", ""),
        ("<think>\nIt never ends", ""),
        ("I begin.\n [THINK]It never ends", ""),
        ("<think>a</think><think>It never ends", ""),
        ("Write `<think>` before a thought.", "Write `<think>` before a thought."),
        ("", ""),
    ],
)
def test_only_the_reply_is_left(text: str, reply: str):
    assert without_thoughts(text) == reply
