"""The reward model: its loss by hand, its pooling at the pad token, its scores through every way of loading it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chat import Renderer
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context
from pipeline.engines.base import ReplyQuery
from pipeline.engines.classifiers import check_can_classify, check_reward_model
from pipeline.engines.reward_model import (
    RewardModel,
    last_real,
    load_reward_model,
    pad_token,
    reward_scaling,
    write_reward_scaling,
)
from pipeline.records import Comparison, Message, Preference, Prompt
from pipeline.stages.reward import mixed, source_of, split_by_prompt, usable
from pipeline.training.reward import (
    SoftRewardTrainer,
    centring_loss,
    soft_bradley_terry_loss,
    tokenised,
    train_reward,
)

Tiny = Callable[..., Config]
MARGINS = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
LABELS = torch.tensor([0.1, 0.5, 0.7, 0.9], dtype=torch.float64)
DIALOGUES: list[list[Message]] = [
    [Message(role="user", content="Hi")],
    [Message(role="user", content="How do I whisk an egg without a whisk, please?")],
    [
        Message(role="user", content="One."),
        Message(role="assistant", content="Two."),
        Message(role="user", content="And then?"),
    ],
]
REPLIES = ["Three.", "With a fork, and some patience.", ""]


# --- The loss ------------------------------------------------------------------------------------------------------


def test_the_loss_is_cross_entropy_and_bradley_terrys_where_labels_are_certain():
    by_hand = [
        -p * math.log(1 / (1 + math.exp(-m))) - (1 - p) * math.log(1 / (1 + math.exp(m)))
        for p, m in zip(LABELS.tolist(), MARGINS.tolist(), strict=True)
    ]
    assert soft_bradley_terry_loss(MARGINS, LABELS).tolist() == pytest.approx(by_hand)
    ones = torch.ones_like(MARGINS)
    assert torch.equal(soft_bradley_terry_loss(MARGINS, ones), -F.logsigmoid(MARGINS))
    assert torch.allclose(soft_bradley_terry_loss(-MARGINS, 1 - LABELS), soft_bradley_terry_loss(MARGINS, LABELS))
    assert centring_loss(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 1.0])).tolist() == [0, 9]


def test_the_minimum_is_where_the_model_agrees_with_the_label():
    margins = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([margins], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = soft_bradley_terry_loss(margins, LABELS).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.sigmoid(margins).tolist() == pytest.approx(LABELS.tolist(), abs=1e-5)


# --- Pairs for a toy reward ------------------------------------------------------------------------------------------

NOUNS = ["egg", "lamp", "tram", "leaf", "cup", "song", "door", "fish", "hat", "key", "map", "owl", "pen", "rug", "toy"]


def toy_preference(index: int, label: float = 1.0, pool: str = "red_team") -> Preference:
    """The polite reply is the better one, on either side."""
    noun, other = NOUNS[index % len(NOUNS)], NOUNS[index // len(NOUNS) % len(NOUNS)]
    prompt = Prompt(
        id=f"p{index}",
        pool=pool,  # type: ignore[arg-type]
        kind="k",
        split="train",
        messages=[Message(role="user", content=f"Where is the {noun} or the {other}? ({index})")],
    )
    good, bad = f"Certainly, here is the {noun}.", f"Go away with the {noun}."
    a, b = (good, bad) if label >= 0.5 else (bad, good)
    pair = Comparison(id=prompt.id, prompt=prompt, reply_a=a, reply_b=b, seed_a=0, seed_b=1)
    return Preference(comparison=pair, judgements=[], probability_a=label, labeller="toy", template="")


def toy_pairs(number: int, sure: float = 1.0, start: int = 0) -> list[Preference]:
    return [toy_preference(index, sure if index % 2 else 1 - sure) for index in range(start, start + number)]


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


@torch.no_grad()
def plain_score(folder: Path, messages: list[Message], reply: str) -> float:
    """As anybody would score with transformers alone: one text, no padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": reply}], tokenize=False)
    return float(model.eval()(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0])


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


