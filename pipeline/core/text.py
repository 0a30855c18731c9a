"""Text as it comes in."""

from __future__ import annotations


def whole_characters(text: str) -> str:
    """Replace NUL and half characters (lone surrogates, which no file can hold) by U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
