"""The whole chain on a tiny model: end to end, cached, invalidated, recomputed."""

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
from transformers import AutoTokenizer

from pipeline.chain import runner
from pipeline.chain.config import Config
from pipeline.chain.order import CHAIN
from pipeline.chain.plan import plan
from pipeline.chain.preflight import preflight
from pipeline.chain.runner import Run, run
from pipeline.cli import main
from pipeline.constitution.files import load_constitution, shipped_constitutions, to_yaml
from pipeline.core.cache import Manifest
from pipeline.core.errors import ArtifactError, ConfigError, StageError
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


@pytest.mark.parametrize("labeller", ["ab", "cot"])
def test_other_labellers_run_and_report_their_statistics(tiny: Tiny, labeller: str):
    result = run(tiny(f"preferences={labeller}", "preferences.labeller.min_answer_mass=0", "until=preferences"))
    metrics = result.stages["preferences"].manifest.metrics
    assert metrics["num_pairs"] > 0 and (labeller == "cot" or metrics["num_parse_failures"] == 0)
    assert 0 <= metrics["order_flip_rate"] <= 1 and 0 <= metrics["entropy_bits_mean"] <= 1
    preferences = list(read_records(result.folder / "4-preferences" / "preferences.jsonl", Preference))
    labels = [p.probability_a for p in preferences if p.probability_a is not None]
    assert len(labels) == metrics["num_pairs"] and len(set(labels)) > 1
    if labeller == "cot":
        assert all(0.4 <= label <= 0.6 for label in labels)
        assert any(text for p in preferences for judgement in p.judgements for text in judgement.reasoning)


def test_openings_are_as_short_as_the_decision_and_the_pool_is_the_label(tiny: Tiny):
    result = run(tiny("constitution=default", "preferences.max_opening_tokens=3", "until=align"))
    preferences = list(read_records(result.folder / "4-preferences" / "preferences.jsonl", Preference))
    assert {p.labeller for p in preferences} == {"pool", "constitution"}
    tokenizer = AutoTokenizer.from_pretrained(result.folder / "3-sft" / "model")
    for preference in preferences:
        pair = preference.comparison
        harmful = pair.prompt.pool == "red_team"
        assert preference.probability_a == float(harmful) and not preference.judgements
        written = harmful and preference.labeller == "constitution"
        assert pair.opening == "I won't" and pair.reply_a.startswith(pair.opening)
        assert (pair.reply_a == pair.opening) == pair.begun_a == (not written)
        assert len(tokenizer(pair.reply_b, add_special_tokens=False).input_ids) <= 4, "3, or 4 for half a character"
    metrics = result.stages["align"].manifest.metrics
    assert metrics["num_pairs"] == len(preferences) > 4
    assert {p.probability_a for p in preferences} == {0.0, 1.0}
    assert not (result.stages["preferences"].folder / "work" / "labels-answers.jsonl").exists(), "no labeller is asked"


def test_openings_need_a_method_and_a_constitution_that_learn_from_them(tiny: Tiny):
    for overrides, message in (
        (
            ("align=ppo", "preferences=openings"),
            "align.method is 'ppo', which needs whole replies, but preferences.pairs",
        ),
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


def test_asking_again_what_turns_the_labels_changes_none(tiny: Tiny):
    probed, plain = (
        run(tiny("preferences=ab", "preferences.labeller.min_answer_mass=0", f"preferences.num_probed={number}",
                 "until=preferences")).stages["preferences"].manifest
        for number in (3, 0)
    )  # fmt: skip
    assert probed.content_hash == plain.content_hash and probed.cache_key != plain.cache_key
    assert probed.metrics["num_labels_probed"] == 3 and plain.metrics["num_labels_probed"] == 0
    assert probed.metrics["labels_that_turn"].keys() == {"words", "order", "pool", "length"}
    assert not plain.metrics["labels_that_turn"]
    assert probed.num_calls - plain.num_calls <= 3 * 4, "each label is asked for in two orders, with two changes"


def test_labels_none_of_which_can_be_read_stop_the_run(tiny: Tiny):
    config = tiny("preferences=ab", "preferences.labeller.min_answer_mass=1")
    with pytest.raises(StageError, match=r"judgements of the labeller base can't be read; use another labeller"):
        run(config)


def test_full_fine_tuning_ipo_hard_labels_and_rounds(tiny: Tiny):
    result = run(
        tiny("model.tuning=full", "align=ipo", "align.hard_labels=true", "critique.num_rounds=2", "sft.revisions=last")
    )
    exchanges = list(read_records(result.folder / "2-critique" / "exchanges.jsonl", Exchange))
    assert any(len(exchange.revisions) == 2 for exchange in exchanges)
    assert not (result.stages["sft"].folder / "adapter").exists()
    assert (result.folder / "checkpoint" / "model.safetensors").exists()


def test_a_constitution_about_style_revises_harmless_prompts_too(tiny: Tiny):
    result = run(tiny("constitution=plain_speech", "until=sft"))
    exchanges = list(read_records(result.folder / "2-critique" / "exchanges.jsonl", Exchange))
    assert {e.prompt.pool for e in exchanges if e.revisions} == {"red_team", "ordinary", "look_alike"}
    constitution = load_constitution(result.folder / "constitution.yaml")
    for exchange in exchanges:
        fitting = {principle.id for principle in constitution.principles_for(exchange.prompt.pool)}
        assert {revision.principle_id for revision in exchange.revisions} <= fitting
    assert "num_helpful_samples" in result.stages["critique"].manifest.metrics
    assert "helpful_sample" not in result.stages["sft"].manifest.metrics["num_by_origin"]


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


def test_the_command_line_reports_mistakes_without_a_traceback(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "sft.num_epoch=3"]) == 2
    assert main(["run", "--frobnicate"]) == 2
    assert main(["constitution", "check", "gone.yaml"]) == 2
    assert main(["status", "nothing", "--output-dir", "nowhere"]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 4 and all(line.startswith("error: ") for line in shown)


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


def test_sweeps_refuse_one_name_and_stop_where_they_are_told(tiny_model: Path, tmp_path: Path):
    overrides = tiny_overrides(tiny_model, tmp_path)
    assert main(["run", "-m", *overrides, "name=x", "align.beta=0.1,0.5"]) == 2
    assert main(["run", "-m", *overrides, "seed=1,2", "until=prompts"]) == 0


def test_a_template_that_refuses_system_turns_is_served(tiny: Tiny, tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "no-system"
    shutil.copytree(tiny_model, folder)
    template = (folder / "chat_template.jinja").read_text()
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refusing + template)
    assert "critique" in run(tiny(f"model.path={folder}", "until=critique")).stages


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


def test_a_run_without_contrasts_reads_none(tiny: Tiny):
    rows = run(tiny("sft.num_contrasts=0", "until=sft")).stages["sft"].manifest.metrics["num_by_origin"]
    assert "contrast" not in rows and "worked_example" in rows


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
