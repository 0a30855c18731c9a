"""A dialogue as plain text, for showing it inside a question."""

from collections.abc import Sequence

from pipeline.records import Message

_NAMES = {"user": "Person", "assistant": "Assistant", "system": "Instructions"}


def dialogue_text(messages: Sequence[Message]) -> str:
    """One turn a paragraph, each with its speaker; a lone request stands by itself."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{_NAMES[turn['role']]}: {turn['content']}" for turn in messages)
