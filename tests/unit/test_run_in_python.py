"""A finished run, opened in Python."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import Run
from pipeline.chain.config import Config, to_plain
from pipeline.constitution.files import to_yaml
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.report.write import write_report
from tests.report_data import CONSTITUTION, make_report, write_stages


@pytest.fixture
def folder(tiny: Callable[..., Config], tmp_path: Path) -> Path:
    """A run with all stages but ``align``, and its report."""
    report = make_report()
    made = write_stages(report, tmp_path / "outputs" / "cache")
    run = tmp_path / "outputs" / "runs" / "mine"
    run.mkdir(parents=True)
    for number, (stage, place) in enumerate(made.items()):
        (run / f"{number}-{stage}").symlink_to(place)
    (run / "config.json").write_text(json.dumps(to_plain(tiny("align=dpo"))), encoding="utf-8")
    (run / "constitution.yaml").write_text(to_yaml(CONSTITUTION), encoding="utf-8")
    write_report(report, run)
    return run


def test_tables_and_records_of_a_run(folder: Path, tmp_path: Path):
    run = Run.load("mine", str(tmp_path / "outputs"))
    assert run.gate in {"PASS", "FAIL", "UNDECIDED"} and run.constitution.name == CONSTITUTION.name
    changes = run.table("changes")
    assert {"measure", "difference", "low", "high", "verdict"} <= set(changes.columns) and len(changes)
    assert run.report.exists() and "mine" in repr(run)
    assert len(run.verdicts) == len(run.verdicts.to_pandas()) > 0
    assert "case.prompt.kind" in run.verdicts.to_pandas().columns


def test_preferences_are_in_the_layout_of_trl(folder: Path):
    run = Run(folder)
    rows = run.preferences.to_datasets()
    decided = [p for p in run.preferences if p.probability_a not in (None, 0.5)]
    assert len(rows) == len(decided)
    for row, preference in zip(rows, decided, strict=True):
        pair, a_wins = preference.comparison, preference.probability_a > 0.5
        assert row["prompt"] == pair.prompt.messages
        assert row["chosen"] == [{"role": "assistant", "content": pair.reply_a if a_wins else pair.reply_b}]
        assert row["rejected"] == [{"role": "assistant", "content": pair.reply_b if a_wins else pair.reply_a}]
        assert row["probability_chosen"] == pytest.approx(max(preference.probability_a, 1 - preference.probability_a))
    first = next(iter(run.sft_rows))
    row = run.sft_rows.to_datasets()[0]
    assert row["prompt"] == first.messages and row["completion"][0]["content"] == first.reply


def test_what_the_documentation_shows_works(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (Path(__file__).parents[2] / "docs" / "daily.md").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert shown
    (folder.parent / "latest").symlink_to(folder.name)
    (folder / "checkpoint").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(shown.group(1), names)
    assert names["run"].checkpoint == tmp_path.resolve()  # type: ignore[attr-defined]


def test_the_notebook_runs_from_top_to_bottom(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    notebook = json.loads((Path(__file__).parents[2] / "docs" / "run_in_python.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert sum(len(cell.splitlines()) for cell in cells) <= 15
    (folder.parent / "latest").symlink_to(folder.name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    shown = [show(cell, names) for cell in cells]
    assert names["run"].name == "mine" and "Run('mine'" in repr(shown[0])  # type: ignore[attr-defined]
    assert all(len(found) for found in shown[1:])  # type: ignore[arg-type]


def show(cell: str, names: dict[str, object]) -> object:
    """What a notebook shows after a cell: the value of its last line."""
    tree = ast.parse(cell)
    last = tree.body.pop()
    assert isinstance(last, ast.Expr), "a cell of this notebook shows something"
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_what_is_not_there_is_one_sentence(folder: Path, tmp_path: Path):
    run = Run(folder)
    with pytest.raises(ConfigError, match="no table 'change'; did you mean 'changes'"):
        run.table("change")
    with pytest.raises(ConfigError, match="has no checkpoint"):
        _ = run.checkpoint
    with pytest.raises(ConfigError, match="there is no run 'other'"):
        Run.load("other", str(tmp_path / "outputs"))
    next(folder.glob("*-sft")).unlink()
    with pytest.raises(ArtifactError, match="no finished stage sft"):
        _ = run.sft_rows
