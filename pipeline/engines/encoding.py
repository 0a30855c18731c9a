"""What a local engine is asked, as token ids, and the text of what it generates: the same ids for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.chat import Renderer
from pipeline.engines.base import ChoiceQuery, Query, ReplyQuery, Request
from pipeline.engines.thoughts import without_thoughts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoding:
    """Token ids of requests and queries.

    Args:
        eos: the ``eos_token_id`` of the model's generation configuration.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos: int | Sequence[int] | None) -> None:
        self.tokenizer = tokenizer
        self.chat = Renderer(tokenizer, eos)

    def ids(self, ask: Request | Query) -> list[int]:
        """The prompt with the given beginning of the reply, or with the whole reply of a ``ReplyQuery``."""
        if isinstance(ask, ReplyQuery):
            return self.chat.example(ask.messages, ask.reply).ids
        return self.chat.prompt_ids(ask.messages, ask.opening if isinstance(ask, ChoiceQuery) else ask.prefix)

    def choice_ids(self, query: ChoiceQuery) -> list[int]:
        """The first token of each choice after the opening, in the tokenizer's encoding of both together."""
        return [self.chat.next_id(query.opening, choice) for choice in query.choices]

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of a reply, without special tokens and without thoughts."""
        # The tags around thoughts may be special tokens themselves, so these are removed last.
        return self.chat.without_signs(without_thoughts(str(self.tokenizer.decode(list(tokens))))).strip()
