"""Sweeps: they share what is the same, end in a comparison, and go on when a job stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.chain import runner
from pipeline.chain.config import Config
from pipeline.chain.runner import Run, run
from pipeline.cli import main
from pipeline.core.errors import StageError
from tests.conftest import tiny_overrides


def test_a_sweep_shares_what_is_the_same_and_ends_in_a_comparison(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = main(["run", "-m", *tiny_overrides(tiny_model, tmp_path), "align.beta=0.1,0.5"])
    assert code in {0, 3}  # a babbling model may well fail the guidelines
    shown = capsys.readouterr().out
    assert "align.beta=0.5" in shown and "| Harmful requests complied with |" in shown
    cache = tmp_path / "outputs" / "cache"
    assert len(list(cache.glob("sft-*"))) == 1 and len(list(cache.glob("align-*"))) == 2
    names = [path.name for path in (tmp_path / "outputs" / "runs").iterdir() if path.name != "latest"]
    assert main(["compare", *names, "--output-dir", str(tmp_path / "outputs")]) == 0


def test_a_job_of_a_sweep_that_stops_costs_no_other_job(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stops_once(config: Config) -> Run:
        if config.align.beta == 0.5:
            raise StageError("the reward model is no better than length")
        return run(config)

    monkeypatch.setattr(runner, "run", stops_once)
    assert main(["run", "-m", *tiny_overrides(tiny_model, tmp_path), "align.beta=0.5,0.1,0.2"]) == 1
    shown = capsys.readouterr()
    assert "job 'align.beta=0.5' stopped: the reward model is no better than length" in shown.err
    assert "1 of 3 jobs stopped (align.beta=0.5), for the reasons above; the others are done." in shown.err
    assert (
        "align.beta=0.1" in shown.out and "align.beta=0.2" in shown.out and "| Harmful requests complied" in shown.out
    )


def test_sweeps_refuse_one_name_and_stop_where_they_are_told(tiny_model: Path, tmp_path: Path):
    overrides = tiny_overrides(tiny_model, tmp_path)
    assert main(["run", "-m", *overrides, "name=x", "align.beta=0.1,0.5"]) == 2
    assert main(["run", "-m", *overrides, "seed=1,2", "until=prompts"]) == 0
