"""What a reward model likes: planted tastes are found with their size, and a random model shows none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import NotMeasuredError
from pipeline.core.stage import Context
from pipeline.core.text import sentences, words
from pipeline.evals.shortcuts import opens_with_refusal
from pipeline.explain.base import Material
from pipeline.explain.reward import RewardTaste, RewardTasteConfig, RewardTasteFindings, taste
from pipeline.explain.reward_edits import CLOSING, EDITS, HEDGE, REFUSAL, without_words
from pipeline.explain.reward_variance import adjusted_r_squared, explained, overlap, partial_r_squared
from pipeline.records import Case, Message, Prompt, Verdict, derived_rng, write_records
from pipeline.report.explained.reward import section

CONFIG = RewardTasteConfig(num_replies=60, num_edited=20, num_attributed=5)
WORDS = ["soil", "water", "light", "seed", "pot", "shade", "leaf", "root", "stem", "garden", "shelf", "week"]


def verdict(i: int, model: str = "aligned") -> Verdict:
    """Two to five sentences of three to six words; every third reply declines first."""
    rng = derived_rng("reply", i, model)
    said = [" ".join(rng.sample(WORDS, rng.randint(3, 6))).capitalize() + "." for _ in range(rng.randint(2, 5))]
    reply = " ".join([REFUSAL, *said] if i % 3 == 0 else said)
    turns = [Message(role="user", content=f"Tell me about the {rng.choice(WORDS)} and the {rng.choice(WORDS)}.")]
    prompt = Prompt(id=f"p{i}", pool="ordinary", kind="k", split="test", messages=turns)
    case = Case(id=prompt.id, suites=["helpfulness"], prompt=prompt, messages=turns)
    return Verdict(case=case, model=model, reply=reply, num_tokens=1, seed=0, outcome="complied", evidence="", judge="")


def liking(score: Callable[[str], float], num: int = 60) -> RewardTasteFindings:
    """The findings for a reward model that reads only the reply."""
    replies = [verdict(i) for i in range(num)]
    return taste(replies, lambda asked: [score(reply) for _, reply in asked], CONFIG, 0.95, "toy")


def spread(score: Callable[[str], float], num: int = 60) -> float:
    return float(np.std([score(verdict(i).reply) for i in range(num)]))


def test_a_taste_for_length_explains_everything_and_every_longer_reply_gains_its_words():
    def score(reply: str) -> float:
        return 0.1 * len(words(reply))

    found, word = liking(score), 0.1 / spread(score)
    length, refusal, *_ = found.features
    assert found.together.value == pytest.approx(1) and length.beyond.value == pytest.approx(1)
    assert length.alone.value == pytest.approx(1) and (refusal.beyond.value or 0) == pytest.approx(0, abs=1e-6)
    gains = {effect.edit: effect.change for effect in found.effects}
    assert gains["a polite closing"].value == pytest.approx(word * len(words(CLOSING)))
    assert gains["a hedge in front"].value == pytest.approx(word * len(words(HEDGE)))
    removed = np.mean([len(words(sentences(verdict(i).reply)[-1])) for i in range(20)])
    assert gains["the last sentence removed"].value == pytest.approx(-word * removed)
    assert gains["the first words in capitals"].value == 0
    assert found.shortcut == length and found.liked_most is not None
    assert found.liked_most.edit == "the whole reply said twice"
    shown = section(found, ["base", "aligned"])
    assert shown.is_warning and "length alone explains 100\u00a0%" in shown.said
    assert "the whole reply said twice" in shown.said


def test_a_taste_for_refusals_is_found_among_correlated_features():
    """A refusal in front adds words, too; only what it explains beyond them is its own."""

    def score(reply: str) -> float:
        return 2.0 * opens_with_refusal(reply)

    found = liking(score)
    length, refusal, *_ = found.features
    assert refusal.alone.value == pytest.approx(1) and (length.alone.value or 0) > 0.2
    assert (length.beyond.value or 0) == pytest.approx(0, abs=1e-6) and found.shortcut == refusal
    effect = found.effects[0]
    assert (effect.edit, effect.num_left_out) == ("a refusal in front", 7)
    assert effect.change.value == pytest.approx(2 / spread(score)), "whatever the scale of the scores is"


def test_a_taste_for_one_word_is_named():
    def score(reply: str) -> float:
        return float(words(reply).count("leaf")) - 2 * words(reply).count("root")

    found = liking(score)
    assert (found.words[0].word, found.words[0].effect.value) == ("leaf", pytest.approx(1 / spread(score)))
    assert (found.words[-1].word, found.words[-1].effect.value) == ("root", pytest.approx(-2 / spread(score)))
    assert len(found.words) == 6 and found.words[1].effect.value == found.words[-2].effect.value == 0


def test_a_random_model_shows_no_taste_and_none_is_claimed():
    found = liking(lambda reply: derived_rng("random", reply).gauss(0, 1))
    for estimate in (found.together, *(e for f in found.features for e in (f.alone, f.beyond))):
        assert estimate.low is not None and estimate.low <= 0
    assert all(effect.change.low is not None and effect.change.low < 0 for effect in found.effects)
    assert found.liked_most is None and found.shortcut is None
    shown = section(found, ["base", "aligned"])
    assert not shown.is_warning and "no evidence" in shown.said and not shown.first_page


def test_adjusted_shares_by_hand():
    """y = x₁ + x₂ with uncorrelated columns of variance 1 and 4: R² of the first is 1/5, of both 1."""
    first, second = np.array([1, -1, 1, -1, 1, -1, 1, -1.0]), 2 * np.array([1, 1, -1, -1, 1, 1, -1, -1.0])
    y = first + second
    assert adjusted_r_squared(y, [first]) == pytest.approx(1 - (1 - 1 / 5) * 7 / 6)
    assert adjusted_r_squared(y, [first, second]) == pytest.approx(1)
    assert partial_r_squared(y, [first, second], 0) == pytest.approx(1)
    constant = np.ones(8)
    assert adjusted_r_squared(y, [constant]) == pytest.approx(1 - 7 / 6) and adjusted_r_squared(constant, [y]) == 0
    both = adjusted_r_squared(np.stack([y, first]), [np.stack([first, first])])
    assert both.tolist() == pytest.approx([1 - (1 - 1 / 5) * 7 / 6, 1])
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 400))
    alone = explained(x + noise, {"x": x}, 0.95)["x"]["alone"]
    assert alone.low is not None and alone.high is not None and alone.low < 0.5 < alone.high


def test_edits_are_pure_and_leave_out_what_they_do_not_change():
    reply = "Water it on Mondays. Keep it out of the sun"
    assert {name: edit(reply) for name, edit in EDITS.items()} == {
        "a refusal in front": f"{REFUSAL} {reply}",
        "a hedge in front": f"{HEDGE} {reply}",
        "the last sentence removed": "Water it on Mondays.",
        "the whole reply said twice": f"{reply} {reply}",
        "a polite closing": f"{reply} {CLOSING}",
        "the first words in capitals": "WATER IT ON MONDAYS. KEEP it out of the sun",
    }
    assert opens_with_refusal(f"{REFUSAL} {reply}") and not opens_with_refusal(f"{reply}. {REFUSAL}")
    assert EDITS["a refusal in front"](f"{REFUSAL} {reply}") is None
    assert EDITS["the last sentence removed"]("One sentence.") is None
    assert EDITS["the first words in capitals"]("OK 1") is None
    assert without_words("a b a") == [("a", "b a"), ("b", "a a"), ("a", "a b")]
    assert overlap("Water my plants in May", "I water plants.") == 1 and overlap("Why me?", "why") == 0


def material(folder: Path, reward: bool, published: str | None = None, num: int = 50) -> Material:
    for stage in ("evaluate", "reward"):
        (folder / stage).mkdir()
    records = [verdict(i, model) for model in ("base", "aligned") for i in range(num)]
    attacked = records[0].case.model_copy(update={"id": "attacked", "attack": "persona"})
    write_records(folder / "evaluate" / "verdicts.jsonl", [*records, records[0].model_copy(update={"case": attacked})])
    folders = {stage: folder / stage for stage in (["evaluate", "reward"] if reward else ["evaluate"])}
    reads: dict[str, Any] = {
        "seed": 0,
        "model": SimpleNamespace(precision="fp32"),
        "alignment": SimpleNamespace(reward_model=published),
    }
    context = Context(stage="explain", reads=reads, folders=folders, out=folder, launch=LaunchConfig())
    return Material(context, {"base": "", "aligned": ""}, confidence=0.95, split="test")


@pytest.mark.parametrize(("reward", "name"), [(True, "of the run"), (False, "hub/taster")])
def test_one_reply_to_each_request_is_scored_by_the_runs_model_or_a_published_one(
    reward: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []
    loaded: list[str] = []

    class Model:
        def score(self, dialogues: Sequence[list[Message]], replies: Sequence[str]) -> list[float]:
            asked.extend(replies)
            return [float("nan") if reply == asked[0] else float(len(reply)) for reply in replies]

    def load(path: str, **options: Any) -> Model:
        loaded.append(path)
        return Model()

    monkeypatch.setattr("pipeline.engines.reward_model.load_reward_model", load)
    run = material(tmp_path, reward, published="hub/taster")
    found = RewardTaste().answer(CONFIG, run)
    assert loaded == [str(tmp_path / "reward" / "model") if reward else "hub/taster"]
    assert found.reward_model == name
    assert (found.num_replies, found.num_not_scored) == (49, 1)
    models = {v.model for mine in run.verdicts.values() for v in mine if v.reply in asked[:50]}
    assert models == {"base", "aligned"}


@pytest.mark.parametrize(
    ("reward", "num", "reason"),
    [(False, 30, "the run has no reward model"), (True, 39, "the run has 39 judged replies, and 40 are needed")],
)
def test_what_cannot_be_measured_is_said(reward: bool, num: int, reason: str, tmp_path: Path):
    with pytest.raises(NotMeasuredError, match=reason):
        RewardTaste().answer(CONFIG, material(tmp_path, reward, num=num))
