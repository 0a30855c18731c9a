"""The peak of this process's memory, also where the operating system hides it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core import memory


def test_a_system_that_hides_the_peak_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmRSS:\t1024 kB\n")  # as in gVisor
    monkeypatch.setattr(memory, "_STATUS", status)
    monkeypatch.setattr(memory, "_RESET", tmp_path)  # writing to it is an error, as where /proc is read-only
    memory.start_peak()
    assert 0.01 < memory.peak_gib() < 1000
