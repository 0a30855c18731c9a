"""Messages go through logging: a terminal, a file of the run, and silence where it is asked for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError
from pipeline.core.log import LOG_FILE, logged_to, logger, quiet, say, warn


def test_a_run_keeps_a_log_with_times_and_levels(tmp_path: Path):
    with logged_to(tmp_path):
        say("sft: done")
        warn("the disk is nearly full.")
    say("not of this run")
    lines = (tmp_path / LOG_FILE).read_text(encoding="utf-8").splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == ["INFO sft: done", "WARNING the disk is nearly full."]
    with logged_to(tmp_path):
        say("again")
    assert len((tmp_path / LOG_FILE).read_text(encoding="utf-8").splitlines()) == 3


def test_what_ends_a_run_stands_in_its_log(tmp_path: Path):
    with pytest.raises(ConfigError), logged_to(tmp_path):
        raise ConfigError("seed is 'x'.")
    assert "ERROR ConfigError: seed is 'x'." in (tmp_path / LOG_FILE).read_text(encoding="utf-8")


def test_quiet_shows_warnings_only_but_the_file_has_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    terminal = logger.handlers[0]
    try:
        quiet()
        with logged_to(tmp_path):
            say("hello")
            warn("careful.")
    finally:
        terminal.setLevel(logging.NOTSET)
    shown = capsys.readouterr().err
    assert "hello" not in shown and "warning: careful." in shown
    assert "hello" in (tmp_path / LOG_FILE).read_text(encoding="utf-8")
