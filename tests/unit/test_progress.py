"""Long work says how far it is, even where there is no terminal."""

from types import SimpleNamespace

import pytest

from pipeline.core import log as progress


def test_a_log_gets_lines_with_an_estimate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    with progress.Bar("replies", 4) as bar:  # begun at 0 s
        bar.advance(1, cached=True)  # 10 s: an earlier run paid for it
        bar.advance(1)  # 20 s: one in 20 s, two to go
        bar.advance(2)  # 30 s: the end needs no estimate
    assert said[-1] == "  replies: 2/4, about 40 s left" and len(said) == 2


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    with progress.Bar("replies", 2, quiet=True) as bar:
        bar.advance(1)
    assert not said


def test_durations_read_as_people_say_them():
    assert progress.duration(9.4) == "9 s" and progress.duration(130) == "2 min 10 s"
