"""PPO, RLOO and GRPO on a tiny model: they stay within their bounds, and keep the best policy."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest
import torch

from pipeline.records import Message
from tests.ppo_bench import NAMES, QUICK, STEEP, Bench, epochs, weights


@pytest.mark.parametrize("method", NAMES)
def test_a_policy_out_of_bounds_is_never_the_best(tiny_model: Path, tmp_path: Path, method: str):
    """Its last update may be what carries it out: nobody draws from it any more but the held-out prompts."""
    one_step = ["align.global_batch_size=16", epochs(method, 0.25), "align.learning_rate=2e-2", "align.beta=1e-6"]
    bounds = ["align.num_ppo_epochs=8", "align.max_kl=0.5"]
    metrics, (row,) = Bench(tiny_model, tmp_path, *one_step, *bounds, method=method).train()
    assert row["held_out/kl"] > 0.5 and row["held_out/objective"] > fmean(metrics["held_out_scores"]["0"])
    assert metrics["best_step"] == 0


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_recomputing_activations_changes_nothing(tiny_model: Path, tmp_path: Path, tuning: str):
    """Over more than one step, so that rollouts are measured after an update; all prompts begin alike."""
    steps = [*QUICK, f"model.tuning={tuning}", "align.num_epochs=0.25"]
    plain, recomputed = (
        Bench(tiny_model, tmp_path / asked, *steps, f"launch.gradient_checkpointing={asked}")
        for asked in ("false", "true")
    )
    for bench in (plain, recomputed):
        for prompt in bench.everything:
            prompt.messages.insert(0, Message(role="system", content="Be brief and kind, and say what you know."))
    before, after = plain.train()[1], recomputed.train()[1]
    assert len(before) == len(after) == 2
    for one, other in zip(before, after, strict=True):
        assert one["objective/scores"] == other["objective/scores"]
        assert one["loss/policy_avg"] == pytest.approx(other["loss/policy_avg"], abs=1e-4)


@pytest.mark.parametrize("method", NAMES)
def test_it_goes_back_when_the_kl_leaves_its_bound(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, method: str
):
    steep = [*STEEP, epochs(method, 1), "align.max_rollbacks=1"]
    metrics, history = Bench(tiny_model, tmp_path, *steep, method=method).train()
    out = [row["step"] for row in history if row["objective/kl"] > 0.5]
    assert metrics["num_rollbacks"] == 1 and "KL is" in metrics["stopped"]
    assert [row["objective/kl_coefficient"] for row in history][-1] == 0.02, "it pulls twice as hard from there"
    assert len(out) == 2 and history[-1]["step"] == out[-1] < 8
    assert "align.max_kl=0.5; back to the policy of step" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("method", NAMES)
def test_it_stops_when_asked_to(tiny_model: Path, tmp_path: Path, method: str):
    steep = [*STEEP, epochs(method, 1), "align.out_of_bounds=stop"]
    metrics, history = Bench(tiny_model, tmp_path, *steep, method=method).train()
    assert metrics["num_rollbacks"] == 0 and "KL is" in metrics["stopped"] and len(history) < 8
    collapsed, _ = Bench(tiny_model, tmp_path / "b", *QUICK, "align.min_entropy=9", method=method).train()
    assert "entropy is" in collapsed["stopped"]


@pytest.mark.parametrize("method", NAMES)
def test_the_best_policy_is_the_one_that_is_kept(tiny_model: Path, tmp_path: Path, method: str):
    """With a steep rate later policies are worse; what is saved is the one with the best held-out score less KL."""
    steep = [*STEEP, epochs(method, 1), "align.max_kl=null", "align.rollout.held_out_every_steps=1", "align.beta=0.5"]
    bench = Bench(tiny_model, tmp_path, *steep, method=method)
    metrics, history = bench.train()
    objectives = {0: fmean(metrics["held_out_scores"]["0"])}  # the KL is zero there
    objectives |= {row["step"]: row["held_out/objective"] for row in history}
    best = max(objectives, key=lambda step: objectives[step])
    assert metrics["best_step"] == best != history[-1]["step"]
    saved = bench.actors()
    bench.loop()._checkpoints.load(f"best-{best}", lambda state: saved.load_state(state["weights"]))
    saved.save(tmp_path / "again")
    one, other = weights(tmp_path), weights(tmp_path / "again")
    assert all(torch.equal(one[key], other[key]) for key in one)
