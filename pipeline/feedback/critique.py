"""Critique and revision (Bai et al. 2022, section 3): what the critic is shown, and what is kept of its answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.constitution import Constitution, Principle
from pipeline.records import Message

TEMPLATE = "critique-1"  # part of every fingerprint; a golden test holds it to the wording below

_SENTENCE_END = re.compile(r"(?<!\d)[.!?…][\"'”’)\]*]*(?=\s|$)")


def few_shot(constitution: Constitution, num_examples: int) -> list[Message]:
    """The constitution's first worked examples as turns, under its preamble. The same for every prompt, so an engine
    computes it once a batch."""
    turns = [Message(role="system", content=constitution.preamble)]
    for example in constitution.worked_examples[:num_examples]:
        principle = constitution.principle_for(example)
        turns += critique_turns([Message(role="user", content=example.request)], example.poor_reply, principle)
        turns += revision_turns(example.critique, principle)
        turns.append(Message(role="assistant", content=example.revision))
    return turns


def critique_turns(prompt: Sequence[Message], reply: str, principle: Principle) -> list[Message]:
    """Prompt, the reply under scrutiny, and the request to criticise it."""
    return [
        *prompt,
        Message(role="assistant", content=reply),
        Message(role="user", content=principle.critique_request),
    ]


def revision_turns(critique: str, principle: Principle) -> list[Message]:
    """What follows ``critique_turns``: the critique and the request to revise."""
    return [
        Message(role="assistant", content=critique),
        Message(role="user", content=principle.revision_request),
    ]


def whole_sentences(text: str) -> str:
    """Cut a reply that ran into its length limit after its last whole sentence ("" if there is none).

    Training ends every reply with the end-of-turn token; without this the model would learn to stop mid-sentence.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].rstrip() if ends else ""
