"""The Modelfile with which Ollama serves a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from pipeline.chat import PROBE, Renderer
from pipeline.constitution.schema import Constitution
from pipeline.records import Message

_SIGNS = "<["


@dataclass(frozen=True)
class Turns:
    """What a chat template writes before and after a turn of each role, and before a reply.

    ``default``: what it writes first if there is no system turn.
    """

    around: dict[str, tuple[str, str]]
    default: str
    opening: str

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as ``template`` writes it."""
        first = "" if messages[0]["role"] == "system" else self.default
        turns = (turn["content"].join(self.around[turn["role"]]) for turn in messages)
        return first + "".join(turns) + self.opening

    def template(self) -> str:
        """The same as a template of Go, which Ollama reads instead of Jinja."""
        branches = [
            f'eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}' for role, (before, after) in self.around.items()
        ]
        default = (
            f'{{{{ if ne (index .Messages 0).Role "system" }}}}{self.default}{{{{ end }}}}' if self.default else ""
        )
        turns = "{{ else if ".join(branches)
        return f"{default}{{{{ range .Messages }}}}{{{{ if {turns}{{{{ end }}}}{{{{ end }}}}{self.opening}"


def learn_turns(chat: Renderer) -> Turns | None:
    """Take a chat template apart; None if it does more than write something before and after each turn."""
    contents = [f"{PROBE}-{number}" for number in range(5)]
    roles = ("system", "user", "assistant", "user", "assistant")
    whole = _dialogue(roles[:4], contents)
    try:
        text, short = chat.prompt_text(whole), chat.prompt_text(whole[:2])
        alone = chat.prompt_text(whole[1:2])
    except (ValueError, KeyError):
        return None
    before_user, found, after_user = alone.partition(contents[1])
    pieces = _between(text, contents[:4])
    begun = _between(short, contents[:2])
    if not found or pieces is None or begun is None or after_user != begun[2] or pieces[4] != begun[2]:
        return None
    return _divide(chat, pieces, before_user, whole)


def _divide(chat: Renderer, pieces: list[str], before_user: str, whole: list[Message]) -> Turns | None:
    """Try every place where one turn may end and the next begin, until all dialogues come out right.

    Of several, the one whose turns begin with a sign such as ``<|im_start|>`` is easiest to read.
    """
    system, after_system, after_user, after_assistant, last = pieces
    tests = [whole, whole[:2], whole[1:2], whole[1:]]
    wanted = [chat.prompt_text(messages) for messages in tests]
    fitting = []
    for user, cut in product(_ends(after_system), range(len(last) + 1)):
        closing, opening = last[:cut], last[cut:]
        if not (before_user.endswith(user) and after_assistant.endswith(user) and after_user.startswith(closing)):
            continue
        around = {
            "system": (system, after_system.removesuffix(user)),
            "user": (user, closing),
            "assistant": (after_user[cut:], after_assistant.removesuffix(user)),
        }
        found = Turns(around, before_user.removesuffix(user), opening)
        if [found.render(messages) for messages in tests] == wanted:
            fitting.append(found)
    return min(fitting, key=_oddness, default=None)


def _ends(text: str) -> list[str]:
    return [text[start:] for start in range(len(text) + 1)]


def _oddness(turns: Turns) -> tuple[bool, bool, int]:
    user, opening = turns.around["user"][0], turns.opening
    return user[:1] not in _SIGNS or not user, opening[:1] not in _SIGNS or not opening, len(user) + len(opening)


def _dialogue(roles: Sequence[str], contents: Sequence[str]) -> list[Message]:
    return [Message(role=role, content=text) for role, text in zip(roles, contents, strict=False)]


def _between(text: str, contents: Sequence[str]) -> list[str] | None:
    """What stands before, between and after the contents."""
    pieces = []
    for content in contents:
        before, found, text = text.partition(content)
        if not found:
            return None
        pieces.append(before)
    return [*pieces, text]


def modelfile(file: str, chat: Renderer, stops: Sequence[str], licence: str, constitution: Constitution | None) -> str:
    """The text of the Modelfile.

    Args:
        file: the GGUF file, beside the Modelfile.
        stops: tokens that end a reply.
        constitution: its principles become the system turn; None: the model gets no such turn.
    """
    turns = learn_turns(chat)
    lines = [f"FROM ./{file}"]
    if turns is not None and '"""' not in turns.template() and _is_plain(turns):
        lines.append(f'TEMPLATE """{turns.template()}"""')
    else:
        lines.append("# The chat template is not a simple one; Ollama chooses one by that of the GGUF file.")
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    if constitution is not None:
        lines.append(f'SYSTEM """{system_text(constitution)}"""')
    quoted = licence.replace('"""', "'''").strip()
    lines.append(f'LICENSE """{quoted}"""')
    return "\n".join(lines) + "\n"


def _is_plain(turns: Turns) -> bool:
    """Whether Go reads what the template writes as text."""
    written = [turns.default, turns.opening, *(part for pair in turns.around.values() for part in pair)]
    return not any("{{" in part or "}}" in part for part in written)


def system_text(constitution: Constitution) -> str:
    """The principles as a list."""
    rules = [f"- {' '.join(principle.title.split())}" for principle in constitution.principles]
    return "\n".join(["Keep to these principles:", *rules]).replace('"""', "'''")
