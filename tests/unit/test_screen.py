"""What is printed on a terminal, and what is kept where the output goes to a file."""

from __future__ import annotations

import sys

import pytest

from pipeline.cli.screen import WIDTH, console, print_markdown

TABLE = "# Comparison\n\n| measure | run 1 |\n| --- | --- |\n| Broken replies | 2 % |\n"


def test_markdown_is_kept_as_it_is_in_a_file(capsys: pytest.CaptureFixture[str]):
    print_markdown(TABLE)
    assert capsys.readouterr().out == TABLE
    assert console().width == WIDTH


def test_markdown_is_a_table_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_markdown(TABLE)
    printed = capsys.readouterr().out
    assert "Broken replies" in printed and "2 %" in printed and "|" not in printed and "#" not in printed
