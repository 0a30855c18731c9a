"""What a server is asked before any work is done with it: to answer at all, for the log-probabilities that the run
reads, and what token ids mean to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.chat import THOUGHT_TAGS
from pipeline.core.log import warn
from pipeline.engines.base import NEVER, Ask, ChoiceQuery, ReplyQuery, Request
from pipeline.engines.chat_server import RefusedError, Reply, ServerError, shown
from pipeline.engines.prompts import ChatPrompts, Post, Prompts, TokenPrompts, chat_fields
from pipeline.engines.sender import Outcome
from pipeline.records import Message

if TYPE_CHECKING:
    from pipeline.engines.server import Server

HELLO = [Message(role="user", content="Say yes.")]
REQUEST = Request(id="", messages=HELLO, seed=0, max_new_tokens=1, temperature=0.0)
REPLY = ReplyQuery(id="", messages=HELLO, reply="Yes.")
CHOICE = ChoiceQuery(id="", messages=HELLO, opening="The answer is (", choices=("A", "B"))
# Vocabularies differ in how they cut such a text, so their token ids of it mean something else.
SAMPLE = [
    Message(role="user", content="Grüße aus 東京: 3.14 × 2000 = 6280;\n\n\tdon't `print(xs[-1])` — Привет, मित्र!")
]


class LackError(Exception):
    """The server answers, but can't do what the settings say."""

    def sentence(self, here: str, server: str) -> str:
        """One sentence; ``here``: the section of the settings with a dot behind it, or nothing."""
        return f"{str(self).replace('{here}', here).replace('{server}', server)}."


def probe(
    send: Callable[[Post], Outcome], model: str, prompts: Prompts, *, reads_choices: bool
) -> RefusedError | ServerError | None:
    """Ask for one token, and in the same request for what the run will read. Returns why there is no answer.

    Args:
        send: sends one request to the server.
        model: its name there.
        reads_choices: the run reads log-probabilities of choices.

    Raises:
        LackError: the server answers without them.
    """
    scores = prompts.scores if isinstance(prompts, TokenPrompts) else "none"
    asks: list[Ask] = [REPLY] if scores != "none" else []
    asks += [CHOICE] if reads_choices else []
    for ask in asks or [REQUEST]:
        # A plain request names no sampling settings, which some servers refuse.
        plain = isinstance(ask, Request) and isinstance(prompts, ChatPrompts)
        post = Post("/chat/completions", chat_fields(model, HELLO, max_tokens=1)) if plain else prompts.post(ask)
        outcome = send(post)
        if not isinstance(outcome, Reply):
            return outcome
        if not isinstance(ask, Request) and prompts.logprobs(ask, outcome) is None:
            raise _without_logprobs(ask, prompts)
        if ask is CHOICE:
            _refuse_thoughts(outcome, prompts)
    return None


def _refuse_thoughts(answer: Reply, prompts: Prompts) -> None:
    """Raises LackError if the model begins with a thought, so that no choice is its first word."""
    known = prompts.logprobs(CHOICE, answer)
    first, _ = max(answer.listed or [("", 0.0)], key=lambda listed: listed[1])
    begun = first.strip().lower()
    if begun and max(known or [NEVER]) <= NEVER and any(tag.lower().startswith(begun) for tag, _ in THOUGHT_TAGS):
        raise LackError(
            f"{{here}}votes is 0, but the model of {{server}} thinks before it answers (it begins with "
            f"{shown(first)}), so no label or verdict can be read from its first word; turn its thoughts off on the "
            "server, set {here}prompts=tokens, which skips them, or set {here}votes=10, so that whole answers decide"
        )


def _without_logprobs(ask: Ask, prompts: Prompts) -> LackError:
    if isinstance(ask, ReplyQuery):
        assert isinstance(prompts, TokenPrompts)
        return LackError(
            f"{{here}}scores is {prompts.scores!r}, but {{server}} returns no log-probabilities of a given reply; "
            "start a server that does, or set {here}scores=none"
        )
    remedy = "set {here}votes=10, so that sampled answers decide"
    if isinstance(prompts, TokenPrompts):
        remedy = "set {here}prompts=chat and {here}votes=10, so that sampled answers decide"
    return LackError(
        "{here}votes is 0, but {server} returns no log-probabilities, from which a label or verdict is read; "
        f"{remedy}, or use a server that returns them, such as vLLM"
    )


def compare_tokens(send: Callable[[Post], Outcome], model: str, prompts: Prompts, unknown: str) -> None:
    """Compare what the token ids of a prompt mean to the server with what they mean here.

    Args:
        unknown: the warning if the server can't say it; empty: none.

    Raises:
        LackError: they mean something else, so the server's tokenizer is another one.
    """
    if not isinstance(prompts, TokenPrompts):
        return
    ids, meant = prompts.spelled(SAMPLE)
    # vLLM and SGLang want the name; SGLang would leave special tokens out; llama.cpp reads the ids only.
    body = {"model": model, "tokens": ids, "skip_special_tokens": False}
    outcome = send(Post("/detokenize", body, _read_text, at_host=True))
    if isinstance(outcome, Reply):
        found = "" if _letters(outcome.text) == _letters(meant) else shown(outcome.text)
    else:
        is_beyond = isinstance(outcome, RefusedError) or outcome.status == 500  # its vocabulary is smaller
        found = f"an error ({outcome})" if is_beyond else ""
        if unknown and not is_beyond:
            warn(unknown)
    if found:
        raise LackError(
            "{here}prompts is 'tokens', but token ids mean something else to {server}: those of "
            f"{shown(meant)} are {found} there; set {{here}}tokenizer to the tokenizer of its model"
        )


def _letters(text: str) -> str:
    """Some decoders change the spaces around signs."""
    return "".join(text.split())


def _read_text(body: str) -> Reply:
    """The text of token ids, in the layout of vLLM, llama.cpp or SGLang.

    Raises:
        ServerError: there is none.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    named = [answer.get(name) for name in ("prompt", "content", "text")] if isinstance(answer, dict) else []
    for text in named:
        if isinstance(text, str):
            return Reply(text=text, num_tokens=0, num_prompt_tokens=0, finish="stop", listed=None)
    raise ServerError(f"the answer has no text: {shown(body)}")


def explained(config: Server.Config, url: str, field: str, error: ServerError) -> str:
    """Why the server can't be used, as one sentence with the setting to change."""
    if error.status in (401, 403):
        variable = config.api_key_variable
        return f"{field}.api_key_variable is {variable!r}, but {url} refuses the key in it ({error}); set another key."
    if error.status in (404, 405):
        return (
            f"{field}.base_url is {url!r} and {field}.model is {config.model!r}, but there is no such address or model "
            f"({error}); the address mostly ends in /v1, and {url.rstrip('/')}/models lists the models."
        )
    if error.status is not None and 300 <= error.status < 400:
        return (
            f"{field}.base_url is {url!r}, which sends requests on to another address ({error}); give that address, "
            "mostly the same with https://."
        )
    if error.status is not None:
        return f"{field}.base_url is {url!r}, but the server can't answer now ({error}); try again later."
    return (
        f"{field}.base_url is {url!r}, but there is no usable answer ({error}); start the server, wait until it has "
        "loaded the model, or correct the address, which mostly ends in /v1."
    )
