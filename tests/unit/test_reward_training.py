"""A reward model learns a toy preference, and gives one score however it is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chat import Renderer
from pipeline.core.stage import Context
from pipeline.engines.reward_model import load_reward_model
from pipeline.records import Preference
from pipeline.training.reward import SoftRewardTrainer, tokenised, train_reward
from tests.reward_data import (
    DIALOGUES,
    ENDS_IN_EOS,
    REPLIES,
    other_family,
    plain_score,
    score_at_the_end,
    toy_pairs,
    toy_preference,
)

# --- Pairs for a toy reward ------------------------------------------------------------------------------------------


def toy_training(config: Config, pairs: Sequence[Preference], model: Path, out: Path) -> dict[str, Any]:
    reads = {"model": config.model, "seed": 0}
    context = Context(stage="reward", reads=reads, folders={}, out=out, launch=config.launch)
    return train_reward(pairs, str(model), config.reward, config.reward.center_coefficient, context)[0]


TOY = ["reward.num_epochs=8", "reward.learning_rate=0.005", "reward.global_batch_size=8", "reward.save_every_steps=999"]


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    from tests.conftest import tiny_overrides

    out = tmp_path_factory.mktemp(request.param)
    config = compose_config([*tiny_overrides(tiny_model, out), *TOY, f"model.tuning={request.param}"])
    toy_training(config, toy_pairs(40), tiny_model, out)
    return request.param, out


def test_a_simple_preference_is_learned_and_holds_for_new_requests(trained: tuple[str, Path]):
    model = load_reward_model(str(trained[1] / "model"))
    pairs = [preference.comparison for preference in toy_pairs(30, start=100)]
    a, b = (
        model.raw_scores([p.prompt.messages for p in pairs], [getattr(p, side) for p in pairs])
        for side in ("reply_a", "reply_b")
    )
    right = [(x > y) == bool(index % 2) for index, (x, y) in enumerate(zip(a, b, strict=True), start=100)]
    assert sum(right) >= 29
    assert abs(sum(a + b) / len(a + b)) < 2, "the centring term keeps rewards near zero"


def test_soft_labels_are_learned_as_probabilities(tiny_model: Path, tmp_path: Path):
    """Labels of 0.8 for the polite reply: log-odds of ln 4, where certain labels would go on growing."""
    from tests.conftest import tiny_overrides

    config = compose_config([*tiny_overrides(tiny_model, tmp_path), *TOY])
    toy_training(config, toy_pairs(40, sure=0.8), tiny_model, tmp_path)
    model = load_reward_model(str(tmp_path / "model"))
    pairs = [preference.comparison for preference in toy_pairs(40)]
    a, b = (
        model.raw_scores([p.prompt.messages for p in pairs], [getattr(p, side) for p in pairs])
        for side in ("reply_a", "reply_b")
    )
    margins = [(x - y) * (1 if index % 2 else -1) for index, (x, y) in enumerate(zip(a, b, strict=True))]
    assert sum(margins) / len(margins) == pytest.approx(math.log(4), abs=0.3)


# --- One score, however it is loaded ---------------------------------------------------------------------------------


def test_trained_saved_merged_and_plainly_loaded_models_give_one_score(trained: tuple[str, Path], tiny_model: Path):
    import peft

    tuning, out = trained
    ours = load_reward_model(str(out / "model")).raw_scores(DIALOGUES, REPLIES)
    assert len({round(score, 3) for score in ours}) == 3, "scores that do not differ show nothing"
    plain = [plain_score(out / "model", *ask) for ask in zip(DIALOGUES, REPLIES, strict=True)]
    assert ours == pytest.approx(plain, abs=1e-5)
    if tuning == "lora":  # the adapter and its head on the base that it was trained on
        base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
        base.config.pad_token_id = AutoTokenizer.from_pretrained(out / "model").pad_token_id
        model = peft.PeftModel.from_pretrained(base, str(out / "adapter"))
        assert scores_of(model, out / "model") == pytest.approx(ours, abs=1e-5)


def scores_of(model: Any, tokenizer: Path) -> list[float]:
    model.eval()
    found = load_reward_model(
        str(tokenizer), score_tokens=lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits[:, 0]
    )
    return found.raw_scores(DIALOGUES, REPLIES)


def test_what_was_trained_is_what_is_saved(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pipeline.training.reward as reward
    from tests.conftest import tiny_overrides

    before: list[float] = []
    save = reward.save_reward_model

    def score_then_save(trainer: SoftRewardTrainer, *rest: Any) -> None:
        tokenizer = tmp_path / "before"
        trainer.processing_class.save_pretrained(tokenizer)
        trainer.model.config.save_pretrained(tokenizer)
        before.extend(scores_of(trainer.model, tokenizer))
        save(trainer, *rest)

    monkeypatch.setattr(reward, "save_reward_model", score_then_save)
    config = compose_config([*tiny_overrides(tiny_model, tmp_path), *TOY, "reward.num_epochs=2"])
    toy_training(config, toy_pairs(16), tiny_model, tmp_path)
    after = load_reward_model(str(tmp_path / "model")).raw_scores(DIALOGUES, REPLIES)
    assert before == pytest.approx(after, abs=1e-5) and any(abs(score) > 1e-3 for score in after)


def test_the_trainers_loss_is_trls_where_labels_are_certain(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from trl import RewardTrainer

    import pipeline.training.reward as reward
    from tests.conftest import tiny_overrides

    trainers: list[SoftRewardTrainer] = []
    monkeypatch.setattr(reward, "train", lambda trainer, *_: trainers.append(trainer) or {})
    monkeypatch.setattr(reward, "save_reward_model", lambda *_: None)
    config = compose_config([*tiny_overrides(tiny_model, tmp_path), *TOY, "reward.center_coefficient=0.3"])
    toy_training(config, toy_pairs(4), tiny_model, tmp_path)
    (trainer,) = trainers
    model = trainer.model
    head = model.base_model.model.score.modules_to_save.default
    torch.manual_seed(0)
    with torch.no_grad():
        head.weight.normal_()
    assert all(p.requires_grad for p in head.parameters()), "the head is trained beside the adapter"
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    assert batch["labels_a"].tolist() == [0, 1, 0, 1]
    ours = trainer.compute_loss(model, {**batch, "labels_a": torch.ones(4)})
    theirs = RewardTrainer.compute_loss(trainer, model, {k: v for k, v in batch.items() if k != "labels_a"})
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    # What is logged follows the label's side, whichever reply that is.
    trainer.compute_loss(model, dict(batch))
    a, b = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].chunk(2)
    margins = [x - y if label else y - x for x, y, label in zip(a.tolist(), b.tolist(), (0, 1, 0, 1), strict=True)]
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert logged["rewards/margins"] == pytest.approx(sum(margins) / 4, rel=1e-4)
    assert logged["rewards/accuracies"] == sum(margin > 0 for margin in margins) / 4


def test_a_model_that_knows_nothing_calls_every_pair_even(tiny_model: Path, tmp_path: Path):
    from tests.conftest import tiny_overrides

    config = compose_config([*tiny_overrides(tiny_model, tmp_path), *TOY, "reward.num_epochs=1"])
    metrics = toy_training(config, toy_pairs(8), tiny_model, tmp_path)
    assert metrics["loss_first"] == pytest.approx(math.log(2), abs=1e-6)


def test_long_texts_keep_their_end_and_are_counted(tiny_model: Path):
    chat = Renderer(AutoTokenizer.from_pretrained(tiny_model))
    pair = toy_preference(0)
    rows, num_cut = tokenised([pair], chat, 12)
    whole, none_cut = tokenised([pair], chat, 500)
    assert num_cut == 2 and none_cut == 0
    for side in ("chosen_ids", "rejected_ids"):
        assert len(rows[0][side]) == 12 and rows[0][side] == whole[0][side][-12:]


def test_a_family_whose_eos_ends_texts_and_pads_is_trained_and_saved_with_another_pad_token(
    tiny_model: Path, tmp_path: Path
):
    from tests.conftest import tiny_overrides

    base = other_family(tmp_path / "base", ENDS_IN_EOS, pad_token="</s>")
    config = compose_config([*tiny_overrides(tiny_model, tmp_path), *TOY, "reward.num_epochs=4"])
    toy_training(config, toy_pairs(8), base, tmp_path)
    text = "[user] Hi</s>[assistant] Three.</s>"
    found = load_reward_model(str(tmp_path / "model")).raw_scores(DIALOGUES[:2], ["Three.", "With a fork."])
    assert found[0] == pytest.approx(score_at_the_end(tmp_path / "model", text), abs=1e-5)
    assert found[0] == pytest.approx(plain_score(tmp_path / "model", DIALOGUES[0], "Three."), abs=1e-5)
    assert abs(found[0]) > 1e-3
