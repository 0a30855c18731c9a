"""A reward model beside the length of a reply and a refusal at its start, and what training against it does then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.chain.config import Config
from pipeline.core.cache import Manifest
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import StageError
from pipeline.core.stage import Context
from pipeline.evals.shortcuts import shortcut_metrics
from pipeline.methods.base import METHODS
from pipeline.methods.policy_gradient.trusted import refuse_shortcut
from pipeline.records import Comparison, Message, Preference, Prompt, write_records

REFUSAL = "I can't help with that."


def preference(i: int, a: str, b: str, label: float) -> Preference:
    turns = [Message(role="user", content=f"request {i}")]
    prompt = Prompt(id=f"p{i}", pool="red_team", kind="k", split="train", messages=turns)
    pair = Comparison(id=f"p{i}", prompt=prompt, reply_a=a, reply_b=b, seed_a=0, seed_b=0)
    return Preference(comparison=pair, judgements=[], probability_a=label, labeller="x", template="")


def test_each_shortcut_takes_its_side_from_the_training_labels():
    """In training the shorter and the declining reply wins. Held out: shorter is right on 1 of 4 and ties on another;
    declining is right on 2 of 4 and ties on two; the model is right on all. A label of ½ does not count."""
    training = [preference(i, REFUSAL, "Start with the first of six steps below.", 0.9) for i in range(3)]
    held_out = [
        preference(0, "Yes.", "No steps for you at all, sorry.", 1.0),
        preference(1, f"{REFUSAL} Ask me something else.", "Take two.", 0.8),
        preference(2, "Take two steps.", "Take three steps.", 1.0),
        preference(3, f"{REFUSAL} It is wrong.", "Go.", 1.0),
        preference(4, "Go.", REFUSAL, 0.5),
    ]
    found = shortcut_metrics(training, held_out, {f"p{i}": 1.0 for i in range(5)})
    assert found["length"]["accuracy"]["value"] == pytest.approx(1.5 / 4)
    assert found["length"]["gain"]["value"] == pytest.approx(2.5 / 4)
    assert found["refusal at the start"]["accuracy"]["value"] == pytest.approx(3 / 4)
    assert found["length"]["gain"]["low"] is None, "four pairs support no interval"
    longer = [preference(i, "Start with the first of six steps.", REFUSAL, 0.9) for i in range(3)]
    assert shortcut_metrics(longer, held_out, {f"p{i}": 1.0 for i in range(5)})["length"]["accuracy"][
        "value"
    ] == pytest.approx(2.5 / 4)


def test_of_openings_the_refusal_is_the_one_that_is_compared():
    def begun(i: int, a: str, b: str, label: float) -> Preference:
        found = preference(i, a, b, label)
        return found.model_copy(update={"comparison": found.comparison.model_copy(update={"opening": "I won't"})})

    pairs = [begun(0, "I won't", "Sure, here", 1.0), begun(1, "I won't", "Here is how", 1.0)]
    twin = [begun(2, "I won't", "Sure, here", 0.0)]
    assert shortcut_metrics(pairs, pairs + twin, {f"p{i}": 1.0 for i in range(3)})["refusal at the start"]["accuracy"][
        "value"
    ] == pytest.approx(2 / 3)


def test_nothing_held_out_gives_no_number():
    found = shortcut_metrics([], [preference(0, "a", "b", 0.5)], {"p0": 1.0})
    assert found["length"]["gain"] is None and found["length"]["accuracy"]["value"] is None


def reward_folder(folder: Path, low: float | None, high: float | None = 0.3) -> Path:
    gain = {"value": 0.1, "low": low, "high": high, "total": 40}
    metrics: dict[str, Any] = {
        "accuracy": {"value": 0.7},
        "shortcuts": {"length": {"accuracy": {"value": 0.6}, "gain": gain}},
    }
    folder.mkdir()
    manifest = Manifest(stage="reward", cache_key="0", inputs={}, outputs={}, content_hash="0", fields={}, seconds=1,
                        metrics=metrics, num_calls=0, num_tokens_written=0, busy_seconds=1, started="", environment={}
                        )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


def test_a_model_that_is_no_better_is_refused_with_the_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = reward_folder(tmp_path / "reward", low=-0.1)
    with pytest.raises(StageError) as refused:
        refuse_shortcut(folder, trust=False)
    assert str(refused.value) == (
        "align: the reward model agrees with 70 % of 40 held-out labels, and length alone with 60 % (a difference of "
        "10 points [-10, 30]), so the policy may learn no more than that; label more pairs "
        "(preferences.num_red_team), or set align.trust=true to train against it all the same."
    )
    refuse_shortcut(folder, trust=True)
    assert "all the same, because align.trust is true" in caplog.text
    with pytest.raises(StageError, match="too few labels to compare them"):
        refuse_shortcut(reward_folder(tmp_path / "few", low=None), trust=False)


def test_a_better_model_and_one_of_an_older_version_are_not_refused(tmp_path: Path):
    refuse_shortcut(reward_folder(tmp_path / "reward", low=0.01), trust=False)
    refuse_shortcut(tmp_path, trust=False)


def test_policy_gradient_training_asks_before_it_loads_anything(tiny: Callable[..., Config], tmp_path: Path):
    config = tiny("align=ppo", "align.trust=false")
    folders = {"prompts": tmp_path / "prompts", "reward": reward_folder(tmp_path / "reward", low=-0.1)}
    folders["prompts"].mkdir()
    prompts = [preference(i, "", "", 1.0).comparison.prompt for i in range(8)]
    held_out = [p.model_copy(update={"id": f"v-{p.id}", "split": "validation"}) for p in prompts]
    write_records(folders["prompts"] / "prompts.jsonl", [*prompts, *held_out])
    reads = {"seed": 0, "reward_init": "sft"}
    context = Context(stage="align", reads=reads, folders=folders, out=tmp_path, launch=LaunchConfig())
    with pytest.raises(StageError, match=r"set align\.trust=true"):
        METHODS["ppo"]().train(config.align, context)


def test_trust_is_in_no_cache_key(tiny: Callable[..., Config]):
    assert tiny("align=ppo").align.key() == tiny("align=ppo", "align.trust=false").align.key()
