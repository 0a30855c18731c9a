"""Properties of a reply's wording: equal openings, repetition, word salad, filler and hard words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pipeline.core.text import sentences, words

OPENING_WORDS = 8


def opening(reply: str) -> str:
    """The first ``OPENING_WORDS`` words, or all if there are fewer."""
    return " ".join(words(reply)[:OPENING_WORDS])


def commonest(openings: Sequence[str]) -> tuple[str, int]:
    """The most common opening that is not empty, and its number; ("", 0) if there is none."""
    known = Counter(filter(None, openings))
    return known.most_common(1)[0] if known else ("", 0)


# An article before a word that cannot follow it in English.
_NO_ENGLISH = re.compile(
    r"\b(?:the|a|an) (?:the|a|an|of|to|for|with|from|by|and|or|but|because|which|it|he|she|him|they|is|was|were|are|be|"
    r"had|has|have)\b"
)


def is_word_salad(reply: str) -> bool:
    """Whether at least two articles come before a wrong word ("the of", "a because"), as in incoherent replies."""
    return len(_NO_ENGLISH.findall(" ".join(words(reply)))) >= 2


def distinct_ngrams(replies: Sequence[str], size: int = 2) -> float:
    """Distinct-n (Li et al. 2016, arXiv 1510.03055): different n-grams divided by n-grams, over all replies."""
    grams = [tuple(tokens[i : i + size]) for tokens in map(words, replies) for i in range(len(tokens) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


# English phrases that could go without any loss: greetings, praise, announcements and closing offers.
_FILLER = re.compile(
    r"\b(?:(?:great|good|excellent) question|(?:i'm|i am|i'd be|i would be) (?:so )?(?:happy|glad|here) to help|"
    r"thank you for (?:asking|reaching|your)|i hope (?:this|that|it) helps|let me know if|feel free to|"
    r"don't hesitate to|if you have any (?:other |more |further )?questions|"
    r"it(?:'s| is) (?:also )?(?:important|worth|essential|crucial) (?:to|that|noting)|"
    r"here (?:are|is) (?:a few|some|a list)|in (?:conclusion|summary)|as an ai\b)"
)
_FILLER_FIRST = re.compile(r"\W*(?:certainly|absolutely|of course|sure|hello|hi)\b")


def has_filler(reply: str) -> bool:
    """Whether a reply has one of a few English phrases that say nothing, such as "great question" or "Sure, …"."""
    text = reply.casefold().replace("’", "'")
    return bool(_FILLER.search(text) or _FILLER_FIRST.match(text))


def lix(reply: str) -> float:
    """LIX (Björnsson 1968): words per sentence + 100 × the share of words longer than six characters; 0 if empty.

    About 25 is a children's book, 40 a newspaper and 55 a legal text. It is made for languages that write spaces.
    """
    mine = words(reply)
    if not mine:
        return 0.0
    return len(mine) / len(sentences(reply)) + 100 * sum(len(word) > 6 for word in mine) / len(mine)
