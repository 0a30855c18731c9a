"""The reward stage in the chain: what it writes, what it says of itself, resumed, on two ranks, and evaluated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chain.preflight import preflight
from pipeline.chain.runner import run
from pipeline.core.cache import Manifest
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.stage import Context
from pipeline.engines.reward_model import RewardModel, load_reward_model, reward_scaling
from pipeline.evals.calibration import held_out_metrics
from pipeline.evals.results import Results
from pipeline.records import Comparison, Message, Preference, Prompt, RewardScore, Verdict, read_records, write_records
from pipeline.stages.reward import Reward
from pipeline.training.history import read_history
from pipeline.training.loop import Reporter
from tests.conftest import tiny_overrides

HUMAN = [{"prompt": f"Which way to pier {n}?", "chosen": f"Left, then right {n}.", "rejected": "No."} for n in range(6)]


def config_for(model: Path, out: Path, human: Path, *more: str) -> Config:
    chosen = ["until=reward", "align.rewards.reward_model=1", "reward.human.source=path", f"reward.human.path={human}"]
    return compose_config([*tiny_overrides(model, out), *chosen, "evaluate.guidelines=null", *more])


@pytest.fixture(scope="module")
def human(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("human"), HUMAN)


def write_pairs(folder: Path, pairs: Sequence[dict[str, str]]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tiny_model: Path, human: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds ``outputs``."""
    out = tmp_path_factory.mktemp("finished")
    result = run(config_for(tiny_model, out, human))
    assert list(result.stages) == ["prompts", "critique", "sft", "preferences", "reward"]
    return out


def reward_folder(out: Path) -> Path:
    (folder,) = (out / "outputs" / "cache").glob("reward-*[!l]")  # no ".partial"
    return folder


def metrics_of(folder: Path) -> dict[str, Any]:
    manifest = Manifest.read(folder)
    assert manifest is not None
    return manifest.metrics


def test_held_out_pairs_are_those_that_nothing_was_trained_on(finished: Path):
    folder = reward_folder(finished)
    rows = list(read_records(folder / "rows.jsonl", Preference))
    scores = list(read_records(folder / "scores.jsonl", RewardScore))
    labelled = {
        p.comparison.id
        for p in read_records(next(folder.parent.glob("preferences-*")) / "preferences.jsonl", Preference)
    }
    trained, held_out = {p.comparison.id for p in rows}, {score.id for score in scores}
    assert trained and held_out and not trained & held_out
    assert trained | held_out <= labelled | {f"human-{n}" for n in range(6)}
    metrics = metrics_of(folder)
    assert sum(metrics["num_train"].values()) == len(rows) and sum(metrics["num_held_out"].values()) == len(scores)
    assert metrics["num_left_out_by_ratio"] == len(labelled) + 6 - len(rows) - len(scores)
    human = [p for p in rows if p.labeller == "human"]
    assert {p.probability_a for p in human} == {0.0, 1.0}, "on either side, so that position says nothing"
    for p in human:
        assert (p.comparison.reply_b == "No.") == (p.probability_a == 1)


def test_what_is_said_of_the_model_is_recomputed_from_its_files(finished: Path):
    folder = reward_folder(finished)
    metrics, model = metrics_of(folder), load_reward_model(str(folder / "model"))
    scores = list(read_records(folder / "scores.jsonl", RewardScore))
    for name, value in held_out_metrics(scores).items():
        assert metrics[name] == value, name
    pairs = [p.comparison for p in read_records(folder / "rows.jsonl", Preference) if p.labeller != "human"]
    logits = [
        score for pair in pairs for score in model.raw_scores([pair.prompt.messages] * 2, [pair.reply_a, pair.reply_b])
    ]
    mean, std = reward_scaling(folder / "model")
    assert (mean, std) == pytest.approx((fmean(logits), pstdev(logits)), abs=1e-6)
    assert (mean, std) == (metrics["reward_mean"], metrics["reward_std"]) and len(logits) == metrics[
        "num_reference_replies"
    ]
    assert std > 0
    history = read_history(folder)
    assert [row["step"] for row in history] == list(range(1, metrics["num_steps"] + 1))
    assert {"rewards/accuracies", "rewards/margins", "loss"} <= history[0].keys()
    assert (folder / "adapter" / "adapter_model.safetensors").exists()


# --- Resumed, and on two ranks ---------------------------------------------------------------------------------------


def without_reward(finished: Path, out: Path) -> Path:
    shutil.copytree(finished / "outputs" / "cache", out / "outputs" / "cache", symlinks=True)
    shutil.rmtree(reward_folder(out))
    return out


