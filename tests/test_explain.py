"""``cai explain`` on tiny models: a finished run, two checkpoints, and runs without one principle each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.explaining import ablations, to_explain
from pipeline.chain.plan import plan
from pipeline.chain.preflight import preflight
from pipeline.chain.runner import Run, run
from pipeline.cli import main
from pipeline.core.cache import Manifest
from pipeline.core.errors import StageError
from pipeline.core.stage import Cost
from pipeline.explain.asked import Explanation
from pipeline.stages.explain import Explain
from tests.conftest import tiny_overrides
from tests.test_evaluate import SMALL

Finished = tuple[Run, list[str], Path]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("explained")
    overrides = tiny_overrides(tiny_model, out)
    return run(compose_config(overrides)), overrides, out / "outputs"


def planned(overrides: list[str]) -> Cost:
    """The cost of the stage, by ``cai plan``."""
    [step] = [step for step in plan(preflight(compose_config(overrides))) if step.stage == "explain"]
    return step.cost


def explanation_of(folder: Path) -> Explanation:
    [path] = folder.glob("[0-9]*-explain/explanation.json")
    return Explanation.model_validate_json(path.read_text(encoding="utf-8"))


def test_a_finished_run_is_explained_in_its_own_folder(finished: Finished, capsys: pytest.CaptureFixture[str]):
    before, overrides, out = finished
    cost = planned([*overrides, "explain.enabled=true"])
    made = {name: done.manifest.started for name, done in before.stages.items()}
    assert main(["explain", before.name, "tracking=none", f"output_dir={out}"]) in {0, 3}
    found = explanation_of(before.folder)
    assert found.models == ["base", "sft", "aligned"]
    assert set(found.findings) or found.notes
    assert 'id="explain"' in (before.folder / "report.html").read_text(encoding="utf-8")
    assert "What alignment changed, and why" in (before.folder / "report.md").read_text(encoding="utf-8")
    [folder] = before.folder.glob("[0-9]*-explain")
    spent = Manifest.read(folder)
    assert spent is not None and 0 < spent.num_calls <= cost.num_calls
    assert 0 < spent.num_tokens_written <= cost.num_tokens_written and cost.num_tokens_read > 0
    for name in set(made) - {"report"}:
        [folder] = before.folder.glob(f"[0-9]*-{name}")
        manifest = Manifest.read(folder)
        assert manifest is not None and manifest.started == made[name]
    capsys.readouterr()
    assert main(["explain", before.name, "tracking=none", f"output_dir={out}"]) in {0, 3}
    assert "explain: cached" in "".join(capsys.readouterr())


def test_an_unfinished_run_is_refused_and_not_finished(finished: Finished, capsys: pytest.CaptureFixture[str]):
    _, overrides, out = finished
    config = compose_config([*overrides, "seed=7", "until=critique", "name=begun"])
    run(config)
    assert main(["explain", "begun", f"output_dir={out}"]) == 2
    error = capsys.readouterr().err
    assert "begun has no finished sft" in error and "cai run" in error


def test_two_checkpoints_need_a_base(
    finished: Finished, random_model: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["explain", str(random_model), f"output_dir={tmp_path}"]) == 2
    assert "--base" in capsys.readouterr().err
    code = main(["explain", str(random_model), "--base", str(tiny_model), *SMALL, f"output_dir={tmp_path}"])
    assert code in {0, 3}
    found = explanation_of((tmp_path / "runs" / "latest-evaluation").resolve())
    assert len(found.models) == 2


def test_an_ablation_is_the_same_run_without_one_principle(finished: Finished):
    done, _, out = finished
    config = to_explain(compose_config([f"output_dir={out}"]), done.name, None)
    others = ablations(config)
    written = json.loads((done.folder / "config.json").read_text(encoding="utf-8"))
    assert written["constitution"]["without"] == []
    assert list(others) and all(other.constitution.without == [name] for name, other in others.items())
    assert not any(other.explain.enabled for other in others.values())
    assert len({other.name for other in others.values()}) == len(others)


def test_a_principle_that_is_not_there_can_not_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "constitution.without=[no-harms]", f"output_dir={tmp_path}"]) == 2
    assert "constitution.without has 'no-harms'" in capsys.readouterr().err


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    assert main(["explain", "nothing", f"output_dir={tmp_path}"]) == 2
    assert "there is no run 'nothing'" in capsys.readouterr().err
    assert main(["explain", "nothing", "--base", "embedded", "--ablate", f"output_dir={tmp_path}"]) == 2
    assert "--ablate" in capsys.readouterr().err


def test_the_old_report_stays_until_the_new_one_is_there(finished: Finished, monkeypatch: pytest.MonkeyPatch):
    done, overrides, out = finished
    asked = [f"output_dir={out}", "tracking=none", "explain.directions.enabled=false", "explain.depth.enabled=false"]
    report = done.folder / "report.html"
    assert main(["explain", done.name, *asked]) in {0, 3}
    before = report.read_text(encoding="utf-8")

    def fails(*args: object) -> None:
        raise StageError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Explain, "run", fails)
        assert main(["explain", done.name, *asked, "explain.adherence.num_probes=3"]) == 1
    assert report.read_text(encoding="utf-8") == before and (done.folder / "checkpoint").is_dir()
    assert main(["explain", done.name, *asked, "explain.adherence.num_probes=3"]) in {0, 3}
    names = [path.name.partition("-")[2] for path in sorted(done.folder.glob("[0-9]*-*"))]
    assert len(names) == len(set(names)) and names[-2:] == ["explain", "report"]
    run(compose_config(overrides))
    assert not list(done.folder.glob("[0-9]*-explain")), "the run without questions has no answers"


def test_settings_that_a_finished_run_does_not_take_are_refused(finished: Finished, capsys: pytest.CaptureFixture[str]):
    done, _, out = finished
    for word, message in (
        ("evaluate.guidelines=mine.yaml", "a finished run keeps its settings, so cai explain takes only explain,"),
        ("align=ppo", "align=ppo: a finished run keeps its settings"),
        (
            " ".join(f"explain.{name}.enabled=false" for name in
                     ("adherence", "principles", "depth", "directions", "reward")),
            "every question is switched off; switch one on",
        ),
    ):  # fmt: skip
        assert main(["explain", done.name, *word.split(), f"output_dir={out}"]) == 2
        assert message in capsys.readouterr().err
