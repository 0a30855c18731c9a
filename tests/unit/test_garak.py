"""garak as a subprocess, replaced by a script that writes reports in the format of garak 0.17."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfigError, StageError
from pipeline.evals import garak
from pipeline.evals.garak import ProbeResult, garak_command, parse_report, run_garak

# Appends what it was given to calls.jsonl beside itself; what it does follows from the probe's class.
FAKE = """
import argparse, json, os, pathlib, sys

parser = argparse.ArgumentParser()
for name in ("config", "target_name", "spec"):
    parser.add_argument("--" + name, required=True)
args = parser.parse_args()
settings = json.loads(pathlib.Path(args.config).read_text())
with pathlib.Path(__file__).with_name("calls.jsonl").open("a") as file:
    file.write(json.dumps(vars(args) | {"settings": settings, "env": dict(os.environ)}) + "\\n")

probe = args.spec.removeprefix("probes.")
kind = probe.split(".")[1]
print("some progress\\nthis is what went wrong" if kind != "Works" else "done", file=sys.stderr)
if kind == "Crashes":
    sys.exit(3)
if kind == "Unknown":
    sys.exit(0)
counts = {"passed": 0, "fails": 0, "nones": 2, "total_evaluated": 0, "total_processed": 2}
if kind != "Unjudged":
    counts = {"passed": 12, "fails": 4, "nones": 1, "total_evaluated": 16, "total_processed": 17}
rows = [{"entry_type": "start_run setup"}, {"entry_type": "init", "garak_version": "0.17.1"}]
if kind != "Unloadable":
    rows.append({"entry_type": "attempt", "probe_classname": probe, "detector_results": {"d.D": [0.0]}})
    rows.append({"entry_type": "eval", "probe": probe, "detector": "d.D", **counts})
if kind != "Interrupted":
    rows.append({"entry_type": "completion"})
