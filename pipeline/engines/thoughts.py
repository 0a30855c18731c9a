"""Thoughts that a model writes before its reply."""

from __future__ import annotations

import re

_NAMES = "think|thinking|thought|reasoning"
_WHOLE = re.compile(rf"(?i:<({_NAMES})>.*?</\1>)|\[THINK\].*?\[/THINK\]", re.DOTALL)
_CLOSED = re.compile(rf"(?i:.*</(?:{_NAMES})>)|.*\[/THINK\]", re.DOTALL)
_OPENED = re.compile(rf"^[ \t]*(?:(?i:<(?:{_NAMES})>)|\[THINK\])", re.MULTILINE)


def without_thoughts(text: str) -> str:
    """Cut the thoughts off a reply, and the blanks around the rest. A text without tags is returned unchanged.

    Thoughts stand between ``<think>`` and ``</think>`` (or thinking, thought, reasoning), or between ``[THINK]`` and
    ``[/THINK]``. If only the closing tag is there, because the template wrote the opening one, everything before it is
    cut. If thoughts begin on a line and never end, the model did not come to its reply: the result is ``""``.
    """
    kept = _CLOSED.sub("", _WHOLE.sub("", text))
    if _OPENED.search(kept):
        return ""
    return text if kept == text else kept.strip()
