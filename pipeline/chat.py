"""Converts messages to token ids. Only this module does so: for sampling, for scoring and for training."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from pipeline.core.text import joined
from pipeline.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "probe-9f2c"  # templates copy it unchanged, and none contains it
THOUGHT_TAGS = (
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "thoughts", "reasoning")),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""What models write before and after their thoughts."""
_LIKE_A_SIGN = re.compile(r"[<\[|◁]\S*[>\]|▷]")  # added tokens that are control signs, though not marked as special
_CLOCK = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
TODAY = datetime(2024, 7, 26)  # for templates that write the date: a prompt must be the same on every day


class Example(NamedTuple):
    """Token ids of a prompt and its reply; ``mask`` (same length) is 1 on the reply and its end tokens, else 0."""

    ids: list[int]
    mask: list[int]


class Renderer:
    """Renders dialogues with the tokenizer's chat template.

    A prompt ends where the template begins a reply. A reply is tokenised separately and ends with the tokens that the
    template writes after an assistant turn. So a prompt has the same tokens in sampling, scoring and training. Special
    tokens such as BOS come only from the template: inside a turn or a reply, the same characters are ordinary text.

    Models that think are asked to answer at once: the prompt ends with an empty think block, as the template writes it
    before a reply, and a think block that the template leaves open is closed.

    Args:
        tokenizer: without a chat template, only ``text_ids`` and ``dialogue_ids`` work.
        eos: the ``eos_token_id`` of the model's generation configuration.

    Raises:
        TemplateError: the template rejects a request with a reply.
        ValueError: the template omits the reply, or its generation prompt is not the beginning of a reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos: int | Sequence[int] | None = None) -> None:
        self._tokenizer = tokenizer
        given = [eos] if isinstance(eos, int) else list(eos or [])
        stops = [token for token in (tokenizer.eos_token_id, *given) if token is not None]
        self.end_ids: list[int] = stops[:1]
        """Tokens that end a reply: those that the template writes after it, else eos; maybe none."""
        self.stop_ids = frozenset(stops)
        """All tokens that end a turn."""
        special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._special_signs = _any_of(filter(str.strip, special))
        self._other_signs = _any_of(sign for sign in added if sign not in special and _LIKE_A_SIGN.fullmatch(sign))
        signs = [sign for sign in added if _LIKE_A_SIGN.fullmatch(sign) or (sign in special and sign.strip())]
        self._signs = _any_of(signs)
        self._forms: dict[tuple[str, ...], int] = {}  # roles of a dialogue → the first form that the template accepts
        self._opening = self._surplus = self._beyond = ""
        if tokenizer.chat_template:
            self._learn_from_template(self.stop_ids | set(special.values()))

    def _learn_from_template(self, special: frozenset[int]) -> None:
        after = self._learn_the_beginning_of_a_reply()
        self._after_ids = self._template_ids(after)
        end = _end_of_turn(self._after_ids, special, self.stop_ids) or self._end_before_the_next_turn()
        if end:
            self.end_ids = end
            self.stop_ids |= {end[-1]}

    # --- Tokens --------------------------------------------------------------------------------------------------

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens: their characters in the text are ordinary characters."""
        ids: list[int] = []
        start = 0
        for sign in self._other_signs.finditer(text) if self._other_signs else ():
            # The tokenizer splits only special tokens. Others are cut here, so that it does not recognise them.
            ids += self._plain_ids(text[start : sign.start() + 1])
            start = sign.start() + 1
        return ids + self._plain_ids(text[start:])

    def _plain_ids(self, text: str) -> list[int]:
        if not text:
            return []
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def prompt_ids(self, messages: Sequence[Message], begun: str = "") -> list[int]:
        """Token ids of a dialogue up to the reply, followed by those of ``begun``, the start of the reply.

        Raises:
            ValueError: the tokenizer has no chat template, or the template rejects the dialogue in every form (see
                ``accepted_forms``) or leaves out a turn.
        """
        hidden, signs = self._hide_signs(messages)
        template, *rest = (
            re.split(rf"{PROBE}-(\d+)-", self.prompt_text(hidden)) if signs else [self.prompt_text(hidden)]
        )
        ids = self._template_ids(template)
        for number, template in zip(rest[::2], rest[1::2], strict=True):
            ids += self.text_ids(signs[int(number)]) + self._template_ids(template)
        return ids + self.text_ids(begun)

    def reply_ids(self, reply: str) -> list[int]:
        """Token ids of a reply, followed by ``end_ids``."""
        return self.text_ids(reply) + self.end_ids

    def beginning(self, text: str, number: int) -> str:
        """The first ``number`` tokens of a text, as text."""
        return self.spelled(self.text_ids(text)[:number])

    def spelled(self, ids: Sequence[int]) -> str:
        """The text of token ids, with special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def next_id(self, begun: str, text: str) -> int:
        """The first token of ``text`` after ``begun``, the start of a reply, in the encoding of both together."""
        begun = begun[-8:]
        before, after = self.text_ids(begun), self.text_ids(begun + text)
        return after[len(before)] if after[: len(before)] == before else self.text_ids(text)[0]

    def continued_ids(self, begun: str, text: str) -> list[int]:
        """Token ids of ``text`` after ``begun``, the start of a reply, in the encoding of both together."""
        whole, before = self.text_ids(joined(begun, text)), self.text_ids(begun)
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return self.text_ids(joined(begun, text)[len(begun) :])

    def example(self, messages: Sequence[Message], reply: str) -> Example:
        """``prompt_ids`` followed by ``reply_ids``. Raises what ``prompt_ids`` raises."""
        prompt, answer = self.prompt_ids(messages), self.reply_ids(reply)
        return Example(prompt + answer, [0] * len(prompt) + [1] * len(answer))

    def dialogue_ids(
        self, messages: Sequence[Message], reply: str, most: int, num_reply_tokens: int | None = None
    ) -> list[int]:
        """The last ``most`` token ids of a complete dialogue, for a reward model or a classifier.

        They include all tokens that the template writes after the reply, such as a newline: published reward models
        are trained to give their score at the very last token. Without a chat template, blank lines join the turns.

        Args:
            num_reply_tokens: of the reply only so many first tokens are there; None: all.
        """
        if self._tokenizer.chat_template:
            return (self.prompt_ids(messages) + self.text_ids(reply)[:num_reply_tokens] + self._after_ids)[-most:]
        reply = reply if num_reply_tokens is None else self.beginning(reply, num_reply_tokens)
        self._tokenizer.truncation_side = "left"
        text = "\n\n".join([*(turn["content"] for turn in messages), reply])
        inside = {"truncation": True, "max_length": most, "split_special_tokens": True}
        return list(self._tokenizer(text, **inside)["input_ids"])

    def _template_ids(self, text: str) -> list[int]:
        """Token ids of a text that the template wrote: special tokens in it are special tokens."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    # --- Text ----------------------------------------------------------------------------------------------------

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text of a dialogue up to the reply. Raises what ``prompt_ids`` raises."""
        try:
            text = self._write(self._accepted(messages), reply_next=True)
        except TemplateError as error:
            raise ValueError(f"its chat template says: {error}") from None
        return text.removesuffix(self._surplus) + self._opening

    def check(self, messages: Sequence[Message]) -> None:
        """Check that the prompt of this dialogue is the beginning of what the template writes with a reply.

        Raises:
            ValueError: it is not, or ``prompt_text`` fails.
        """
        prompt = self.prompt_text(messages)
        whole = [*self._accepted(messages), Message(role="assistant", content=PROBE)]
        try:
            before = self._write(whole, reply_next=False).rpartition(PROBE)[0].rstrip()
        except TemplateError as error:
            raise ValueError(f"its chat template says: {error}") from None
        if not prompt.startswith(before) or prompt.removeprefix(before).strip() != self._beyond:
            raise ValueError("its prompt is not the beginning of a reply")

    def _accepted(self, messages: Sequence[Message]) -> list[Message]:
        """The dialogue in the first form that the template accepts. This depends on the roles of the turns only."""
        roles = tuple(turn["role"] for turn in messages)
        if roles not in self._forms:
            self._forms[roles] = self._first_form(roles)
        return next(islice(accepted_forms(messages), self._forms[roles], None))

    def _first_form(self, roles: Sequence[str]) -> int:
        marks = [f"{PROBE}-{number}-" for number in range(len(roles))]
        turns = [Message(role=role, content=mark) for role, mark in zip(roles, marks, strict=True)]
        problem = "there are no turns"
        for number, form in enumerate(accepted_forms(turns)):
            try:
                text = self._write(form, reply_next=True).casefold()
            except TemplateError as error:
                problem = f"its chat template says: {error}"
                continue
            if all(mark in text for mark in marks):
                return number
            problem = "its chat template leaves out a turn"
        raise ValueError(problem)

    def num_signs(self, messages: Sequence[Message]) -> int:
        """How often the turns contain the characters of a special token."""
        return sum(len(self._signs.findall(turn["content"])) for turn in messages) if self._signs else 0

    def without_signs(self, text: str) -> str:
        """The text without the characters of special tokens."""
        return self._special_signs.sub("", text) if self._special_signs else text

    def _hide_signs(self, messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
        """The dialogue with a numbered mark in place of each special token in its turns, and what the marks hide."""
        found: list[str] = []
        if not self.num_signs(messages) or self._signs is None:
            return list(messages), found

        def mark(sign: re.Match[str]) -> str:
            found.append(sign.group())
            return f"{PROBE}-{len(found) - 1}-"

        hidden = [Message(role=turn["role"], content=self._signs.sub(mark, turn["content"])) for turn in messages]
        return hidden, found

    def _write(self, turns: list[Message], reply_next: bool) -> str:
        # Templates that have no such switches ignore them.
        switches: dict[str, Any] = {"add_generation_prompt": reply_next, "enable_thinking": False, "thinking": False}
        if isinstance(template := self._tokenizer.chat_template, str):
            switches["chat_template"] = _CLOCK.sub(lambda call: repr(TODAY.strftime(call[2])), template)
        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, **switches))
        except (TypeError, AttributeError, LookupError) as error:  # a mistake in the template
            raise TemplateError(f"{type(error).__name__}: {error}") from error

    # --- What the template does ----------------------------------------------------------------------------------

    def _learn_the_beginning_of_a_reply(self) -> str:
        """Compare the generation prompt with what stands before a reply. Returns the text after a reply.

        ``_opening`` is what a prompt needs besides the generation prompt. A single space before a reply is ignored:
        tokenizers put it into the reply's first token. ``_surplus`` is a text of the generation prompt, such as the
        announcement of thoughts, that does not stand before a reply.
        """
        asked, reply = Message(role="user", content="x"), Message(role="assistant", content=PROBE)
        prompt = self._write([asked], reply_next=True)
        before, found, after = self._write([asked, reply], reply_next=False).rpartition(PROBE)
        if not found:
            raise ValueError("its chat template leaves out the reply")
        if before.startswith(prompt):
            opening = before.removeprefix(prompt)
            self._opening = ("" if opening == " " else opening) + _closing(before)
        elif prompt.startswith(before.rstrip()):
            extra = prompt.removeprefix(before.rstrip())
            self._opening = _closing(extra)
            thinks = any(sign in extra for tags in THOUGHT_TAGS for sign in tags)
            if extra.strip() and not thinks and not (self._signs and self._signs.search(extra)):
                self._surplus, self._opening = extra, before.removeprefix(before.rstrip())
        else:
            raise ValueError("the generation prompt of its chat template is not the beginning of a reply")
        final = prompt.removesuffix(self._surplus) + self._opening
        self._beyond = final.removeprefix(before.rstrip()).strip()
        return after

    def _end_before_the_next_turn(self) -> list[int]:
        """The token after a reply, if the template writes it only when another turn follows; else nothing. It counts
        only if the model's own configuration ends replies with it."""
        asked, reply = Message(role="user", content="x"), Message(role="assistant", content=PROBE)
        try:
            after = self._write([asked, reply, asked], reply_next=False).rpartition(PROBE)[2]
        except TemplateError:
            return []
        first = self._template_ids(after)[:1]
        return first if first and first[0] in self.stop_ids else []