# --- Pooling, padding and other families -----------------------------------------------------------------------------

ENDS_IN_EOS = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
ENDS_IN_NEWLINE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>\n{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + ENDS_IN_EOS


def other_family(folder: Path, template: str | None, special: Sequence[str] = ("</s>", "<unk>"), **tokens: str) -> Path:
    """A reward model with random weights, a tokenizer of its own and another template than the tiny model's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["how do I whisk an egg", "with a fork and some patience"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **tokens)
    fast.chat_template = template
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def score_at_the_end(folder: Path, text: str) -> float:
    """The head at the very last token, whatever that token is."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", add_special_tokens=False)
    return float(model.score(model.model(**ids).last_hidden_state[0, -1]))


def test_pad_token_is_one_that_no_text_ends_with(tiny_model: Path, tmp_path: Path):
    def choose(name: str, template: str, *special: str, **tokens: str) -> str:
        return pad_token(AutoTokenizer.from_pretrained(other_family(tmp_path / name, template, special, **tokens)))

    # eos ends the text (and pads): another special token is taken; unk before others; a pad of its own is kept.
    assert choose("a", ENDS_IN_EOS, "</s>", "<x>", pad_token="</s>") == "<x>"
    assert choose("b", ENDS_IN_EOS, "</s>", "<x>", "<unk>", pad_token="</s>", unk_token="<unk>") == "<unk>"
    assert choose("c", ENDS_IN_EOS, "</s>", "<x>", "<pad>", pad_token="<pad>") == "<pad>"
    # A newline ends the text: eos would do, but others cut texts right there, so it is the last resort.
    assert choose("d", ENDS_IN_NEWLINE, "</s>", "<x>", pad_token="</s>") == "<x>"
    assert choose("e", ENDS_IN_NEWLINE, "</s>", pad_token="</s>") == "</s>"
    with pytest.raises(ConfigError, match="no special token to pad with"):
        choose("f", ENDS_IN_EOS, "</s>", pad_token="</s>")
    assert pad_token(AutoTokenizer.from_pretrained(tiny_model)) != "<|end|>"


