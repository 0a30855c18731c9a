"""Reward models of any family: their pooling and padding, the text that they read, and which of them are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.chat import Renderer
from pipeline.core.errors import ConfigError
from pipeline.engines.base import ReplyQuery
from pipeline.engines.classifiers import check_can_classify, check_reward_model
from pipeline.engines.reward_model import (
    RewardModel,
    last_real,
    load_reward_model,
    pad_token,
    reward_scaling,
    write_num_reply_tokens,
    write_reward_scaling,
)
from pipeline.records import Message
from tests.reward_data import (
    DIALOGUES,
    ENDS_IN_EOS,
    ENDS_IN_NEWLINE,
    NO_SYSTEM,
    REPLIES,
    other_family,
    plain_score,
    score_at_the_end,
)

# --- Pooling, padding and other families -----------------------------------------------------------------------------


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


@pytest.mark.parametrize("template", [ENDS_IN_EOS, None])
def test_a_model_of_openings_reads_only_how_a_reply_begins(tmp_path: Path, template: str | None):
    folder = other_family(tmp_path, template, pad_token="<unk>")
    whole = load_reward_model(str(folder)).raw_scores(DIALOGUES[:1] * 2, ["Three", "Three words."])
    assert whole[0] != pytest.approx(whole[1], abs=1e-5)
    tokenizer = Renderer(AutoTokenizer.from_pretrained(folder))
    write_num_reply_tokens(folder, len(tokenizer.text_ids("Three")))
    write_reward_scaling(folder, 0.0, 1.0)
    begun = load_reward_model(str(folder)).raw_scores(DIALOGUES[:1] * 2, ["Three", "Three words."])
    assert begun == pytest.approx([whole[0]] * 2, abs=1e-5)


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