def _end_of_turn(after: Sequence[int], special: frozenset[int], stops: frozenset[int]) -> list[int]:
    """The tokens after a reply up to its first special token, or up to a later one that stops generation if only
    special tokens are between them; empty if there is no special token."""
    first = next((place for place, token in enumerate(after) if token in special), None)
    if first is None:
        return []
    run = list(takewhile(lambda place: after[place] in special, range(first, len(after))))
    last = next((place for place in run if after[place] in stops), first)
    return list(after[: last + 1])


def _any_of(signs: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of the texts, the longest first; None if there are none."""
    ordered = sorted(signs, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _closing(text: str) -> str:
    """What closes the think block that a text leaves open; "" if it leaves none open."""
    for begin, end in THOUGHT_TAGS:
        if text.count(begin) > text.count(end):
            return ("\n" if text.endswith("\n") else "\n\n") + end + "\n\n"
    return ""


def accepted_forms(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The dialogue as it is, then in forms that more templates accept.

    The second form has no system turns: their text is put before the next turn. The third form also joins neighbouring
    turns of one role.
    """
    yield list(messages)
    folded: list[Message] = []
    before = ""
    for turn in messages:
        content = before + turn["content"]
        if turn["role"] == "system" and turn is not messages[-1]:
            before = f"{content.rstrip()}\n\n"
            continue
        folded.append(Message(role=turn["role"], content=content))
        before = ""
    yield folded
    joined: list[Message] = []
    for turn in folded:
        if joined and joined[-1]["role"] == turn["role"]:
            turn = Message(role=turn["role"], content=f"{joined.pop()['content'].rstrip()}\n\n{turn['content']}")
        joined.append(turn)
    yield joined
