"""Converts messages to token ids. Only this module does so: for sampling, for scoring and for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from pipeline.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "probe-9f2c"  # templates copy it unchanged, and none contains it


class Example(NamedTuple):
    """Token ids of a prompt and its reply; ``mask`` (same length) is 1 on the reply and its end tokens, else 0."""

    ids: list[int]
    mask: list[int]


class Renderer:
    """Renders dialogues with the tokenizer's chat template.

    A prompt ends with the generation prompt (``add_generation_prompt``), including an empty or open think block if the
    template writes one. A reply is tokenised separately and ends with the tokens that the template writes after an
    assistant turn. So a prompt has the same tokens in sampling, scoring and training. Special tokens such as BOS come
    only from the template.

    Args:
        tokenizer: without a chat template, only ``text_ids`` and ``dialogue_ids`` work.
        eos: the ``eos_token_id`` of the model's generation configuration.

    Raises:
        TemplateError: the template rejects a request with a reply.
        ValueError: the template omits the reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos: int | Sequence[int] | None = None) -> None:
        self._tokenizer = tokenizer
        given = [eos] if isinstance(eos, int) else list(eos or [])
        stops = [token for token in (tokenizer.eos_token_id, *given) if token is not None]
        self.end_ids: list[int] = stops[:1]
        """Tokens that end a reply: the template's tokens up to its first special token, else eos."""
        self.stop_ids = frozenset(stops)
        """All tokens that end a turn."""
        self._takes_system, self._opening = True, ""
        if tokenizer.chat_template:
            self._learn_from_template()

    def _learn_from_template(self) -> None:
        self._takes_system = self._writes_system()
        self._opening, after = self._assistant_turn()
        self._after_ids = self.text_ids(after)
        tokenizer = self._tokenizer
        special = self.stop_ids | {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        ends = [place for place, token in enumerate(self._after_ids) if token in special]
        if ends:
            self.end_ids = self._after_ids[: ends[0] + 1]
            self.stop_ids |= {self.end_ids[-1]}

    # --- Tokens --------------------------------------------------------------------------------------------------

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(self, messages: Sequence[Message], begun: str = "") -> list[int]:
        """Token ids of a dialogue with the generation prompt, followed by those of ``begun``, the start of the reply.

        Raises:
            TemplateError: the template rejects the dialogue, even without a system turn.
            ValueError: the tokenizer has no chat template.
        """
        return self.text_ids(self.prompt_text(messages)) + self.text_ids(begun)

    def reply_ids(self, reply: str) -> list[int]:
        """Token ids of a reply, followed by ``end_ids``."""
        return self.text_ids(reply) + self.end_ids

    def example(self, messages: Sequence[Message], reply: str) -> Example:
        """``prompt_ids`` followed by ``reply_ids``. Raises what ``prompt_ids`` raises."""
        prompt, answer = self.prompt_ids(messages), self.reply_ids(reply)
        return Example(prompt + answer, [0] * len(prompt) + [1] * len(answer))

    def dialogue_ids(self, messages: Sequence[Message], reply: str, most: int) -> list[int]:
        """The last ``most`` token ids of a complete dialogue, for a reward model or a classifier.

        They include all tokens that the template writes after the reply, such as a newline: published reward models
        are trained to give their score at the very last token. Without a chat template, blank lines join the turns.
        """
        if self._tokenizer.chat_template:
            return (self.prompt_ids(messages) + self.text_ids(reply) + self._after_ids)[-most:]
        self._tokenizer.truncation_side = "left"
        text = "\n\n".join([*(turn["content"] for turn in messages), reply])
        return list(self._tokenizer(text, truncation=True, max_length=most)["input_ids"])

    # --- Text ----------------------------------------------------------------------------------------------------

    def accepted(self, messages: Sequence[Message]) -> list[Message]:
        """The dialogue as the template accepts it. If it rejects system turns, their text moves to the next turn."""
        turns = list(messages)
        while not self._takes_system and len(turns) > 1 and turns[0]["role"] == "system":
            system, first, *rest = turns
            content = f"{system['content'].rstrip()}\n\n{first['content']}"
            turns = [Message(role=first["role"], content=content), *rest]
        return turns

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text of a dialogue with the generation prompt. Raises what ``prompt_ids`` raises."""
        return self._write(self.accepted(messages), reply_next=True) + self._opening

    def _write(self, turns: list[Message], reply_next: bool) -> str:
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=reply_next))

    # --- What the template does ----------------------------------------------------------------------------------

    def _writes_system(self) -> bool:
        """Whether the template writes system turns: some templates reject them, and some omit them silently."""
        turns = [Message(role="system", content=PROBE), Message(role="user", content="x")]
        try:
            return PROBE in self._write(turns, reply_next=True)
        except TemplateError:
            return False

    def _assistant_turn(self) -> tuple[str, str]:
        """The text before a reply, if ``add_generation_prompt`` writes nothing, and the text after a reply.

        A single space before a reply is ignored: tokenizers put it into the reply's first token.
        """
        asked, reply = Message(role="user", content="x"), Message(role="assistant", content=PROBE)
        prompt, ignored = (self._write([asked], reply_next=flag) for flag in (True, False))
        before, found, after = self._write([asked, reply], reply_next=False).rpartition(PROBE)
        if not found:
            raise ValueError("its chat template leaves out the reply")
        opening = before.removeprefix(prompt) if prompt == ignored and before.startswith(prompt) else ""
        return opening if opening.strip() else "", after
