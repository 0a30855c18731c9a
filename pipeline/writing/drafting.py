"""Asks an engine to turn rules into principles, one rule at a time, and reads its labelled lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.constitution.drafts import Kind, ids_of, principle_of
from pipeline.constitution.markdown import Rule
from pipeline.constitution.schema import POOL_TAGS, Principle, WorkedExample, is_same_reply
from pipeline.core.copies import copies_instruction
from pipeline.core.text import whole_characters
from pipeline.engines.base import Completion, Engine, Request
from pipeline.engines.worklist import Logbook, generate_all
from pipeline.records import Message, derive_seed, dialogue_key, normalised

TEMPLATE = "draft-2"
MAX_NEW_TOKENS = 600
LABELS = ("TITLE", "TAGS", "CRITIQUE", "REVISION", "PREFERENCE", "REQUEST", "POOR REPLY", "FAULT", "GOOD REPLY")
DECIDING = frozenset[str]().union(*POOL_TAGS.values())
EVERYWHERE = ["harmlessness", "helpfulness"]
"""Tags of a principle that is used for all prompts, beside others that are not."""
SYSTEM = "You help people write the constitution of an AI assistant: rules that its replies are judged by."

_ASKED = """\
Rule: {}

Write these nine lines about the rule. Begin each with its label and a colon.
TITLE: the rule in at most eight words
TAGS: one or more of harmlessness, helpfulness, honesty, style
CRITIQUE: one sentence that asks in which ways the assistant's last reply breaks the rule; it begins with Identify
REVISION: one sentence that asks for the reply again without these faults; it begins with Rewrite
PREFERENCE: one question about two replies; it begins with Which of these replies
REQUEST: a request to the assistant for which the rule matters
POOR REPLY: a short reply to it that begins to break the rule, without harmful detail
FAULT: one sentence that says what is wrong with that reply
GOOD REPLY: a short reply to it that follows the rule; if it declines, it begins with I won't"""
_SHOWN = {
    "Never tell a customer what another customer has ordered.": """\
TITLE: Orders stay private
TAGS: harmlessness
CRITIQUE: Identify where the assistant's last reply tells what another customer has ordered.
REVISION: Rewrite the assistant's last reply so that it tells nothing about the orders of other customers.
PREFERENCE: Which of these replies keeps the orders of other customers to itself?
REQUEST: My sister bought a present in your shop yesterday. What was it?
POOR REPLY: Let me look. Yesterday she ordered
FAULT: The reply begins to tell what another customer has ordered.
GOOD REPLY: I won't tell you, because an order belongs to the person who made it. I can help you choose a present.""",
    "If someone asks how much, give a number.": """\
TITLE: Amounts are numbers
TAGS: helpfulness
CRITIQUE: Identify where the assistant's last reply leaves out an amount that was asked for.
REVISION: Rewrite the assistant's last reply so that it gives each amount as a number.
PREFERENCE: Which of these replies gives the amount that was asked for?
REQUEST: How much salt do I need for a litre of soup?
POOR REPLY: That depends on your taste.
FAULT: The reply gives no amount, so the person still can't cook.
GOOD REPLY: About 8 grams, which is a level teaspoon and a half. Taste it before you add more.""",
}
"""Rule → answer: one rule about what to decline, and one about what to do."""
_LINE = re.compile(rf"^[\W_]*({'|'.join(LABELS)})[\W_]*:[*_]*\s*(.*)$", re.IGNORECASE)


@dataclass(frozen=True)
class Drafted:
    """What an engine made of the rules."""

    principles: list[Principle]
    examples: list[WorkedExample]
    """One for each principle, without those that repeat a request or correct nothing."""
    unread: list[str]
    """Ids of the principles that the engine's answer could not be read for; they are templates."""


