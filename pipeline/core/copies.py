"""Signs that a small model did not answer: it copies what it was asked, or repeats itself."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from pipeline.core.text import words

_ABOUT_WORDING = re.compile(
    r"\b(?:summar|rewrite|reword|rephrase|shorten|correct|proofread|edit|translate|spell|repeat|fix|improve|title)",
    re.IGNORECASE,
)
_LEADS_IN = re.compile(
    r"^\W*(?:here(?:['’]s| is| are)|to \w+ (?:a|an|the|this|your)|sure|certainly|of course)\b", re.IGNORECASE
)
_ENDS = re.compile(r"[.!?…。！？؟।]\W*$")
LONG_WORDS = 20


def repeats_request(text: str, request: str) -> bool:
    """Whether the reply only echoes the request, as small models do when they are asked to decode a text. A sentence
    that leads in to an answer, or a long one that was cut, does not say that nothing more would come."""
    said, asked = words(text), set(words(request))
    if _LEADS_IN.match(text) or (len(said) >= LONG_WORDS and not _ENDS.search(text)):
        return False
    num_echoed = sum(word in asked for word in said)
    long_enough = len(said) >= 5 and len(asked) <= 1.5 * len(said)
    about_a_text = _ABOUT_WORDING.search(request) or re.search(r"[\"“]", request)
    return long_enough and num_echoed >= 0.85 * len(said) and not about_a_text


def longest_common_run(first: str, second: str) -> int:
    """The number of words in the longest run that both texts contain."""
    matcher = SequenceMatcher(None, words(first), words(second), autojunk=False)
    return matcher.find_longest_match().size


def copies_instruction(text: str, instruction: str) -> bool:
    """Whether a text has five words in a row of what was asked, as in "rewrite the reply so that"."""
    return longest_common_run(text, instruction) >= 5


def repeats_itself(reply: str, most: float = 0.3) -> bool:
    """Whether more than ``most`` (a fraction) of the 4-grams repeat earlier ones; False for short replies."""
    return repeated_share(reply) > most


def repeated_share(reply: str, size: int = 4) -> float:
    """The fraction of ``size``-grams that occurred earlier in the reply; 0 if there are fewer than eight."""
    tokens = words(reply)
    grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) >= 8 else 0.0
