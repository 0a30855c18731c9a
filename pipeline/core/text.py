"""Words and sentences in any script, by the Unicode properties of their characters."""

from __future__ import annotations

from itertools import pairwise

import regex

# Scripts that write no spaces between words: each character counts as a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[\w--[{_UNSPACED}]]+(?:['’][\w--[{_UNSPACED}]]+)*", regex.VERSION1)
_CLOSERS = r"[\p{Pe}\p{Pf}\"'*]*"  # quotes and brackets that may follow the mark at the end of a sentence
# Marks of Chinese and Japanese need no space after them. Thai and Lao have no mark: a space ends a clause.
_END = regex.compile(
    rf"[。！？｡]+{_CLOSERS}|(?:\p{{SB=STerm}}|[.…])+{_CLOSERS}(?=\s|$)|(?<=[\p{{Thai}}\p{{Lao}}]\p{{M}}*)(?=\s)"
)
_LIST_NUMBER = regex.compile(r"(?:^|\n)[ \t]*\d+$")
_CHARACTERS_PER_TOKEN = 4  # of English


def count_of(number: int, noun: str) -> str:
    """ "1 principle", "2 principles"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def about_tokens(*texts: str) -> int:
    """Tokens of all texts together, for an estimate without a tokenizer."""
    return sum(map(len, texts)) // _CHARACTERS_PER_TOKEN


def joined(begun: str, continuation: str) -> str:
    """A reply from its given beginning and what an engine wrote after it, whose first space engines cut off.

    No space is put before a sign such as a comma or an apostrophe.
    """
    gap = " " if begun and not begun[-1].isspace() and continuation[:1].isalnum() else ""
    return begun + gap + continuation


def words(text: str) -> list[str]:
    """The words of a text, in lower case and without punctuation."""
    return _WORD.findall(text.casefold())


def first_words(text: str, number: int) -> str:
    """The beginning of a text, up to the end of so many words."""
    ends = [word.end() for word in _WORD.finditer(text)][:number]
    return text[: ends[-1]] if ends else text


def sentence_ends(text: str) -> list[int]:
    """Where sentences end: the positions after their marks. The number of a list item ("2.") ends no sentence."""
    return [end.end() for end in _END.finditer(text) if not _is_list_number(text, end.start(), end.end())]


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the spaces between them; what follows the last mark counts as one."""
    ends = [0, *sentence_ends(text), len(text)]
    parts = (text[start:end].strip() for start, end in pairwise(ends))
    return [part for part in parts if part]


def _is_list_number(text: str, start: int, end: int) -> bool:
    """Whether the mark at ``start`` follows a number that begins a line, or goes on in small letters."""
    if not text[:start][-1:].isdigit():
        return False
    return bool(_LIST_NUMBER.search(text[:start])) or text[end:].lstrip()[:1].islower()


def beginning(text: str, most: int) -> str:
    """The beginning of a text in at most ``most`` characters: whole sentences if they fill half of that, else whole
    words; "" if not even the first word fits."""
    if len(text) <= most:
        return text
    sentences = [end for end in sentence_ends(text) if end <= most]
    whole = [word.end() for word in _WORD.finditer(text) if word.end() <= most]
    if sentences and 2 * sentences[-1] >= most:
        return text[: sentences[-1]].rstrip()
    return text[: whole[-1]] if whole else ""


def whole_characters(text: str) -> str:
    """Replace NUL and half characters (lone surrogates, which no file can hold) by U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
