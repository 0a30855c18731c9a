"""On-policy rounds: the newest policy is sampled from, its replies are labelled, and it is trained on them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chain.order import inputs_of, tasks_of
from pipeline.chain.plan import plan
from pipeline.chain.preflight import preflight, read_inputs
from pipeline.chain.runner import Run, run, run_name
from pipeline.cli import main
from pipeline.core.cache import Manifest
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context
from pipeline.evals.results import Results
from pipeline.labellers.sampling import Sampler
from pipeline.records import Comparison, Preference, Prompt, read_records
from tests.conftest import tiny_overrides

Tiny = Callable[..., Config]
FEEDBACK = [
    "recipe=feedback",
    "preferences.num_contrasts=0",
    "preferences.labeller.num_principles=2",
    "preferences.labeller.min_answer_mass=0",
    "preferences.num_probed=0",
    "evaluate.guidelines=null",
]
ROUNDS = ["preferences", "align", "preferences-round-2", "align-round-2"]
TASKS = ["prompts", "critique", "sft", *ROUNDS, "evaluate", "report"]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Config]:
    config = compose_config([*tiny_overrides(tiny_model, tmp_path_factory.mktemp("rounds")), *FEEDBACK])
    return run(config), config


def pairs(result: Run, task: str) -> list[Comparison]:
    file = result.stages[task].folder / "preferences.jsonl"
    return [preference.comparison for preference in read_records(file, Preference)]


def test_each_round_is_a_folder_of_the_run_and_the_last_one_is_the_result(finished: tuple[Run, Config]):
    result, _ = finished
    names = sorted(path.name for path in result.folder.iterdir() if path.name[0].isdigit())
    assert names == [f"{number}-{task}" for number, task in enumerate(TASKS, start=1)]
    assert (result.folder / "checkpoint").resolve() == result.stages["align-round-2"].folder.resolve() / "model"
    evaluated = result.stages["evaluate"]
    assert evaluated.manifest.inputs["align-round-2"] == result.stages["align-round-2"].folder.name
    assert "align" not in evaluated.manifest.inputs
    results = Results.model_validate_json((evaluated.folder / "results.json").read_text(encoding="utf-8"))
    assert results.models == ["base", "sft", "aligned"]
    assert {(c.before, c.after) for c in results.changes} >= {("base", "aligned"), ("sft", "aligned")}


def test_the_report_says_which_round_a_stage_is_of(finished: tuple[Run, Config]):
    result, _ = finished
    text = (result.folder / "report.md").read_text(encoding="utf-8")
    assert all(f"{number}-{task}" in text for number, task in enumerate(TASKS[:-1], start=1))
    one, two = (result.stages[task].manifest.metrics["num_pairs"] for task in ("preferences", "preferences-round-2"))
    assert one != two, "the numbers would not show which round is meant"
    assert f"In the last of 2 rounds: All {two} labels" in text and "2 rounds of labels and alignment" in text
    assert "6-preferences-round-2/preferences.jsonl" in (result.folder / "report.html").read_text(encoding="utf-8")
    assert "in 2 rounds" in (result.folder / "model_card.md").read_text(encoding="utf-8")
    before = text.replace("\n", "")
    assert main(["report", str(result.folder)]) == 0
    assert (result.folder / "report.md").read_text(encoding="utf-8").replace("\n", "") == before


def test_round_two_samples_from_the_policy_of_round_one_with_other_seeds(finished: tuple[Run, Config], tmp_path: Path):
    result, config = finished
    [task] = (task for task in tasks_of(config) if task.name == "preferences-round-2")
    own = task.seeded(config)
    prompts = read_records(result.stages["prompts"].folder / "prompts.jsonl", Prompt)
    chosen = config.preferences.training_prompts(prompts)

    def sampled(policy: str) -> list[Comparison]:
        context = Context(
            stage=task.name,
            reads={"seed": own.seed, "model": config.model, "policy_engine": config.policy_engine},
            folders={"sft": result.stages[policy].folder},
            out=tmp_path / policy,
            launch=config.launch,
            policy=policy,
        )
        return Sampler(config.preferences, context).sampled_pairs(chosen)

    found = pairs(result, "preferences-round-2")
    assert found == sampled("align") != sampled("sft")
    one, two = (
        {seed for pair in pairs(result, name) for seed in (pair.seed_a, pair.seed_b)}
        for name in ("preferences", "preferences-round-2")
    )
    assert one and two and not one & two
    seeds = [result.stages[name].manifest.fields["reads"]["seed"] for name in ROUNDS]
    assert seeds[:2] == [config.seed] * 2 and seeds[2] == seeds[3] == own.seed != config.seed


def test_round_two_starts_from_the_policy_of_round_one(finished: tuple[Run, Config]):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result, _ = finished
    trained = result.stages["align-round-2"].folder

    def with_adapter(start: str) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(result.stages[start].folder / "model")
        merged = PeftModel.from_pretrained(model, str(trained / "adapter")).merge_and_unload()
        return torch.cat([weights.flatten() for weights in merged.state_dict().values()])

    whole = AutoModelForCausalLM.from_pretrained(trained / "model").state_dict()
    weights = torch.cat([part.flatten() for part in whole.values()])
    assert torch.allclose(weights, with_adapter("align"), atol=1e-6)
    assert not torch.allclose(weights, with_adapter("sft"), atol=1e-6)


def test_nothing_is_made_again_and_one_round_shares_the_first(
    finished: tuple[Run, Config], capsys: pytest.CaptureFixture[str]
):
    result, config = finished
    assert all(stage.cached for stage in run(config).stages.values())
    assert {step.state for step in plan(preflight(config))} == {"cached"}
    assert main(["status", str(result.folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(line[0], line[1]) for line in lines] == [(task, "done") for task in TASKS]
    alone = run(config.model_copy(update={"rounds": 1, "until": "align"}))
    assert list(alone.stages) == [*TASKS[:3], "preferences", "align"]
    assert all(stage.cached and stage.folder == result.stages[name].folder for name, stage in alone.stages.items())
    assert (alone.folder / "checkpoint").resolve() == result.stages["align"].folder.resolve() / "model"


def test_the_plan_counts_every_round(finished: tuple[Run, Config], tmp_path: Path):
    result, config = finished
    steps = plan(preflight(config.model_copy(update={"output_dir": str(tmp_path)})))
    assert [step.stage for step in steps] == TASKS and {step.state for step in steps} == {"runs"}
    for step in steps:
        if step.stage in ROUNDS:
            manifest = result.stages[step.stage].manifest
            assert step.cost.num_calls >= manifest.num_calls
            assert step.cost.num_steps >= (manifest.metrics.get("num_steps") or 0)
            assert step.cost.num_calls or step.cost.num_steps
    shutil.copytree(Path(config.output_dir) / "cache", tmp_path / "cache", symlinks=True)
    for folder in (tmp_path / "cache").glob("*-round-2-*"):
        shutil.rmtree(folder)
    steps = plan(preflight(config.model_copy(update={"output_dir": str(tmp_path)})))
    states = {step.stage: step.state for step in steps}
    assert states["align"] == "cached" and states["preferences-round-2"] == states["align-round-2"] == "runs"


def test_a_kill_in_round_two_repeats_nothing_of_round_one(
    finished: tuple[Run, Config], tiny_model: Path, tmp_path: Path
):
    result, _ = finished
    overrides = [*tiny_overrides(tiny_model, tmp_path), *FEEDBACK, "until=align"]
    command, cache = [sys.executable, "-m", "pipeline.cli", "run", *overrides], tmp_path / "outputs" / "cache"

    def killed_at(pattern: str) -> bool:
        process = subprocess.Popen(command)
        while process.poll() is None and not any(cache.glob(pattern)):
            time.sleep(0.002)
        if alive := process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        return alive

    def manifests() -> dict[str, Manifest]:
        found = (Manifest.read(folder) for folder in cache.iterdir() if folder.suffix != ".partial")
        return {manifest.stage: manifest for manifest in found if manifest is not None}

    assert killed_at("preferences-round-2-*.partial/work/labels-answers.rank0.jsonl"), "the moment was missed"
    first = manifests()
    assert first.keys() == set(TASKS[:5])
    assert killed_at("align-round-2-*.partial/work/checkpoint-*/checkpoint.complete"), "the moment was missed"
    subprocess.run(command, check=True)
    whole = manifests()
    assert {name: whole[name] for name in first} == first, "times included"
    assert {name: m.content_hash for name, m in whole.items()} == {
        name: result.stages[name].manifest.content_hash for name in TASKS[:-2]
    }


def test_what_each_round_reads(tiny: Tiny):
    rewards = ["align.rewards.reward_model=1", "rounds=3"]
    config = tiny(*FEEDBACK, *rewards)
    tasks = {task.name: inputs_of(task, config) for task in tasks_of(config)}
    in_round = ["preferences", "reward", "align"]
    later = [f"{stage}-round-{number}" for number in (2, 3) for stage in in_round]
    assert list(tasks) == ["prompts", "critique", "sft", *in_round, *later, "evaluate", "report"]
    assert tasks["align"] == {"sft": "sft", "preferences": "preferences", "reward": "reward"}
    assert tasks["preferences-round-2"] == {"prompts": "prompts", "sft": "align"}
    assert tasks["reward-round-3"] == {"sft": "align-round-2", "preferences": "preferences-round-3"}
    assert tasks["align-round-3"] == {**tasks["reward-round-3"], "reward": "reward-round-3"}
    newest = {name: f"{name}-round-3" for name in in_round}
    assert tasks["evaluate"] == {"prompts": "prompts", "sft": "sft", **newest}
    assert list(tasks["report"]) == list(tasks)[:-1] and tasks["report"]["align-round-2"] == "align-round-2"
    ends = [task.name for task in tasks_of(tiny(*FEEDBACK, "until=preferences"))]
    assert ends == [*TASKS[:3], *ROUNDS[:3]], "in the last round"


def test_one_round_changes_no_name(tiny: Tiny):
    one, two = (tiny(*FEEDBACK, f"rounds={number}") for number in (1, 2))
    constitution = read_inputs(one).constitution
    assert "rounds" not in one.key() and run_name(one, constitution) != run_name(two, constitution)


def test_rounds_need_replies_of_the_policy(tiny: Tiny):
    for overrides, message in (
        (["align=ppo"], "rounds is 2, but align.method is 'ppo', which samples .* use rounds=1, or align=dpo_whole"),
        (["align=grpo"], "rounds is 2, but align.method is 'grpo'"),
        (["preferences=openings", "align=decide"], "rounds is 2, but preferences.pairs is 'openings'.* use rounds=1"),
        (["preferences=ab"], "rounds is 2, but preferences.pairs is 'contrast'.*, or preferences.pairs=sampled"),
        (["preferences.num_contrasts=3"], "rounds is 2, but preferences.num_contrasts is 3.* preferences.num_contra"),
        (["rounds=0"], "rounds is 0; it must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny(*FEEDBACK[:2], *overrides)
    assert tiny(*FEEDBACK, "align=ppo", "rounds=1").rounds == 1
