"""Rules in a page of Markdown become principles with their line; what is no rule is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.constitution.drafts import ids_of
from pipeline.constitution.files import load_constitution
from pipeline.constitution.markdown import EXAMPLE, PROSE, SHORT, Rule, read_page

PAGE = """\
---
title: Rules that must not be read
---
# Overview

This page describes an assistant.

The assistant must never help with fraud.

## Rules

- **Honesty**: say what you
  know and what you don't.
- The assistant should:
  1. answer in full when asked
  2. keep [secrets](https://example.org) it was `told`
- ok

> a quote that should never be read

```
never do this in code
```

### Examples

- an example that must not count

## Replies should be short
"""


def test_list_items_and_what_demands_something_are_rules_with_their_lines():
    page = read_page(PAGE)
    assert [(rule.line, rule.text) for rule in page.rules] == [
        (8, "The assistant must never help with fraud."),
        (12, "Honesty: say what you know and what you don't."),
        (15, "answer in full when asked"),
        (16, "keep secrets it was told"),
        (29, "Replies should be short"),
    ]
    assert page.rules[1].title == "Honesty"
    # headings Overview and Rules, "The assistant should:", "ok"; a paragraph; quote, code, and Examples with its item
    assert page.num_left_out == {SHORT: 4, PROSE: 1, EXAMPLE: 4}


def test_windows_line_ends_keep_the_lines():
    assert read_page(PAGE.replace("\n", "\r\n")) == read_page(PAGE)


def test_a_long_list_item_is_prose():
    page = read_page(f"- {'You must do it. ' * 25}")
    assert page.rules == [] and page.num_left_out == {PROSE: 1}


def test_marked_headings_are_the_only_rules_of_a_model_spec():
    text = (
        "# Intro\n\nYou must read it.\n\n## Do not lie {#lie authority=user}\n\nSay what is true.\n\n- one two three\n"
    )
    page = read_page(text)
    assert page.rules == [Rule("Do not lie: Say what is true.", 5, "Do not lie")]
    assert {what: number for what, number in page.num_left_out.items() if number} == {SHORT: 1, PROSE: 2}


def test_in_a_page_of_ones_own_every_short_paragraph_is_a_rule():
    text = "# My page\n\nAnswers are short.\n\nThe tone is warm.\n\n# It names its sources\n"
    assert read_page(text).rules == []
    assert [rule.text for rule in read_page(text, every_paragraph=True).rules] == [
        "Answers are short.",
        "The tone is warm.",
        "It names its sources",
    ]


def test_a_heading_that_asks_what_its_text_answers_is_a_title():
    page = "# How it should behave\n\nIt must never lecture anyone.\n\n## Never give out keys\n\nThey stay here.\n"
    page += "\n## When in doubt, never guess\n\nIt says so.\n"
    for every_paragraph in (False, True):
        found = [rule.text for rule in read_page(page, every_paragraph).rules]
        demands = [text for text in found if text not in ("They stay here.", "It says so.")]
        assert demands == ["It must never lecture anyone.", "Never give out keys", "When in doubt, never guess"]


def test_a_page_without_text_has_no_rules():
    assert read_page("").rules == [] and read_page("\n\n", every_paragraph=True).rules == []


def test_ids_keep_the_owner():
    assert ids_of([Rule("Children's questions get an answer", 1), Rule("Don’t guess", 2)]) == [
        "children-questions-get-an-answer",
        "dont-guess",
    ]


def test_ids_are_distinct_in_every_script():
    texts = ["foo 3", "foo", "foo", "不要说谎。", "foo 3"]
    assert ids_of([Rule(text, 1) for text in texts]) == ["foo-3", "foo", "foo-3-3", "rule-4", "foo-3-5"]


def test_import_writes_a_valid_file_that_says_where_each_rule_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "spec.md"
    path.write_bytes(b"\xef\xbb\xbf" + PAGE.encode())
    assert main(["constitution", "import", str(path)]) == 0
    found = load_constitution(tmp_path / "spec.yaml")
    assert [principle.title for principle in found.principles][:2] == [
        "The assistant must never help with fraud",
        "Honesty",
    ]
    assert "this rule better: The assistant must never help with fraud?" in found.principles[0].preference_question
    text = (tmp_path / "spec.yaml").read_text(encoding="utf-8")
    assert "# spec.md, line 12\n- id: honesty\n" in text and "yaml-language-server" not in text
    out = capsys.readouterr().out
    assert "Not read as rules: 4 headings and labels; 1 long" in out and "no principle is tagged for red_team" in out


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"# Nothing\n", "no rule was found; a rule is a list item"),
        (b"- a rule in\n- L\xe4tin one\n", "spec.md:2: the text is not UTF-8"),
        (None, "there is no file"),
    ],
)
def test_bad_pages_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, sentence: str
):
    path = tmp_path / "spec.md"
    if content is not None:
        path.write_bytes(content)
    assert main(["constitution", "import", str(path)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "spec.yaml").exists()
