"""Converts constitutions from published JSON layouts, and from pages of Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.constitution.drafts import Draft, draft_of, ids_of, principle_of, slug_of
from pipeline.constitution.markdown import Page, read_page
from pipeline.constitution.schema import Constitution, Principle, WorkedExample
from pipeline.core.errors import ConfigError
from pipeline.core.json_text import NotJsonError, parse_json
from pipeline.core.text import whole_characters
from pipeline.core.yaml_mistakes import field_path

MARKDOWN = {".md", ".markdown", ".mdx", ".txt"}


def import_markdown(path: Path) -> tuple[Draft, Page]:
    """Read the rules of a page of Markdown as principles, each with a comment that gives its line.

    The page does not say for which prompts a rule is, so no principle has tags: all are used for all prompts.

    Returns:
        The draft, and the page, which counts what is no rule.

    Raises:
        ConfigError: the file can't be read, or no rule is in it.
    """
    page = read_page(read_text(path))
    if not page.rules:
        raise ConfigError(
            f"{path}: no rule was found; a rule is a list item, or a short paragraph or heading that demands something "
            "(must, should, never, don't); write the rules as a list."
        )
    ids = ids_of(page.rules)
    about = {
        "name": slug_of(path.stem),
        "description": f"Imported from {path.name}.",
        "provenance": f"Converted from {path.name} by `cai constitution import`. The rules are the page's words; the "
        "requests around them are templates. Say here who wrote the page, and under which licence.",
        "preamble": "You are a helpful, honest and harmless assistant.",
    }
    draft = draft_of(about, [principle_of(rule, name) for rule, name in zip(page.rules, ids, strict=True)], [])
    draft.head.append(
        "Give each principle tags (harmlessness, helpfulness, honesty or style), and remove what is no rule."
    )
    draft.notes = {name: f"{path.name}, line {rule.line}" for rule, name in zip(page.rules, ids, strict=True)}
    return draft, page


def read_text(path: Path, option: str = "FILE") -> str:
    """The text of a file in UTF-8, with or without a byte-order mark. Raises ConfigError if it can't be read."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{option}: there is no file {path}; give a page of text.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: the text is not UTF-8; save the file as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{option}: {path} can't be read ({error.strerror}); give a page of text.") from None


def import_constitution(path: Path) -> Constitution:
    """Read a published JSON constitution.

    Two layouts: Anthropic's supplementary files (name → ``prompt`` list and ``edit_request``), and Hugging Face's
    (``constitutions``: list of ``critic`` and ``revision``; ``system_chat``: example dialogues). Neither has preference
    questions; they are derived from the critique request. Raises ConfigError for a file with another layout.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"FILE: there is no file {path}; give a JSON constitution.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"FILE: {path} can't be read as UTF-8 text ({error}).") from None
    except NotJsonError as error:
        place = f":{error.line}:{error.column}" if error.line else ""
        raise ConfigError(f"{path}{place}: {error}; fix the file.") from None
    try:
        if isinstance(data, dict) and "constitutions" in data:
            pairs = [
                (f"principle-{i + 1:02d}", p["critic"], p["revision"]) for i, p in enumerate(data["constitutions"])
            ]
            examples = _examples_from_chat(data.get("system_chat") or [])
        elif isinstance(data, dict) and data and all("edit_request" in entry for entry in data.values()):
            pairs = [(name, entry["prompt"], entry["edit_request"]) for name, entry in data.items()]
            examples = []
        else:
            raise KeyError("layout")
        pairs = [(name, _text(critique), _text(revision)) for name, critique, revision in pairs]
        if odd := next((name for name, *texts in pairs if whole_characters("".join(texts)) != "".join(texts)), None):
            raise ConfigError(f"{path}: {odd}: half a character or NUL is in the text; write whole characters.")
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{path}: unknown layout; expected name → {{prompt, edit_request}}, "
            "or {constitutions: [{critic, revision}], system_chat}."
        ) from None
    try:
        return Constitution(
            name=re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-") or "imported",
            version="imported",
            description=f"Imported from {path.name}.",
            provenance=f"Converted from {path.name} by `cai constitution import`; the preference questions are derived "
            "from the critique requests and are not part of the original.",
            preamble="You are a helpful, honest and harmless assistant.",
            principles=[_imported_principle(*pair) for pair in pairs],
            worked_examples=examples,
        )
    except ValidationError as error:
        first = error.errors()[0]
        problem = first["msg"].removeprefix("Value error, ").lower()
        raise ConfigError(f"{path}: {field_path(first['loc'])}: {problem}.") from None


def _imported_principle(name: str, critique: str, revision: str) -> Principle:
    critique, revision = _without_markers(critique), _without_markers(revision)
    return Principle(
        id=re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-"),
        title=name,
        tags=["harmlessness"],
        critique_request=critique,
        revision_request=revision,
        preference_question=f"Of these two replies, which would draw less criticism if one were asked: {critique}",
    )


def _text(value: Any) -> str:
    """A request as one text. Some published files have a list of texts.

    Raises:
        TypeError: it is neither text nor a list of texts.
    """
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise TypeError(value)
    return " ".join(parts)


def _without_markers(text: str) -> str:
    """Remove the labels around a request in published files ("CritiqueRequest:", a trailing "Critique:")."""
    return re.sub(r"^\s*\w*Request:\s*|\s*(Critique|Revision):\s*$", "", text).strip()


def _examples_from_chat(chats: list[list[dict[str, str]]]) -> list[WorkedExample]:
    """A six-turn chat is request, reply, critique request, critique, revision request, revision."""
    return [
        WorkedExample(
            id=f"example-{index + 1:02d}",
            request=chat[0]["content"],
            poor_reply=chat[1]["content"],
            critique=chat[3]["content"],
            revision=chat[5]["content"],
        )
        for index, chat in enumerate(chats)
        if [turn["role"] for turn in chat] == ["user", "assistant"] * 3
    ]
