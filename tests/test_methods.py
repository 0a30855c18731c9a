"""Every method of alignment through the whole chain: the same kind of checkpoint, and what can be shared is shared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chain.order import CHAIN
from pipeline.chain.preflight import preflight
from pipeline.chain.runner import Run, run
from pipeline.cli import main
from pipeline.core.cache import Manifest
from pipeline.core.errors import ConfigError
from pipeline.records import Prompt, read_records
from pipeline.training.history import read_history
from tests.conftest import tiny_groups, tiny_overrides
from tests.ppo_bench import TOYS

Tiny = Callable[..., Config]


@pytest.fixture(scope="module")
def swept(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """``cai run -m`` over three methods, and what it printed."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("swept")
    printed = io.StringIO()
    groups = str(tiny_groups(out / "groups"))
    words = ["align=dpo,tiny_ppo,tiny_rloo", "evaluate.guidelines=null", *tiny_overrides(tiny_model, out)]
    with contextlib.redirect_stdout(printed):
        code = main(["run", "-m", "--config-dir", groups, *words])
    assert code == 0
    return out, printed.getvalue()


def test_a_sweep_shares_all_it_can_and_ends_in_one_comparison(swept: tuple[Path, str]):
    out, printed = swept
    stages = [folder.name.partition("-")[0] for folder in (out / "outputs" / "cache").glob("[a-z]*-*")]
    made = {stage: stages.count(stage) for stage in set(stages)}
    shared = dict.fromkeys(("prompts", "critique", "sft", "preferences", "reward"), 1)
    # A model is put to the cases once, whoever made it: training on rewards may have kept the SFT model.
    sft, aligned = (
        [path.read_bytes() for path in (out / "outputs" / "cache").glob(f"{stage}-*/model/*.safetensors")]
        for stage in ("sft", "align")
    )
    assert len(aligned) == 3 and len(set(aligned)) >= 2
    num_models = 1 + len({*sft, *aligned})
    assert made == {**shared, "align": 3, "evaluate": len(set(aligned)), "report": 3, "answers": num_models}
    for method in ("dpo", "tiny_ppo", "tiny_rloo"):
        assert f"align={method}" in printed
    assert len(list((out / "outputs" / "comparisons").glob("*.md"))) == 1


@pytest.mark.parametrize(("method", "num_steps"), [("ppo", 8), ("rloo", 4)])
def test_training_on_rewards_passes_through_every_stage(swept: tuple[Path, str], method: str, num_steps: int):
    out, _ = swept
    (folder,) = (out / "outputs" / "runs").glob(f"*-{method}-*")
    names = sorted(link.name for link in folder.iterdir() if link.name[0].isdigit())
    ran = [stage for stage in CHAIN if stage not in {"write", "adversary", "guard", "attack", "explain"}]
    assert names == [f"{number}-{stage}" for number, stage in enumerate(ran, start=1)]
    manifest = Manifest.read(folder / "6-align")
    assert manifest is not None and manifest.metrics["num_steps"] == len(read_history(folder / "6-align")) == num_steps
    assert manifest.num_calls > 2 * num_steps and manifest.metrics["held_out_scores"].keys() == {"0", "best"}
    asked = list(read_records(folder / "6-align" / "prompts.jsonl", Prompt))
    assert {prompt.split for prompt in asked} == {"train", "validation"}
    results = json.loads((folder / "7-evaluate" / "results.json").read_text())
    assert set(results["measures"]) == {"base", "sft", "aligned"} and "reward" in results["measures"]["aligned"]


