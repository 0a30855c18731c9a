"""Renders every prompt once, before anything is spent, and says which of them a stage will shorten or leave out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.chat import Renderer
from pipeline.core.errors import ConfigError, first_line
from pipeline.core.stage import Prepared, Rendering, Use
from pipeline.engines.models import context_length, generation_ends, load_tokenizer, resolve_path
from pipeline.records import Message, Prompt

Text = tuple[tuple[str, str], ...]


def check_rendering(prepared: Prepared, uses: Sequence[Use]) -> tuple[list[Rendering], list[str]]:
    """Render all prompts of all pools and of all uses with the chat template of the model.

    Returns:
        one row per use, and notes on special tokens inside prompts.

    Raises:
        ConfigError: the template accepts a prompt in no form, or no prompt of a use fits.
    """
    model = prepared.config.model
    path = resolve_path(model.path)
    revision = model.revision if path == model.path else None
    chat = Renderer(load_tokenizer(path, revision), generation_ends(path, revision))
    asked = [messages for use in uses for messages in use.dialogues]
    lengths = _lengths(chat, [*(prompt.messages for prompt in prepared.prompts), *asked], model.path)
    context = context_length(path)
    rows = [_row(use, [lengths[_text(messages)] for messages in use.dialogues], context) for use in uses]
    return rows, _notes_on_signs(chat, prepared.prompts)


def _text(messages: Sequence[Message]) -> Text:
    return tuple((turn["role"], turn["content"]) for turn in messages)


def _lengths(chat: Renderer, dialogues: Iterable[Sequence[Message]], path: str) -> dict[Text, int]:
    """Dialogue → number of tokens."""
    lengths: dict[Text, int] = {}
    problems: Counter[str] = Counter()
    first: dict[str, str] = {}
    for messages in dialogues:
        key = _text(messages)
        if key in lengths:
            continue
        lengths[key] = 0
        try:
            chat.check(messages)
            lengths[key] = len(chat.prompt_ids(messages))
        except ValueError as error:
            reason = first_line(error)
            problems[reason] += 1
            first.setdefault(reason, messages[-1]["content"][:60])
    if problems:
        reason, number = problems.most_common(1)[0]
        raise ConfigError(
            f"The chat template of {path} rejects {problems.total()} of {len(lengths)} dialogues ({reason}: {number}), "
            f"such as the one that ends with {first[reason]!r}; remove them, or write their turns in another order."
        )
    return lengths


def _row(use: Use, lengths: Sequence[int], context: int) -> Rendering:
    most = min(use.most or context, context)
    needed = 1 if use.cuts_replies else use.reply_tokens
    num_left_out = sum(length + needed > most for length in lengths)
    num_shortened = sum(length + needed <= most < length + use.reply_tokens for length in lengths)
    limit = f"{use.field}={most}" if use.most == most else f"the context of {most} tokens"
    if lengths and num_left_out == len(lengths):
        raise ConfigError(
            f"{use.what}: no prompt fits into {limit} with {needed} tokens for its reply; raise {use.field or 'it'}, "
            "lower the length of replies, or use shorter prompts."
        )
    why = f"longer than {limit}" if num_shortened or num_left_out else ""
    longest = max((length for length in lengths if length < most), default=0)
    return Rendering(use.what, len(lengths), num_shortened, num_left_out, why, longest)


def _notes_on_signs(chat: Renderer, prompts: Sequence[Prompt]) -> list[str]:
    found = [prompt for prompt in prompts if chat.num_signs(prompt.messages)]
    if not found:
        return []
    return [
        f"{len(found)} of {len(prompts)} prompts contain the characters of a special token, for example {found[0].id}; "
        "they are read as text, not as the token."
    ]


def table(rows: Sequence[Rendering]) -> list[str]:
    """The lines of a table of what is shortened or left out; one line if everything fits."""
    if not any(row.num_shortened or row.num_left_out for row in rows):
        return ["  all prompts can be rendered, and fit their limits"]
    lines = [f"  {'prompts':<36} {'asked':>7} {'shortened':>10} {'left out':>9}  why"]
    return lines + [
        f"  {row.what:<36} {row.num_asked:>7} {row.num_shortened:>10} {row.num_left_out:>9}  {row.why}".rstrip()
        for row in rows
    ]