def test_interrupted_and_resumed_equals_undisturbed(
    finished: Path, tiny_model: Path, human: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = config_for(tiny_model, without_reward(finished, tmp_path), human)
    on_save, score_batch = Reporter.on_save, RewardModel.score_batch
    batches: list[int] = []

    def save_then_stop(self: Reporter, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        on_save(self, args, state, *rest, **more)
        raise KeyboardInterrupt

    def score_then_stop(self: RewardModel, batch: Any) -> Any:
        batches.append(len(batch))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return score_batch(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Reporter, "on_save", save_then_stop)
        run(config)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RewardModel, "score_batch", score_then_stop)
        run(config)
    result = run(config)
    metrics = result.stages["reward"].manifest.metrics
    assert metrics["resumed_from_step"] > 0
    undisturbed = Manifest.read(reward_folder(finished))
    assert undisturbed is not None
    assert result.stages["reward"].manifest.content_hash == undisturbed.content_hash


def test_two_ranks_train_as_one(finished: Path, tiny_model: Path, human: Path, tmp_path: Path):
    run(config_for(tiny_model, without_reward(finished, tmp_path), human, "launch.num_processes=2"))
    one, two = (read_history(reward_folder(out)) for out in (finished, tmp_path))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], abs=1e-5)
    assert len({row["loss"] for row in one}) > 1, "the loss never moved, so equality shows nothing"
    alone, together = (metrics_of(reward_folder(out)) for out in (finished, tmp_path))
    assert alone["loss_held_out"]["value"] == pytest.approx(together["loss_held_out"]["value"], abs=1e-5)


# --- Evaluated -------------------------------------------------------------------------------------------------------


def test_the_evaluation_scores_every_models_replies_and_sets_the_model_against_people(
    finished: Path, tiny_model: Path, human: Path, tmp_path: Path
):
    shutil.copytree(finished / "outputs", tmp_path / "outputs", symlinks=True)
    result = run(config_for(tiny_model, tmp_path, human, "until=report"))
    verdicts = list(read_records(result.stages["evaluate"].folder / "verdicts.jsonl", Verdict))
    rewarded = [v for v in verdicts if v.reward is not None]
    assert {v.case.id for v in rewarded} == {
        v.case.id for v in verdicts if v.case.attack == "direct" and not v.case.group
    }
    model = load_reward_model(str(reward_folder(tmp_path) / "model"))
    again = model.score([v.case.messages for v in rewarded], [v.reply for v in rewarded])
    assert again == pytest.approx([v.reward for v in rewarded], abs=1e-3)
    text = (result.stages["evaluate"].folder / "results.json").read_text(encoding="utf-8")
    results = Results.model_validate_json(text)
    mine = [v.reward for v in rewarded if v.model == "aligned"]
    found = results.measures["aligned"]["reward"]
    assert found.value == pytest.approx(fmean(r for r in mine if r is not None)) and found.total == len(mine)
    assert found.low is not None and found.low <= found.value <= (found.high or 0)
    assert {c.before for c in results.changes if c.measure == "reward" and c.after == "aligned"} == {"base", "sft"}
    assert "reward-stage" in {p.who for p in results.pairs if p.role == "reward model"}


# --- Refused ---------------------------------------------------------------------------------------------------------


def test_human_pairs_on_held_out_requests_are_refused(finished: Path, tiny_model: Path, tmp_path: Path):
    prompts = read_records(next((finished / "outputs" / "cache").glob("prompts-*")) / "prompts.jsonl", Prompt)
    held_out = next(prompt for prompt in prompts if prompt.split == "validation" and len(prompt.messages) == 1)
    leaked = write_pairs(tmp_path, [*HUMAN, {**HUMAN[0], "prompt": held_out.request.upper()}])
    with pytest.raises(ConfigError, match=r"held-out prompt .* is also trained on, in reward.human; remove it"):
        preflight(config_for(tiny_model, tmp_path, leaked))
    preflight(config_for(tiny_model, tmp_path, leaked, "until=preferences"))  # nobody reads them there


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([None, None], "of 2 pairs 0 have a usable label"),
        ([0.9], "no AI-labelled pairs to train on: of 1 pairs 1 have a usable label, 1 are held out"),
    ],
)
def test_too_few_pairs_are_a_sentence(tiny_model: Path, tmp_path: Path, labels: list[float | None], match: str):
    config = compose_config([*tiny_overrides(tiny_model, tmp_path), "until=reward"])
    preferences = []
    for index, label in enumerate(labels):
        prompt = Prompt(
            id=str(index),
            pool="red_team",
            kind="k",
            split="train",
            messages=[Message(role="user", content=f"q {index}")],
        )
        pair = Comparison(id=str(index), prompt=prompt, reply_a="a", reply_b="b", seed_a=0, seed_b=1)
        preferences.append(Preference(comparison=pair, judgements=[], probability_a=label, labeller="l", template="t"))
    write_records(tmp_path / "preferences.jsonl", preferences)
    context = Context(
        stage="reward",
        reads={"seed": 0, "model": config.model},
        folders={"preferences": tmp_path},
        out=tmp_path,
        launch=config.launch,
    )
    with pytest.raises(StageError, match=match):
        Reward().run(config.reward, context)
