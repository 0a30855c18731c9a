"""Critique and revision (Bai et al. 2022, section 3): the critic's prompts, and cleaning its answers.

Each step is one question that ends with the request, because a small critic answers the text that it read last. With
the request first, as in the paper, SmolLM2-135M criticised its examples instead (docs/log.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.constitution.schema import Constitution, Principle
from pipeline.core.text import sentence_ends, words
from pipeline.records import Message, Pool, dialogue_text

TEMPLATE = "critique-1"  # part of the cache key; a golden test fails if the wording below changes without it

_ECHO = re.compile(r"\n\s*(?:Request|Reply|Critique|Revision):")


def critique_question(prompt: Sequence[Message], reply: str, principle: Principle) -> str:
    return f"{principle.critique_request}\n\nReply: {reply}\n\nRequest: {dialogue_text(prompt)}"


def revision_question(prompt: Sequence[Message], reply: str, critique: str, principle: Principle) -> str:
    return f"{principle.revision_request}\n\nReply: {reply}\n\nCritique: {critique}\n\nRequest: {dialogue_text(prompt)}"


def critique_examples(constitution: Constitution, pool: Pool, num_examples: int) -> list[Message]:
    """The system turn, then question and critique for each of the first worked examples for a pool. All prompts of a
    pool share these turns, so an engine computes this prefix once per batch."""
    turns = [Message(role="system", content=constitution.preamble)]
    for example in constitution.examples_for(pool, num_examples):
        prompt = [Message(role="user", content=example.request)]
        question = critique_question(prompt, example.poor_reply, constitution.principle_for(example))
        turns += [Message(role="user", content=question), Message(role="assistant", content=example.critique)]
    return turns


def revision_examples(constitution: Constitution, pool: Pool, num_examples: int) -> list[Message]:
    """The system turn, then question and revision for the same examples."""
    turns = [Message(role="system", content=constitution.preamble)]
    for example in constitution.examples_for(pool, num_examples):
        prompt = [Message(role="user", content=example.request)]
        principle = constitution.principle_for(example)
        question = revision_question(prompt, example.poor_reply, example.critique, principle)
        turns += [Message(role="user", content=question), Message(role="assistant", content=example.revision)]
    return turns


def tidy(text: str, cut_off: bool) -> str:
    """Clean a reply: cut it at an echo of the prompt's labels and at the first repeated sentence.

    If the reply reached its length limit (``cut_off``), cut it after its last whole sentence. Otherwise the model would
    learn to stop in the middle of a sentence. Returns "" if nothing is left.
    """
    without_echo = _ECHO.split(text, maxsplit=1)[0]
    echoed = without_echo != text
    text = _until_first_repetition(without_echo)
    return whole_sentences(text) if cut_off and not echoed else text.strip()


def whole_sentences(text: str) -> str:
    """Cut after the last whole sentence ("" if there is none)."""
    ends = sentence_ends(text)
    return text[: ends[-1]].rstrip() if ends else ""


def _until_first_repetition(text: str) -> str:
    """Cut before the first repeated sentence of at least four words, which is a sign of a loop."""
    seen: set[tuple[str, ...]] = set()
    start = 0
    for end in sentence_ends(text):
        sentence = tuple(words(text[start:end]))
        if sentence in seen and len(sentence) >= 4:
            return text[:start].rstrip()
        seen.add(sentence)
        start = end
    return text
