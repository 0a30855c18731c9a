"""Dialogues as lists of turns, in the layouts of chat data sets."""

from __future__ import annotations

from typing import Any

from pipeline.core.json_text import parse_json
from pipeline.records import Message

# How data sets call the speakers: OpenAI and TRL, then ShareGPT.
_ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
}


def is_dialogue(value: Any) -> bool:
    """Whether a value is like turns: a list of ``{role, content}`` or of ShareGPT's ``{from, value}``, or this as JSON
    text, as a table has it."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError:
            return False
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and _named(turn) for turn in value)


def parse_turns(value: Any) -> list[Message]:
    """The turns of a dialogue, given as a list or as JSON text. Turns without text are dropped.

    Raises:
        ValueError: it is not a list of turns, or one of them has another speaker or no text.
    """
    turns = parse_json(value) if isinstance(value, str) else value
    if not isinstance(turns, list):
        raise ValueError("is not a list of {role, content} turns")
    messages = [_message(number, turn) for number, turn in enumerate(turns, start=1)]
    return [message for message in messages if message["content"]]


def _message(number: int, turn: Any) -> Message:
    names = _named(turn) if isinstance(turn, dict) else None
    if names is None:
        raise ValueError(f"has a turn that is not {{role, content}}: turn {number} is {str(turn)[:60]}")
    role, content = turn[names[0]], turn[names[1]]
    if role not in _ROLES:
        raise ValueError(f"has a turn of {role!r} (turn {number}); only {', '.join(_ROLES)} are known")
    if not isinstance(content, str):
        raise ValueError(f"has a turn without text (turn {number}, of {role!r}); give text or remove the row")
    return Message(role=_ROLES[role], content=content.strip())


def _named(turn: dict[str, Any]) -> tuple[str, str] | None:
    """The keys of the speaker and of the text."""
    pairs = (("role", "content"), ("from", "value"))
    return next((pair for pair in pairs if turn.keys() >= set(pair)), None)
