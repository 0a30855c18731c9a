"""From messages to tokens. Whatever is sampled from, scored or trained on is written by this module and no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from pipeline.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "probe-9f2c"  # survives every template, and no template writes it by itself


class Example(NamedTuple):
    """A prompt with its reply; ``mask`` is 1 on the tokens of the reply and on the ones that end it, else 0."""

    ids: list[int]
    mask: list[int]


class Renderer:
    """Writes dialogues as the tokenizer's chat template does.

    A prompt is what the template writes for sampling (``add_generation_prompt``), so an empty or opened think block
    belongs to it where the template writes one there. A reply is tokenised on its own and ended as the template ends
    an assistant's turn. A prompt's tokens are therefore the same whether a reply is sampled, scored or trained on.
    Special tokens, such as BOS, are the template's: the tokenizer adds none.

    Args:
        tokenizer: with a chat template; without one only ``text_ids`` and ``dialogue_ids`` can be used.
        eos: the ``eos_token_id`` of the model's generation configuration.

    Raises:
        TemplateError: the template refuses a request with its reply.
        ValueError: the template leaves the reply out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos: int | Sequence[int] | None = None) -> None:
        self._tokenizer = tokenizer
        given = [eos] if isinstance(eos, int) else list(eos or [])
        stops = [token for token in (tokenizer.eos_token_id, *given) if token is not None]
        self.end_ids: list[int] = stops[:1]
        """What ends a reply: the template's tokens up to the first that is special, else eos."""
        self.stop_ids = frozenset(stops)
        """Every token that ends a turn."""
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
        """The tokens of a text by itself."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(self, messages: Sequence[Message], begun: str = "") -> list[int]:
        """The tokens of a dialogue up to where the assistant's reply begins, then those of the reply's beginning.

        Raises:
            TemplateError: the template refuses the dialogue, for another reason than its system turn.
            ValueError: the tokenizer has no chat template.
        """
        return self.text_ids(self.prompt_text(messages)) + self.text_ids(begun)

    def reply_ids(self, reply: str) -> list[int]:
        """The tokens of a reply and of its end."""
        return self.text_ids(reply) + self.end_ids

    def example(self, messages: Sequence[Message], reply: str) -> Example:
        """``prompt_ids`` followed by ``reply_ids``. Raises what ``prompt_ids`` raises."""
        prompt, answer = self.prompt_ids(messages), self.reply_ids(reply)
        return Example(prompt + answer, [0] * len(prompt) + [1] * len(answer))

    def dialogue_ids(self, messages: Sequence[Message], reply: str, most: int) -> list[int]:
        """The last ``most`` tokens of a whole dialogue, for a model that reads it and writes nothing.

        These are the example's and whatever the template writes after the reply's end, such as a newline: published
        reward models are trained to be read at the very last token. Turns are joined by blank lines where the
        tokenizer has no chat template.
        """
        if self._tokenizer.chat_template:
            return (self.prompt_ids(messages) + self.text_ids(reply) + self._after_ids)[-most:]
        self._tokenizer.truncation_side = "left"
        text = "\n\n".join([*(turn["content"] for turn in messages), reply])
        return list(self._tokenizer(text, truncation=True, max_length=most)["input_ids"])

    # --- Text ----------------------------------------------------------------------------------------------------

    def accepted(self, messages: Sequence[Message]) -> list[Message]:
        """The dialogue in the turns that the template takes: what a refused system turn says begins the next turn."""
        turns = list(messages)
        while not self._takes_system and len(turns) > 1 and turns[0]["role"] == "system":
            system, first, *rest = turns
            content = f"{system['content'].rstrip()}\n\n{first['content']}"
            turns = [Message(role=first["role"], content=content), *rest]
        return turns

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """A dialogue up to where the assistant's reply begins. Raises what ``prompt_ids`` raises."""
        return self._write(self.accepted(messages), reply_next=True) + self._opening

    def _write(self, turns: list[Message], reply_next: bool) -> str:
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=reply_next))

    # --- What the template does ----------------------------------------------------------------------------------

    def _writes_system(self) -> bool:
        """Some templates refuse a system turn, and some leave it out without a word."""
        turns = [Message(role="system", content=PROBE), Message(role="user", content="x")]
        try:
            return PROBE in self._write(turns, reply_next=True)
        except TemplateError:
            return False

    def _assistant_turn(self) -> tuple[str, str]:
        """The text that opens a reply where ``add_generation_prompt`` writes nothing, and the text after a reply.

        A space alone is no opening: tokenizers put it into the reply's first token.
        """
        asked, reply = Message(role="user", content="x"), Message(role="assistant", content=PROBE)
        prompt, ignored = (self._write([asked], reply_next=flag) for flag in (True, False))
        before, found, after = self._write([asked, reply], reply_next=False).rpartition(PROBE)
        if not found:
            raise ValueError("its chat template leaves out what is said")
        opening = before.removeprefix(prompt) if prompt == ignored and before.startswith(prompt) else ""
        return opening if opening.strip() else "", after