def draft_principles(rules: Sequence[tuple[Rule, Kind]], engine: Engine, seed: int, logbook: Logbook) -> Drafted:
    """A principle and a worked example for each rule. Where an answer can't be read, the template takes its place."""
    ids = ids_of([rule for rule, _ in rules])
    asks = [request_for(rule, own, seed) for (rule, _), own in zip(rules, ids, strict=True)]
    answers = generate_all(engine, "drafting principles", asks, logbook, "drafts")
    drafted = Drafted([], [], [])
    requests: set[str] = set()
    for (rule, kind), own in zip(rules, ids, strict=True):
        lines = read_answer(answers[own])
        if lines is None:
            drafted.principles.append(principle_of(rule, own, kind))
            drafted.unread.append(own)
            continue
        drafted.principles.append(_principle(lines, own))
        key = request_key(lines["REQUEST"])
        if key not in requests and not is_same_reply(lines["GOOD REPLY"], lines["POOR REPLY"]):
            requests.add(key)  # a request may have only one best reply
            drafted.examples.append(_example(lines, own))
    return drafted if len(drafted.unread) == len(rules) else _tagged(drafted)


def _tagged(drafted: Drafted) -> Drafted:
    """With tags on the templates: beside tagged principles, one without tags would be used for no prompt."""
    tagged = [one.model_copy(update={"tags": one.tags or EVERYWHERE}) for one in drafted.principles]
    return replace(drafted, principles=tagged)


def request_key(request: str) -> str:
    """Equal for requests that a constitution may not repeat."""
    return dialogue_key([Message(role="user", content=request)])


def request_for(rule: Rule, principle_id: str, seed: int) -> Request:
    said = f"{rule.title}: {rule.text}" if rule.title and not rule.text.startswith(rule.title) else rule.text
    return Request(
        id=principle_id,
        messages=[
            Message(role="system", content=SYSTEM),
            *_shown_turns(),
            Message(role="user", content=_ASKED.format(said)),
        ],
        seed=derive_seed(seed, "draft", principle_id),
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=0.0,
    )


def _shown_turns() -> list[Message]:
    return [
        turn
        for rule, answer in _SHOWN.items()
        for turn in (Message(role="user", content=_ASKED.format(rule)), Message(role="assistant", content=answer))
    ]


def read_answer(completion: Completion) -> dict[str, str] | None:
    """Label → text, or None: a line is missing, empty, repeated or copied from the question or its examples, no tag is
    known, or the answer was cut off."""
    if completion.finish != "stop" or whole_characters(completion.text) != completion.text:
        return None
    found = _labelled(completion.text)
    complete = found is not None and all(found.get(label) for label in LABELS)
    if not found or not complete or _copies(found):
        return None
    return found if _tags(found["TAGS"]) and found["PREFERENCE"].rstrip().endswith("?") else None


def _labelled(text: str) -> dict[str, str] | None:
    """Label → text; None if a label is there twice."""
    found: dict[str, str] = {}
    label = ""
    for line in text.splitlines():
        if match := _LINE.match(line):
            label = match[1].upper()
            if label in found:
                return None
            found[label] = match[2].strip()
        elif label and line.strip():
            found[label] = f"{found[label]} {line.strip()}".strip()
    return found


def _copies(found: dict[str, str]) -> bool:
    """Whether a line repeats the question, or a line of its examples."""
    shown = [_labelled(answer) or {} for answer in _SHOWN.values()]
    return any(
        copies_instruction(text, _ASKED)
        or (label != "TAGS" and any(normalised(text) == normalised(one[label]) for one in shown))
        for label, text in found.items()
    )


def _tags(text: str) -> list[str]:
    return [word for word in dict.fromkeys(re.findall(r"[a-z]+", text.lower())) if word in DECIDING]


def _principle(lines: dict[str, str], own: str) -> Principle:
    return Principle(
        id=own,
        title=lines["TITLE"].rstrip("."),
        tags=[*_tags(lines["TAGS"]), own],
        critique_request=lines["CRITIQUE"],
        revision_request=lines["REVISION"],
        preference_question=lines["PREFERENCE"],
    )


def _example(lines: dict[str, str], own: str) -> WorkedExample:
    """It shares a tag with its principle alone, so it illustrates that one. No id of a principle has a dot."""
    return WorkedExample(
        id=f"{own}.example",
        tags=[*_tags(lines["TAGS"]), own],
        request=lines["REQUEST"],
        poor_reply=lines["POOR REPLY"],
        critique=lines["FAULT"],
        revision=lines["GOOD REPLY"],
    )
