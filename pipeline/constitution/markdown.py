"""Reads the rules in a page of Markdown, such as a published constitution or a model spec, each with its line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pipeline.core.text import words

MAX_WORDS, MIN_WORDS = 80, 3
"""A longer text is prose with more than one rule in it; a shorter one is a label."""
PROSE, SHORT, EXAMPLE = "long or descriptive paragraphs", "headings and labels", "examples, quotes, tables and code"

_DEMANDS = re.compile(r"\b(must|shall|should|never|always|do not|don['’]t|may not|avoid)\b", re.IGNORECASE)
_TITLES = re.compile(r"(how|what|which|who|why)\b|(when|where)\b(?!.*,)", re.IGNORECASE)
"""How a heading such as "How the assistant should behave" begins; "When in doubt, never guess" is a demand."""
_EXAMPLES = re.compile(r"examples?\b", re.IGNORECASE)
_ATTRIBUTES = re.compile(r"\s*\{[#.:][^{}]*\}\s*$")
_MARKED = re.compile(r"\{[^{}]*\bauthority=[^{}]*\}\s*$")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?^(?:---|\.\.\.)[ \t]*$", re.DOTALL | re.MULTILINE)
_OPAQUE = ("blockquote", "table")


@dataclass(frozen=True)
class Rule:
    """One rule: its text, the title that the page gives it ("": none), and its line, from 1."""

    text: str
    line: int
    title: str = ""


@dataclass
class Page:
    rules: list[Rule] = field(default_factory=list)
    num_left_out: Counter[str] = field(default_factory=Counter)
    """What was no rule → how often it was seen."""


@dataclass(frozen=True)
class _Block:
    """A heading, paragraph or list item. ``kind`` is the tag, or EXAMPLE for what is never read."""

    kind: str
    text: str
    line: int
    title: str = ""
    is_marked: bool = False


def read_page(text: str, every_paragraph: bool = False) -> Page:
    """The rules of a page.

    A list item is a rule, nested or not, unless it only introduces others (it ends with a colon). So is a paragraph or
    a heading that demands something in English (must, should, never, don't …), unless the heading asks a question (how,
    what …) that the text below it answers. If headings are marked with
    ``{authority=…}``, as in a model spec, these are the rules, each with the first short paragraph below it, and
    nothing else is.

    Args:
        every_paragraph: every short paragraph is a rule, and so is a heading with nothing below it.
    """
    blocks = _blocks(text)
    if any(block.is_marked for block in blocks):
        return _marked_rules(blocks)
    page, in_examples = Page(), False
    for block, after in zip_longest(blocks, blocks[1:]):
        is_heading = block.kind.startswith("h")
        if is_heading:
            in_examples = bool(_EXAMPLES.match(block.text))
        has_text_below = after is not None and not after.kind.startswith("h")
        is_title = is_heading and has_text_below and bool(_TITLES.match(block.text))
        demands = bool(_DEMANDS.search(block.text)) and not is_title
        wanted = block.kind == "li" or demands or (every_paragraph and not is_heading)
        if block.kind == EXAMPLE or in_examples:
            page.num_left_out[EXAMPLE] += 1
        elif not _is_short(block) or block.text.endswith(":"):
            page.num_left_out[PROSE if len(words(block.text)) > MAX_WORDS else SHORT] += 1
        elif wanted or (every_paragraph and is_heading and not has_text_below):
            page.rules.append(Rule(block.text, block.line, block.title))
        else:
            page.num_left_out[SHORT if is_heading else PROSE] += 1
    return page


def _marked_rules(blocks: Sequence[_Block]) -> Page:
    """The marked headings, each with the first paragraph below it if that is short."""
    page = Page()
    for block, after in zip_longest(blocks, blocks[1:]):
        if block.is_marked:
            below = f": {after.text}" if after and after.kind == "p" and _is_short(after) else ""
            page.rules.append(Rule(block.text + below, block.line, block.text))
        else:
            kind = SHORT if block.kind.startswith("h") else EXAMPLE if block.kind == EXAMPLE else PROSE
            page.num_left_out[kind] += 1
    used = sum(1 for rule in page.rules if rule.text != rule.title)
    page.num_left_out[PROSE] -= used  # these paragraphs are in the rules
    return page


def _is_short(block: _Block) -> bool:
    return MIN_WORDS <= len(words(block.text)) <= MAX_WORDS


def _blocks(text: str) -> list[_Block]:
    """Headings, paragraphs and list items in order. Further paragraphs of an item are paragraphs."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _FRONT_MATTER.sub(lambda found: "\n" * found[0].count("\n"), text)  # the lines keep their numbers
    found, opaque, before = [], 0, ""
    for token in MarkdownIt().enable("table").parse(text):
        name = token.type.removesuffix("_open").removesuffix("_close")
        if name in _OPAQUE and token.nesting:
            opaque += token.nesting
        if token.map and (token.type in ("fence", "code_block") or (name in _OPAQUE and opaque == 1)):
            found.append(_Block(EXAMPLE, "", token.map[0] + 1))
        if token.type == "inline" and token.map and not opaque:
            found.append(_read(before, token, token.map[0] + 1))
        if token.nesting == 1:
            before = (
                "li" if token.type == "list_item_open" else token.tag if before != "li" or token.tag != "p" else "li"
            )
        elif token.type == "paragraph_close":
            before = ""
    return [block for block in found if block.kind == EXAMPLE or block.text]


def _read(kind: str, token: Token, line: int) -> _Block:
    children = token.children or []
    said = "".join(
        " " if part.type in ("softbreak", "hardbreak") else part.content for part in children if _is_text(part)
    )
    is_marked = kind.startswith("h") and bool(_MARKED.search(said))
    plain = " ".join(_ATTRIBUTES.sub("", said).split())
    return _Block(kind, plain, line, _leading_bold(children), is_marked)


def _is_text(part: Token) -> bool:
    return part.type in ("text", "code_inline", "softbreak", "hardbreak")


def _leading_bold(parts: Sequence[Token]) -> str:
    """The bold text at the start of a rule, if more follows it."""
    kinds = [part.type for part in parts if part.content or part.type.startswith("strong")]
    if kinds[:3] != ["strong_open", "text", "strong_close"] or len(kinds) == 3:
        return ""
    return next(part.content for part in parts if part.type == "text" and part.content).strip().rstrip(".:")
