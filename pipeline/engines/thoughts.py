"""Thoughts that a model writes before its reply."""

from __future__ import annotations

import re

from pipeline.chat import THOUGHT_TAGS

_PAIRS = [(re.escape(begin), re.escape(end)) for begin, end in THOUGHT_TAGS]
_WHOLE = re.compile("|".join(f"{begin}.*?{end}" for begin, end in _PAIRS), re.DOTALL | re.IGNORECASE)
_CLOSED = re.compile(f".*(?:{'|'.join(end for _, end in _PAIRS)})", re.DOTALL | re.IGNORECASE)
_OPENED = re.compile(rf"^[ \t]*(?:{'|'.join(begin for begin, _ in _PAIRS)})", re.MULTILINE | re.IGNORECASE)


def without_thoughts(text: str) -> str:
    """Cut the thoughts off a reply, and the blanks around the rest. A text without tags is returned unchanged.

    Thoughts stand between the tags of ``THOUGHT_TAGS``. If only the closing tag is there, because the template wrote
    the opening one, everything before it is cut. If thoughts begin on a line and never end, the model did not come to
    its reply: the result is ``""``.
    """
    kept = _CLOSED.sub("", _WHOLE.sub("", text))
    if _OPENED.search(kept):
        return ""
    return text if kept == text else kept.strip()