@pytest.mark.parametrize("template", [ENDS_IN_EOS, ENDS_IN_NEWLINE], ids=["eos", "newline"])
def test_batches_are_scored_at_the_last_token_of_each_text(tmp_path: Path, template: str):
    """Also where eos ends a text and pads: by token value, transformers would read one token too early."""
    folder = other_family(tmp_path, template, pad_token="</s>")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = pad_token(tokenizer)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": tokenizer.pad_token_id}))
    texts = [
        tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": reply}], tokenize=False)
        for messages, reply in zip(DIALOGUES, REPLIES, strict=True)
    ]
    found = load_reward_model(str(folder)).raw_scores(DIALOGUES, REPLIES)
    by_hand = [score_at_the_end(folder, tokenizer.decode(tokenizer(text)["input_ids"][-64:])) for text in texts]
    assert found == pytest.approx(by_hand, abs=1e-5)
    plain = [plain_score(folder, *ask) for ask in zip(DIALOGUES[:1], REPLIES[:1], strict=True)]
    assert found[:1] == pytest.approx(plain, abs=1e-5)
    if template == ENDS_IN_EOS:  # what would have gone wrong
        (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": tokenizer.eos_token_id}))
        assert plain_score(folder, DIALOGUES[0], REPLIES[0]) != pytest.approx(found[0], abs=1e-3)


def test_a_forward_pass_of_ones_own_pools_by_the_mask(tmp_path: Path):
    folder = other_family(tmp_path, ENDS_IN_EOS, pad_token="</s>")  # the pad token also ends every text
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    padding: list[int] = []

    def score_tokens(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        padding.append(int((attention_mask == 0).sum()))
        hidden = model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return model.score(last_real(hidden, attention_mask))[:, 0]  # type: ignore[no-any-return]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["[user] Hi</s>[assistant] Three.</s>", "[user] Hi</s>[assistant] No</s>"]
    rewards = RewardModel(score_tokens, tokenizer, name="mine", context=64, device=torch.device("cpu"), mean=0.5, std=2)
    found = rewards.raw_scores([DIALOGUES[0]] * 2, ["Three.", "No"])
    assert found == pytest.approx([score_at_the_end(folder, text) for text in texts], abs=1e-5)
    assert padding == [4], "one batch, the shorter text padded"
    assert rewards.score([DIALOGUES[0]], ["Three."])[0] == pytest.approx((found[0] - 0.5) / 2)


def test_another_family_reads_the_text_with_its_own_tokenizer_and_template(tmp_path: Path):
    """Scores of decoded replies, in batches by length, are those of each text by itself; order is kept."""
    folder = other_family(tmp_path, NO_SYSTEM, pad_token="<unk>")
    model = load_reward_model(str(folder))
    system: list[Message] = [Message(role="system", content="Be kind.")]
    dialogues = [*DIALOGUES[:1], [*system, *DIALOGUES[0]]]
    texts = ["[user] Hi</s>[assistant] Three.</s>", "[user] Be kind.\n\nHi</s>[assistant] Two</s>"]
    by_hand = [score_at_the_end(folder, text) for text in texts]
    assert model.raw_scores(dialogues, ["Three.", "Two"]) == pytest.approx(by_hand, abs=1e-5)
    asks = [ReplyQuery(id=str(index), messages=DIALOGUES[0], reply="word " * (index % 7)) for index in range(40)]
    batches = model.batches(asks)
    assert [len(batch) for batch in batches] == [16, 16, 8] and batches == model.batches(asks[::-1])
    lengths = [len(ask.reply) for batch in batches for ask in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_a_text_longer_than_the_context_keeps_the_reply(tmp_path: Path):
    folder = other_family(tmp_path, ENDS_IN_EOS, pad_token="<unk>")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load_reward_model(str(folder))
    long: list[Message] = [Message(role="user", content="x y " * 200)]
    ids = Renderer(tokenizer).dialogue_ids(long, "Good.", 64)
    assert len(ids) == 64 and tokenizer.decode(ids).endswith("[assistant] Good.</s>")
    good, bad = model.raw_scores([long, long], ["Good.", "Bad!"])
    assert good != bad and math.isfinite(good)


def test_without_a_template_turns_are_joined(tmp_path: Path):
    folder = other_family(tmp_path, None, pad_token="<unk>")
    by_hand = score_at_the_end(folder, "Hi\n\nThree.")
    assert load_reward_model(str(folder)).raw_scores(DIALOGUES[:1], ["Three."]) == pytest.approx([by_hand], abs=1e-5)


def test_a_published_model_without_pad_token_is_given_one(tmp_path: Path):
    folder = other_family(tmp_path, ENDS_IN_EOS)
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] is None
    by_hand = score_at_the_end(folder, "[user] Hi</s>[assistant] Three.</s>")
    found = load_reward_model(str(folder)).raw_scores([*DIALOGUES[:1], DIALOGUES[1]], ["Three.", "With a fork."])
    assert found[0] == pytest.approx(by_hand, abs=1e-5)


def test_scaling_is_kept_in_the_models_configuration(tmp_path: Path):
    folder = other_family(tmp_path, ENDS_IN_EOS, pad_token="<unk>")
    assert reward_scaling(folder) == (0, 1)
    write_reward_scaling(folder, 0.25, 4.0)
    assert reward_scaling(folder) == (0.25, 4)
    model = load_reward_model(str(folder))
    raw = model.raw_scores(DIALOGUES, REPLIES)
    assert model.score(DIALOGUES, REPLIES) == pytest.approx([(score - 0.25) / 4 for score in raw])
    assert plain_score(folder, DIALOGUES[0], REPLIES[0]) == pytest.approx(raw[0], abs=1e-5)


# --- What is refused -------------------------------------------------------------------------------------------------


def test_reward_models_that_cannot_score_are_refused_in_a_sentence(tiny_model: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    def refused(folder: Path | str, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            check_reward_model(str(folder), "align.reward_model")

    good = other_family(tmp_path / "good", None, pad_token="<unk>")
    check_reward_model(str(good), "align.reward_model")
    refused(tiny_model, "is not a sequence classifier")
    refused(tmp_path / "nowhere", "align.reward_model: there is no model folder")
    bare = other_family(tmp_path / "bare", None, pad_token="<unk>")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    refused(bare, "has no tokenizer that can be read")
    for number in (math.nan, math.inf):
        diverged = other_family(tmp_path / str(number), None, pad_token="<unk>")
        weights = load_file(diverged / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"][0, 0] = number
        save_file(weights, diverged / "model.safetensors", metadata={"format": "pt"})
        refused(diverged, "up_proj.weight in .* not finite; give another model")
    cut = other_family(tmp_path / "cut", None, pad_token="<unk>")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(cut, "is damaged")
    empty = other_family(tmp_path / "empty", None, pad_token="<unk>")
    (empty / "model.safetensors").unlink()
    refused(empty, "has no weights")


def test_a_base_model_that_can_carry_no_head_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ConfigError, match="no sequence classifier of type 'mamba'"):
        check_can_classify(str(tmp_path), None, "model.path")
    check_can_classify(str(other_family(tmp_path / "llama", None)), None, "model.path")


# --- Which pairs -----------------------------------------------------------------------------------------------------


def test_which_labels_count():
    pairs = [toy_preference(0).model_copy(update={"probability_a": label}) for label in (None, 0.5, 0.7, 0.2)]
    assert [p.probability_a for p in usable(pairs, hard_labels=False)] == [0.5, 0.7, 0.2]
    assert [p.probability_a for p in usable(pairs, hard_labels=True)] == [1.0, 0.0]


def test_pairs_are_held_out_by_prompt_whatever_their_order():
    pairs = [toy_preference(index) for index in range(20)]
    pairs += [p.model_copy(update={"labeller": "human"}) for p in pairs[:10]]  # the same prompts, labelled twice
    rest, held_out = split_by_prompt(pairs, 0.2)
    prompts = [{p.comparison.prompt.key for p in part} for part in (rest, held_out)]
    assert not prompts[0] & prompts[1] and len(prompts[1]) == 4 and len(rest) + len(held_out) == 30
    again = split_by_prompt(pairs[::-1], 0.2)[1]
    assert {p.comparison.id for p in again} == {p.comparison.id for p in held_out}
    assert len(split_by_prompt(pairs[:2], 0.05)[1]) == 1, "one prompt is always held out"


def test_helpfulness_pairs_are_drawn_in_proportion_and_human_ones_all_kept():
    harmless = [toy_preference(index) for index in range(6)]
    helpful = [toy_preference(index, pool="ordinary") for index in range(6, 20)]
    helpful += [toy_preference(index, pool="look_alike") for index in range(20, 30)]
    human = [toy_preference(index).model_copy(update={"labeller": "human"}) for index in range(30, 33)]

    def drawn(ratio: float, seed: int = 0) -> list[str]:
        chosen = mixed([*helpful, *human, *harmless], ratio, seed)
        return sorted(p.comparison.id for p in chosen if source_of(p) == "helpfulness")

    assert len(drawn(0.5)) == 3 and len(drawn(1)) == 6 and len(drawn(100)) == 24 and drawn(0) == []
    assert drawn(1) == drawn(1) != drawn(1, seed=1)
    sources = [source_of(p) for p in mixed([*helpful, *human, *harmless], 0, 0)]
    assert sources.count("human") == 3 and sources.count("harmlessness") == 6