@pytest.mark.parametrize("method", ["ipo", "cpo", "kto", "grpo", "ppo, functions", "dpo, rewards"])
def test_the_rest_of_the_family(swept: tuple[Path, str], tiny_model: Path, method: str):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    out, _ = swept
    name, _, what = method.partition(", ")
    chosen = {
        "functions": [
            "align.rewards.reward_model=0",
            "align.rewards.brief=1",
            f"align.functions.brief={TOYS}:short",
        ],
        "rewards": ["align.rewards.reward_model=0.5", "align.rewards.constitution=1"],
        "": [],
    }[what]
    overrides = [*tiny_overrides(tiny_model, out, f"align={name}"), "evaluate.guidelines=null", "until=align", *chosen]
    result: Run = run(compose_config(overrides))
    assert (not result.stages["align"].cached) and result.stages["sft"].cached
    assert ("preferences" in result.stages) == (what != "functions")
    assert ("reward" in result.stages) == (name in {"grpo"} or what == "rewards")
    AutoModelForCausalLM.from_pretrained(result.folder / "checkpoint")
    before, after = (
        load_file(result.stages[stage].folder / "model" / "model.safetensors") for stage in ("sft", "align")
    )
    kept_another = result.stages["align"].manifest.metrics.get("best_step") != 0  # than the SFT model
    assert any((before[key] != after[key]).any() for key in before) == kept_another
    assert len(read_history(result.stages["align"].folder)) > 1


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo"])
def test_two_ranks_equal_one(swept: tuple[Path, str], tiny_model: Path, tmp_path: Path, method: str):
    """At the same global batch, to float tolerance, saving included."""
    import torch
    from safetensors.torch import load_file

    out, _ = swept
    shutil.copytree(out / "outputs", tmp_path / "outputs", symlinks=True)
    for folder in (tmp_path / "outputs" / "cache").glob("align-*"):
        shutil.rmtree(folder)
    # Minibatches of four rollouts with unlike lengths: each rank has two of them, and neither a mean of its own. The
    # judge, of which each rank asks its own share, is counted whole.
    overrides = ["until=align", "evaluate.guidelines=null", "align.global_batch_size=8", "align.rewards.constitution=1"]
    if method != "ppo":
        overrides.append("align.num_epochs=1")
    one, two = (
        run(compose_config([*tiny_overrides(tiny_model, folder, f"align={method}"), *overrides, *more]))
        for folder, more in ((out, []), (tmp_path, ["launch.num_processes=2"]))
    )
    alone, together = (result.stages["align"].manifest for result in (one, two))
    assert together.environment["num_processes"] == "2"
    assert (alone.num_calls, alone.num_tokens_written) == (together.num_calls, together.num_tokens_written)
    before, after = (read_history(result.stages["align"].folder) for result in (one, two))
    assert len(before) == len(after) == 2
    for row, other in zip(before, after, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), (row["step"], name)
    first, second = (load_file(result.folder / "checkpoint" / "model.safetensors") for result in (one, two))
    assert all(torch.allclose(first[key], second[key], atol=1e-4) for key in first)
    assert max(row["policy/grad_norm"] for row in before) > 0


# --- Refused before anything is spent ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            "align=ppo align.rollout.max_reply_tokens=500",
            "has 5.. tokens, more than the 512 of align.max_length_tokens",
        ),
        ("align=ppo evaluate.split=validation", "evaluate.split is 'validation', but align=ppo chooses"),
        ("align=ppo align.rewards.x=1 align.functions.x=nowhere.py:f", "there is no file nowhere.py"),
        ("align=ppo align.rewards.x=1 align.functions.x=TOYS:none", "has no function 'none'"),
        ("align=ppo align.rewards.x=1 align.functions.x=TOYS:not_a_number", "align.rewards.x gave nan"),
        ("align=ppo align.rewards.x=1 align.functions.x=TOYS:raises", "align.rewards.x failed on 1 completions"),
        ("align=ppo align.rewards.x=1 align.functions.x=BROKEN:f", "can't be imported .NameError: name 'undefined'"),
        ("align=kto align.global_batch_size=5", "is not a multiple of align.kl_batch_size=2"),
        ("align=kto launch.num_processes=2", "align.kl_batch_size is 2 over launch.num_processes=2"),
        ("align=ppo align.reward_model=MODEL", "is not a sequence classifier"),
        ("align=ppo align.reward_model=nowhere/at/all", "there is no model folder"),
    ],
)
def test_what_could_not_work_is_refused_in_one_sentence(
    tiny: Tiny, tiny_model: Path, tmp_path: Path, overrides: str, expected: str
):
    broken = tmp_path / "broken.py"
    broken.write_text("undefined")
    words = (
        overrides.replace("TOYS", str(TOYS)).replace("BROKEN", str(broken)).replace("MODEL", str(tiny_model)).split()
    )
    with pytest.raises(ConfigError, match=expected) as caught:
        preflight(tiny(*words))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (["align.rewards.constitution=1"], True),
        (["align.rewards.constitution=1", "preferences.labels=pool", "constitution=default"], False),
        (["align.rewards.constitution=1", "align.rewards.reward_model=1"], False),  # the labels train it
        ([], False),
    ],
)
def test_labels_that_rewards_replace_are_not_paid_for_in_silence(tiny: Tiny, overrides: list[str], warned: bool):
    notes = preflight(tiny("align=dpo", *overrides)).notes
    assert any("preferences.labeller answers is not used" in note for note in notes) == warned
