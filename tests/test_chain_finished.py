"""The whole chain on a tiny model: what a finished run leaves, and what the next one runs again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.chain.config import Config
from pipeline.chain.order import CHAIN
from pipeline.chain.plan import plan
from pipeline.chain.preflight import preflight
from pipeline.chain.runner import Run, run
from pipeline.cli import main
from pipeline.constitution.files import load_constitution, shipped_constitutions, to_yaml
from pipeline.core.cache import Manifest
from pipeline.core.errors import StageError
from pipeline.core.log import console
from pipeline.evals.measures import by_model, measured
from pipeline.evals.results import Results
from pipeline.records import Exchange, Preference, Prompt, TrainingRow, Verdict, read_records
from tests.conftest import tiny_overrides

Tiny = Callable[..., Config]
OFF = {"write", "adversary", "reward", "guard", "attack", "explain"}  # by default; DPO reads the labels themselves
STAGES = [name for name in CHAIN if name not in OFF]


def made(result: Run) -> set[str]:
    return {name for name, finished in result.stages.items() if not finished.cached}


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str]]:
    from pipeline.chain.compose import compose_config

    overrides = tiny_overrides(tiny_model, tmp_path_factory.mktemp("finished"))
    return run(compose_config(overrides)), overrides


def test_one_command_ends_with_a_checkpoint_and_a_report(finished: tuple[Run, list[str]]):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result, _ = finished
    assert list(result.stages) == STAGES and made(result) == set(STAGES)
    AutoModelForCausalLM.from_pretrained(result.folder / "checkpoint")
    assert AutoTokenizer.from_pretrained(result.folder / "checkpoint").chat_template
    files = ("report.html", "report.md", "model_card.md", "gate.json", "tables/measures.csv", "tables/attacks.json")
    for name in (*files, "constitution.yaml", "config.json", "6-evaluate"):
        assert (result.folder / name).exists()
    assert not list((result.folder.parents[1] / "cache").glob("*.partial"))


def test_the_checkpoint_is_there_before_the_evaluation_ends(
    finished: tuple[Run, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from pipeline.chain.compose import compose_config
    from pipeline.stages.evaluate import Evaluate

    def stops(*_: object) -> None:
        raise StageError("the evaluation stops here.")

    result, overrides = finished
    shutil.copytree(result.folder.parents[1] / "cache", tmp_path / "cache", symlinks=True)
    for name in ("evaluate", "report"):
        shutil.rmtree(tmp_path / "cache" / result.stages[name].folder.name)
    monkeypatch.setattr(Evaluate, "run", stops)
    with pytest.raises(StageError, match="stops here"):
        run(compose_config([*overrides, f"output_dir={tmp_path}"]))
    checkpoint = tmp_path / "runs" / "latest" / "checkpoint"
    assert checkpoint.resolve().parent.name == result.stages["align"].folder.name


def test_the_aligned_model_differs_from_sft_and_sft_from_base(finished: tuple[Run, list[str]], tiny_model: Path):
    import torch
    from safetensors.torch import load_file

    result, _ = finished
    folders = {"base": tiny_model} | {name: result.stages[name].folder / "model" for name in ("sft", "align")}
    weights = {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
    key = next(key for key in weights["base"] if "q_proj" in key)
    assert not torch.equal(weights["base"][key], weights["sft"][key])
    assert not torch.equal(weights["sft"][key], weights["align"][key])


def test_the_reports_numbers_are_recomputed_from_its_records(finished: tuple[Run, list[str]]):
    result, _ = finished
    verdicts = list(read_records(result.folder / "6-evaluate" / "verdicts.jsonl", Verdict))
    table = measured(by_model(verdicts), 0.95)
    results = Results.model_validate_json((result.folder / "6-evaluate" / "results.json").read_text(encoding="utf-8"))
    text = (result.folder / "report.md").read_text(encoding="utf-8")
    assert results.models == ["base", "sft", "aligned"]
    for model in results.models:
        for name, found in table[model].items():
            assert results.measures[model][name] == found
            assert str(found) in text
    complied = [
        v
        for v in verdicts
        if v.case.suites == ["red_team"]
        and v.case.attack == "direct"
        and v.outcome == "complied"
        and v.model == "aligned"
    ]
    assert table["aligned"]["harmful_complied"].count == len(complied)


def test_nothing_evaluated_was_trained_on(finished: tuple[Run, list[str]]):
    result, _ = finished
    folder = result.folder
    evaluated = {v.case.prompt.key for v in read_records(folder / "6-evaluate" / "verdicts.jsonl", Verdict)}
    trained = {
        p.comparison.prompt.key for p in read_records(folder / "4-preferences" / "preferences.jsonl", Preference)
    }
    trained |= {e.prompt.key for e in read_records(folder / "2-critique" / "exchanges.jsonl", Exchange)}
    assert evaluated and trained and not evaluated & trained


def test_every_training_row_leads_back_to_its_source(finished: tuple[Run, list[str]]):
    result, _ = finished
    exchanges = {e.prompt.id: e for e in read_records(result.folder / "2-critique" / "exchanges.jsonl", Exchange)}
    constitution = load_constitution(result.folder / "constitution.yaml")
    taught = {
        "worked_example": {example.id: example.revision for example in constitution.worked_examples},
        "contrast": {contrast.id: contrast.revision for contrast in constitution.contrasts},
        "good_answer": {answer.id: answer.reply for answer in constitution.good_answers},
    }
    rows = list(read_records(result.folder / "3-sft" / "rows.jsonl", TrainingRow))
    origins = {row.origin for row in rows}
    assert origins == {"revision", "helpful_sample", "worked_example", "good_answer"}
    for row in rows:
        if row.origin == "revision":
            exchange = exchanges[row.source_id]
            revision = next(r for r in exchange.revisions if r.revision == row.reply)
            assert constitution.principle(revision.principle_id) and exchange.template and exchange.policy
        elif row.origin in taught:
            assert taught[row.origin][row.source_id] == row.reply


def test_nothing_changed_means_nothing_is_run_again(finished: tuple[Run, list[str]]):
    from pipeline.chain.compose import compose_config

    _, overrides = finished
    config = compose_config(overrides)
    assert made(run(config)) == set()
    assert {step.state for step in plan(preflight(config))} == {"cached"}
    # Finding that out needs no heavy package.
    asked = "import sys; from pipeline.cli import main; main(sys.argv[1:])"
    loaded = "print({'transformers', 'peft', 'trl', 'datasets', 'accelerate'} & set(sys.modules))"
    command = [sys.executable, "-c", f"{asked}; {loaded}", "run", *overrides]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("set()\n")
    # Where and how it runs is not what it means.
    elsewhere = compose_config([*overrides, "launch.batch_rows=3", "name=renamed", "sft.save_every_steps=7"])
    assert made(run(elsewhere)) == set()


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        ("model.name=renamed", {"report"}),
        ("evaluate.confidence=0.8", {"evaluate", "report"}),
        ("evaluate.max_reply_tokens=3", {"evaluate", "report"}),
        ("align.beta=0.2", {"align", "evaluate", "report"}),
        ("preferences=pointwise", {"preferences", "align", "evaluate", "report"}),
        ("sft.learning_rate=0.001", {"sft", "preferences", "align", "evaluate", "report"}),
    ],
)
def test_a_change_reruns_only_what_depends_on_it(finished: tuple[Run, list[str]], change: str, rerun: set[str]):
    from pipeline.chain.compose import compose_config

    _, overrides = finished
    assert made(run(compose_config([*overrides, change]))) == rerun


@pytest.mark.parametrize(
    ("edit", "rerun"),
    [
        ({"preference_question": "Which is kinder?"}, {"report"}),  # the likelihood labeller does not ask it
        ({"title": "Another title"}, {"preferences", "align", "evaluate", "report"}),
        ({"critique_request": "Say what is wrong with it."}, set(STAGES) - {"prompts"}),
    ],
)
def test_an_edited_principle_reruns_only_what_reads_it(
    finished: tuple[Run, list[str]], tmp_path: Path, edit: dict[str, str], rerun: set[str]
):
    from pipeline.chain.compose import compose_config

    _, overrides = finished
    data = yaml.safe_load(to_yaml(load_constitution(shipped_constitutions()["minimal"])))
    for principle in data["principles"]:
        principle.update(edit)
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    changed = made(run(compose_config([*overrides, f"constitution.path={path}"])))
    assert changed <= rerun and {"report"} <= changed and next(iter(s for s in STAGES if s in rerun)) in changed


def test_same_seed_same_records_other_seed_others(tiny: Tiny, finished: tuple[Run, list[str]]):
    result, _ = finished
    again = run(tiny("until=critique"))
    assert made(again) == {"prompts", "critique"}
    for name in ("prompts", "critique"):
        assert again.stages[name].manifest.content_hash == result.stages[name].manifest.content_hash
    other = run(tiny("until=critique", "seed=1"))
    assert other.stages["critique"].manifest.content_hash != again.stages["critique"].manifest.content_hash


def test_two_runs_at_once_share_the_work(tiny: Tiny, capsys: pytest.CaptureFixture[str]):
    results: list[Run] = []
    config = tiny("until=critique")
    threads = [threading.Thread(target=lambda: results.append(run(config))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert sum(len(made(result)) for result in results) == 2, "each of the two stages is made once"
    hashes = {result.stages["critique"].manifest.content_hash for result in results}
    assert len(hashes) == 1


def test_a_reused_name_shows_only_the_new_run(tiny: Tiny):
    first = run(tiny("name=mine"))
    assert (first.folder / "report.html").exists() and (first.folder / "checkpoint").exists()
    again = run(tiny("name=mine", "seed=7", "until=critique"))
    assert sorted(path.name for path in again.folder.iterdir() if path.is_symlink()) == ["1-prompts", "2-critique"]
    assert not (again.folder / "report.html").exists()


def test_outputs_below_the_model_and_half_characters_in_the_data_change_nothing(
    tiny: Tiny, tiny_model: Path, tmp_path: Path
):
    model, prompts = tmp_path / "model", tmp_path / "mine.jsonl"
    shutil.copytree(tiny_model, model)
    prompts.write_text("".join(json.dumps({"prompt": f"Half \ud83d of question {i}?"}) + "\n" for i in range(40)))
    (model / "outputs").mkdir()
    (tmp_path / "disk").mkdir()
    (model / "outputs" / "runs").symlink_to(tmp_path / "disk")
    data = ["data=local", f"data.red_team.path={prompts}"]
    config = tiny(f"model.path={model}", f"output_dir={model}/outputs", *data, "until=critique")
    first, again = run(config), run(config)
    assert made(first) == {"prompts", "critique"} and not made(again)
    exchanges = list(read_records(again.folder / "2-critique" / "exchanges.jsonl", Exchange))
    assert any("Half \ufffd of question" in exchange.prompt.request for exchange in exchanges)


def test_a_folder_without_a_manifest_is_moved_aside(tiny: Tiny):
    config = tiny("until=critique")
    first = run(config).stages["critique"]
    (first.folder / "manifest.json").unlink()
    again = run(config).stages["critique"]
    assert again.manifest.content_hash == first.manifest.content_hash
    assert len(list(first.folder.parent.glob("critique-*.damaged-*"))) == 1


def test_status_tells_how_far_a_run_is(finished: tuple[Run, list[str]], capsys: pytest.CaptureFixture[str]):
    result, _ = finished
    assert main(["status", str(result.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == result.name and all("done" in line for line in lines[1:]) and len(lines) == 1 + len(STAGES)


def test_manifests_tell_what_was_run_where(finished: tuple[Run, list[str]]):
    result, _ = finished
    manifest = Manifest.read(result.stages["align"].folder)
    assert manifest is not None
    assert set(manifest.inputs) == {"sft", "preferences"} and manifest.environment["precision"] == "float32"
    assert 0 < manifest.busy_seconds <= manifest.seconds
    prompts = list(read_records(result.folder / "1-prompts" / "prompts.jsonl", Prompt))
    assert result.stages["prompts"].manifest.metrics["num_prompts"] == len(prompts)
    assert console.stderr
