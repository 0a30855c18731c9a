"""Critique and revision (Bai et al. 2022, section 3): what the critic is shown, and what is kept of its answers.

Each step is one question with the request at its end. A small critic answers what it read last: shown the same parts
as a dialogue (request first, as in the paper), SmolLM2-135M criticised its examples instead (docs/log.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.constitution.schema import Constitution, Principle
from pipeline.records import Message, Pool, dialogue_text

TEMPLATE = "critique-1"  # part of every fingerprint; a golden test holds it to the wording below

_SENTENCE_END = re.compile(r"(?<!\d)[.!?…][\"'”’)\]*]*(?=\s|$)")
_ECHO = re.compile(r"\n\s*(?:Request|Reply|Critique|Revision):")


def critique_question(prompt: Sequence[Message], reply: str, principle: Principle) -> str:
    return f"{principle.critique_request}\n\nReply: {reply}\n\nRequest: {dialogue_text(prompt)}"


def revision_question(prompt: Sequence[Message], reply: str, critique: str, principle: Principle) -> str:
    return f"{principle.revision_request}\n\nReply: {reply}\n\nCritique: {critique}\n\nRequest: {dialogue_text(prompt)}"


def critique_examples(constitution: Constitution, pool: Pool, num_examples: int) -> list[Message]:
    """The constitution's first worked examples for a pool, criticised. The same for each of its prompts, so an engine
    reads them once a batch."""
    turns = [Message(role="system", content=constitution.preamble)]
    for example in constitution.examples_for(pool, num_examples):
        prompt = [Message(role="user", content=example.request)]
        question = critique_question(prompt, example.poor_reply, constitution.principle_for(example))
        turns += [Message(role="user", content=question), Message(role="assistant", content=example.critique)]
    return turns


def revision_examples(constitution: Constitution, pool: Pool, num_examples: int) -> list[Message]:
    """The same examples, revised."""
    turns = [Message(role="system", content=constitution.preamble)]
    for example in constitution.examples_for(pool, num_examples):
        prompt = [Message(role="user", content=example.request)]
        principle = constitution.principle_for(example)
        question = revision_question(prompt, example.poor_reply, example.critique, principle)
        turns += [Message(role="user", content=question), Message(role="assistant", content=example.revision)]
    return turns


def tidy(text: str, cut_off: bool) -> str:
    """What is kept of a reply: no echo of our own labels, no sentence said twice, no half sentence at the end.

    Training ends every reply with the end-of-turn token; a reply that ran into its length limit (``cut_off``) is cut
    after its last whole sentence, or the model would learn to stop mid-sentence. Returns "" if nothing is left.
    """
    without_echo = _ECHO.split(text, maxsplit=1)[0]
    echoed = without_echo != text
    text = _until_first_repetition(without_echo)
    return whole_sentences(text) if cut_off and not echoed else text.strip()


def whole_sentences(text: str) -> str:
    """Cut after the last whole sentence ("" if there is none)."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].rstrip() if ends else ""


def _until_first_repetition(text: str) -> str:
    """Cut before the first sentence of four words or more that has stood there already: a loop has begun."""
    seen: set[str] = set()
    start = 0
    for match in _SENTENCE_END.finditer(text):
        sentence = " ".join(text[start : match.end()].casefold().split())
        if sentence in seen and len(sentence.split()) >= 4:
            return text[:start].rstrip()
        seen.add(sentence)
        start = match.end()
    return text
