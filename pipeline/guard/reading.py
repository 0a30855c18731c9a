"""The aligned model's states at the end of each request, and at ends of the reply so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.guard.rows import Row, split_reply

if TYPE_CHECKING:
    from pipeline.chat import Renderer
    from pipeline.engines.states import Reader


@dataclass(frozen=True)
class Reading:
    """States of one row; NaN if it does not fit the context or a number is too large for the precision."""

    request: NDArray[np.float32]
    """(layers, hidden), before the first token of a reply: what an attack prefills can't change it."""
    reply: NDArray[np.float32]
    """(checks, layers, hidden), after every so many tokens of the reply, with what an attack prefilled."""

    @property
    def usable(self) -> bool:
        return bool(np.isfinite(self.request).all() and np.isfinite(self.reply).all())


def read(reader: Reader, rows: Sequence[Row], layers: Sequence[int], every: int, ends: bool = False) -> list[Reading]:
    """Read the states of a model that is loaded.

    Args:
        layers: numbers of layers, from 1.
        every: the tokens between two checks of a reply.
        ends: also check the last token of each reply, for learning. (While a model writes, a check sees only tokens
            that another token follows.)

    Raises:
        NotMeasuredError: the model has no list of layers, or the device ran out of memory.
    """
    from pipeline.chat import Renderer
    from pipeline.engines.places import states_at
    from pipeline.engines.states import memory_errors

    chat = Renderer(reader.tokenizer, reader.model.generation_config.eos_token_id)
    tokens = [row_tokens(chat, row) for row in rows]
    places = [
        [prompt - 1, *(prompt - 1 + length for length in checks(len(ids) - prompt, every, ends))]
        for ids, prompt in tokens
    ]
    with memory_errors():
        found = states_at(reader.model, [ids for ids, _ in tokens], places, layers, reader.batch_rows)
    return [Reading(states[0], states[1:]) for states in found]


def row_tokens(chat: Renderer, row: Row) -> tuple[list[int], int]:
    """(token ids of the request and the reply, how many of them are the request's)."""
    before, begun = split_reply(row.messages)
    prompt = chat.prompt_ids(before)
    return prompt + chat.text_ids(f"{begun} {row.reply}".strip()), len(prompt)


def checks(num_tokens: int, every: int, ends: bool = False) -> list[int]:
    """The lengths at which a reply of so many tokens is read: 8, 16, … below its own, and its own if ``ends``."""
    lengths = list(range(every, num_tokens, every))
    return [*lengths, num_tokens] if ends and num_tokens else lengths