reporting = settings["reporting"]
report = pathlib.Path(reporting["report_dir"], reporting["report_prefix"] + ".report.jsonl")
report.write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without garak."""
    monkeypatch.setattr(garak, "find_spec", lambda name: None)
    monkeypatch.setattr(garak.shutil, "which", lambda name: None)
    monkeypatch.delenv("CAI_GARAK", raising=False)
    return monkeypatch


@pytest.fixture
def calls(tmp_path: Path, nowhere: pytest.MonkeyPatch) -> Path:
    """A garak that ``CAI_GARAK`` names, and the file in which it notes its calls."""
    home = tmp_path / "fake garak"
    home.mkdir()
    (home / "garak.py").write_text(FAKE, encoding="utf-8")
    nowhere.setenv("CAI_GARAK", shlex.join([sys.executable, str(home / "garak.py")]))
    return home / "calls.jsonl"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    return tmp_path / "model"


def read(calls: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()]


def test_each_probe_is_run_offline_and_its_counts_come_back(calls: Path, model: Path, tmp_path: Path):
    results = run_garak(model, ["a.Works", "b.Works"], tmp_path / "out", generations=3)
    assert results == [
        ProbeResult(probe=p, detector="d.D", num_attempts=16, num_passed=12) for p in ("a.Works", "b.Works")
    ]
    first, second = read(calls)
    assert (first["spec"], second["spec"]) == ("probes.a.Works", "probes.b.Works")
    assert first["target_name"] == str(model) and first["settings"]["run"]["generations"] == 3
    assert first["env"]["HF_HUB_OFFLINE"] == "1"
    plugins = first["settings"]["plugins"]
    assert plugins["target_type"] == "huggingface.Pipeline"
    assert plugins["generators"]["huggingface"]["Pipeline"]["hf_args"]["device"] in {"cpu", "cuda"}


def test_a_finished_probe_is_not_run_again(calls: Path, model: Path, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(StageError):
        run_garak(model, ["a.Works", "b.Crashes"], out)
    results = run_garak(model, ["a.Works", "c.Works"], out)
    assert [result.probe for result in results] == ["a.Works", "c.Works"]
    assert [call["spec"] for call in read(calls)] == ["probes.a.Works", "probes.b.Crashes", "probes.c.Works"]
    assert run_garak(model, ["a.Works", "c.Works"], out) == results and len(read(calls)) == 3


def test_another_model_or_other_arguments_are_run_anew(calls: Path, model: Path, tmp_path: Path):
    out = tmp_path / "out"
    run_garak(model, ["a.Works"], out)
    run_garak(model, ["a.Works"], out, generations=2)
    (model / "config.json").write_text('{"other": 1}', encoding="utf-8")
    run_garak(model, ["a.Works"], out)
    assert len(read(calls)) == 3


@pytest.mark.parametrize("kind", ["Crashes", "Unknown", "Unloadable", "Unjudged", "Interrupted"])
def test_a_failure_names_the_probe_and_the_log(calls: Path, model: Path, tmp_path: Path, kind: str):
    for attempt in (1, 2):  # what is left of a failure is neither reused nor in the way
        with pytest.raises(StageError, match=rf"no result for a\.{kind} \(exit code {3 if kind == 'Crashes' else 0}\)"):
            run_garak(model, [f"a.{kind}"], tmp_path / "out")
        assert len(read(calls)) == attempt
    (log,) = (tmp_path / "out").rglob("garak.log")
    assert log.read_text(encoding="utf-8").endswith("this is what went wrong\n")


def test_lines_that_cannot_be_read_are_counted(tmp_path: Path):
    path = tmp_path / "garak.report.jsonl"
    good = {"entry_type": "eval", "probe": "a.A", "detector": "d.D", "passed": 1, "total_evaluated": 2}
    path.write_bytes(
        json.dumps(good).encode()
        + b'\n{"entry_type": "completion"}\n{"entry_type": "eval", "probe": "a.A"}\n[1]\nnonsense\n\xff\xfe\n'
        + json.dumps(good | {"passed": None}).encode()
        + b'\n{"entry_type": "ev'
    )
    assert parse_report(path) == ([ProbeResult(probe="a.A", detector="d.D", num_attempts=2, num_passed=1)], 6)


def test_unreadable_lines_of_a_run_are_reported(
    calls: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    warnings: list[str] = []
    monkeypatch.setattr(garak, "warn", warnings.append)
    run_garak(model, ["a.Works"], tmp_path / "out")
    (report,) = (tmp_path / "out").rglob("garak.report.jsonl")
    report.write_bytes(report.read_bytes() + b"cut sho")
    assert len(run_garak(model, ["a.Works"], tmp_path / "out")) == 1
    assert len(warnings) == 1 and warnings[0].startswith("1 line(s)")


def test_without_garak_the_remedy_is_named(nowhere: pytest.MonkeyPatch, model: Path, tmp_path: Path):
    assert garak_command() is None
    with pytest.raises(ConfigError, match=r"pip install garak.*CAI_GARAK"):
        run_garak(model, ["a.Works"], tmp_path / "out")
    nowhere.setenv("CAI_GARAK", "no-such-garak --flag")
    with pytest.raises(ConfigError, match=r"'no-such-garak'.*CAI_GARAK"):
        run_garak(model, ["a.Works"], tmp_path / "out")


def test_where_garak_is_looked_for(nowhere: pytest.MonkeyPatch):
    nowhere.setattr(garak.shutil, "which", lambda name: f"/bin/{name}")
    assert garak_command() == ["/bin/garak"]
    nowhere.setattr(garak, "find_spec", lambda name: object())
    assert garak_command() == [sys.executable, "-m", "garak"]
    nowhere.setenv("CAI_GARAK", "'/a b/python' -m garak")  # what is named goes before what is found
    assert garak_command() == ["/a b/python", "-m", "garak"]
