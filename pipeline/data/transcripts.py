"""hh-rlhf transcripts: one string with "\\n\\nHuman:" or "\\n\\nAssistant:" before each turn."""

import re

from pipeline.records import Message

# A turn starts only at a blank line followed by one of the two names; blank lines and colons inside a turn are text.
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: str) -> list[Message]:
    """Split a transcript into turns. Consecutive turns of one speaker are joined, and empty ones are dropped.

    Raises:
        ValueError: the text does not begin with a turn.
    """
    parts = _TURN.split("\n\n" + text.replace("\r\n", "\n").lstrip("\n"))
    if parts[0].strip() or len(parts) < 3:
        raise ValueError("no 'Human:' or 'Assistant:' turn at the beginning")
    turns: list[Message] = []
    for name, content in zip(parts[1::2], parts[2::2], strict=True):
        role, content = _ROLES[name], content.strip()
        if not content:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + content
        else:
            turns.append(Message(role=role, content=content))
    return turns


def up_to_last_request(turns: list[Message]) -> list[Message]:
    """The prompt of a dialogue: all turns up to the last one of the person."""
    last = max((index for index, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    return turns[: last + 1]
