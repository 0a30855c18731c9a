"""What the chain refuses or warns of: settings, models, data and artifacts that do not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.chain.config import Config
from pipeline.chain.preflight import preflight
from pipeline.chain.runner import run
from pipeline.cli import main
from pipeline.constitution.files import load_constitution, shipped_constitutions, to_yaml
from pipeline.core.errors import ArtifactError, ConfigError, StageError

Tiny = Callable[..., Config]


def test_openings_need_a_method_and_a_constitution_that_learn_from_them(tiny: Tiny):
    for overrides, message in (
        (("align=dpo_whole", "preferences=openings"), "align.method is 'dpo', which needs whole replies"),
        (("preferences.pairs=sampled",), "preferences.labels is 'pool', .* but preferences.pairs is 'sampled'"),
        (
            ("preferences.pairs=sampled", "preferences.labels=labeller"),
            "align.method is 'decide', .* but preferences.pairs is 'sampled'",
        ),
        (
            ("constitution=minimal", "align=decide", "preferences=openings"),
            "'minimal' does not show how a refusal begins",
        ),
        (
            ("constitution=minimal", "align=decide", "preferences=ab"),
            "'minimal' does not show how a refusal begins; use",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tiny("constitution=default", *overrides))
    assert run(tiny("constitution=default", "align=dpo", "preferences=openings", "until=prompts"))


def test_labels_none_of_which_can_be_read_stop_the_run(tiny: Tiny):
    config = tiny("preferences=ab", "preferences.labeller.min_answer_mass=1")
    with pytest.raises(StageError, match=r"judgements of the labeller base can't be read; use another labeller"):
        run(config)


def test_an_overlap_between_training_and_evaluation_is_refused(tiny: Tiny, tmp_path: Path):
    config = tiny()
    data = yaml.safe_load(to_yaml(load_constitution(shipped_constitutions()["minimal"])))
    from pipeline.data.loading import load_prompts

    held_out = load_prompts(config.data).select("red_team", "test")[0]
    data["worked_examples"][0]["request"] = held_out.request.upper()
    path = tmp_path / "leaky.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"held-out prompt {held_out.id} .* is also trained on"):
        run(tiny(f"constitution.path={path}"))


def test_bad_models_and_folders_are_refused_before_anything_runs(tiny: Tiny, tmp_path: Path, tiny_model: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        run(tiny(f"model.path={empty}"))
    with pytest.raises(ConfigError, match="there is no model folder"):
        run(tiny("model.path=./nowhere"))
    untemplated = tmp_path / "untemplated"
    untemplated.mkdir()
    for path in tiny_model.iterdir():
        if path.name != "chat_template.jinja":
            (untemplated / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="has no chat template"):
        run(tiny(f"model.path={untemplated}"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output_dir is .* can't be written"):
        run(tiny(f"output_dir={tmp_path / 'file'}"))
    with pytest.raises(ConfigError, match="there is no GPU"):
        run(tiny("launch=fsdp2"))
    assert not (tmp_path / "outputs" / "cache").exists()


def test_the_command_line_reports_mistakes_without_a_traceback(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "sft.num_epoch=3"]) == 2
    assert main(["run", "--frobnicate"]) == 2
    assert main(["constitution", "check", "gone.yaml"]) == 2
    assert main(["status", "nothing", "--output-dir", "nowhere"]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 4 and all(line.startswith("error: ") for line in shown)


def test_damaged_models_are_refused_before_anything_runs(tiny: Tiny, tiny_model: Path, tmp_path: Path):
    for name, text, expected in (
        ("config.json", "{}", "has no model_type"),
        ("model.safetensors", "short", "is damaged"),
        ("chat_template.jinja", "{% for", "can't render a dialogue"),
        ("chat_template.jinja", "hello", "leaves out"),
    ):
        folder = tmp_path / f"{name}-{len(text)}"
        shutil.copytree(tiny_model, folder)
        (folder / name).write_text(text)
        with pytest.raises(ConfigError, match=expected):
            run(tiny(f"model.path={folder}"))


def test_a_damaged_input_is_refused_before_a_stage_reads_it(tiny: Tiny):
    critique = run(tiny("until=critique")).stages["critique"].folder
    lines = (critique / "exchanges.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (critique / "exchanges.jsonl").write_text("".join(lines[1:]), encoding="utf-8")
    with pytest.raises(ArtifactError, match=rf"not as it was written; delete the folder {critique.name}"):
        run(tiny("until=sft"))


def test_what_a_constitution_without_examples_can_not_do_is_a_warning(tiny: Tiny, tmp_path: Path):
    data = yaml.safe_load(to_yaml(load_constitution(shipped_constitutions()["minimal"])))
    data |= {"worked_examples": [], "good_answers": [], "contrasts": []}
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    notes = "\n".join(preflight(tiny(f"constitution.path={path}")).notes)
    assert "shows general ones (English, German" in notes and "replies of the SFT model are compared instead" in notes
    assert "SFT model are compared" not in "\n".join(preflight(tiny("constitution=default")).notes)
