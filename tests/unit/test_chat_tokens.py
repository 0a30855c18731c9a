"""One way from messages to tokens: what is trained on is what is scored and sampled, for every kind of template."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.chain.compose import compose_config
from pipeline.chat import Renderer
from pipeline.core.stage import Context
from pipeline.engines.base import ChoiceQuery, ReplyQuery, Request
from pipeline.engines.hf import HFEngine
from pipeline.engines.model_checks import check_model
from pipeline.engines.models import load_model, load_tokenizer
from pipeline.engines.reward_model import RewardModel
from pipeline.methods.base import method_of
from pipeline.methods.policy_gradient.config import RolloutConfig
from pipeline.methods.policy_gradient.live import live_engine
from pipeline.methods.policy_gradient.rollouts import draw
from pipeline.records import Comparison, Preference, Prompt, TrainingRow
from pipeline.training import kto, pairs, reward, sft
from tests.chat_templates import CASES, DIALOGUES, OTHER, REPLY, Case, Expected, save_model


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    case = CASES[request.param]
    return case, save_model(tmp_path_factory.mktemp("chat"), case)


# --- What is asked of the model ------------------------------------------------------------------------------------


@pytest.fixture
def asked(made: tuple[Case, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[HFEngine, list[list[int]], Expected]:
    """An engine, the rows of tokens that its model is given, and what they should be; it replies ``REPLY``."""
    case, folder = made
    expected, seen = Expected(case, folder), []
    model = load_model(str(folder), "fp32")

    def decode(*inputs: Any) -> list[list[int]]:
        ids, stop_ids = inputs[1], inputs[-1]
        assert set(stop_ids) == expected.stops
        seen.extend(ids.tolist())
        return [expected.reply] * len(ids)

    def forward(_: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        seen.extend(inputs["input_ids"].tolist())

    engine = HFEngine(model, load_tokenizer(str(folder)), "asked")
    monkeypatch.setattr("pipeline.engines.hf.decode", decode)
    model.register_forward_pre_hook(forward, with_kwargs=True)
    return engine, seen, expected


@pytest.mark.parametrize("name", DIALOGUES)
def test_sampling_and_scoring_read_the_same_tokens(asked: tuple[HFEngine, list[list[int]], Expected], name: str):
    engine, seen, expected = asked
    prompt, messages = expected.prompts[name], DIALOGUES[name]
    request = Request(id="r", messages=messages, seed=0, max_new_tokens=30, temperature=1.0)
    [sample] = engine.sample([request])
    [completion] = engine.generate([request])
    assert seen == [prompt, prompt]
    assert sample is not None and sample.prompt + sample.reply == prompt + expected.reply and sample.ended
    assert completion.text == REPLY and completion.finish == "stop"
    engine.sample([Request(**{**vars(request), "prefix": "With a"})])
    engine.score([ChoiceQuery(id="c", messages=messages, opening="With a", choices=(" fork", " spoon"))])
    assert seen[2:] == [prompt + expected.begun] * 2
    engine.score([ReplyQuery(id="q", messages=messages, reply=REPLY)])
    assert seen[4:] == [prompt + expected.reply]
    assert expected.bos is None or prompt.count(expected.bos) == 1


def test_rollouts_are_made_of_the_same_tokens(asked: tuple[HFEngine, list[list[int]], Expected], tmp_path: Path):
    engine, _, expected = asked

    @contextmanager
    def policy() -> Any:
        yield engine._model

    config = compose_config(["launch.batch_rows=1"])
    reads = {"policy_engine": config.policy_engine, "model": config.model}
    folders = {"sft": tmp_path}
    context = Context(stage="align", reads=reads, folders=folders, out=tmp_path, launch=config.launch)
    tokenizer = engine._encoding.tokenizer
    actors: Any = SimpleNamespace(policy=policy, gathered=nullcontext, tokenizer=tokenizer, write_adapter=None)
    rollouts = draw(
        live_engine(actors, context), [prompt_of(name) for name in DIALOGUES], [0, 1], RolloutConfig(), context
    )
    assert [rollout.prompt_tokens for rollout in rollouts] == [expected.prompts[name] for name in DIALOGUES]
    assert all(rollout.reply_tokens == expected.reply and rollout.text == REPLY for rollout in rollouts)


# --- What is trained on --------------------------------------------------------------------------------------------


def prompt_of(name: str) -> Prompt:
    return Prompt(id=name, pool="ordinary", kind="k", split="train", messages=DIALOGUES[name])


def preference(name: str) -> Preference:
    pair = Comparison(id=name, prompt=prompt_of(name), reply_a=REPLY, reply_b=OTHER, seed_a=0, seed_b=1)
    return Preference(comparison=pair, judgements=[], probability_a=0.9, labeller="l", template="t")


Train = Callable[..., tuple[dict[str, torch.Tensor], dict[str, Any]]]


@pytest.fixture
def first_batch(made: tuple[Case, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """What a trainer's collator gives the model for all rows, in place of training; and the metrics."""

    def train_on(module: Any, function: Callable[..., Any], rows: Any, *overrides: str) -> Any:
        trainers: list[Any] = []
        monkeypatch.setattr(module, "train", lambda trainer, *_: trainers.append(trainer) or {})
        save = "save_reward_model" if module is reward else "save_checkpoint"
        monkeypatch.setattr(module, save, lambda *_: None)
        sizes = [f"{stage}.global_batch_size=2" for stage in ("sft", "align", "reward")]
        config = compose_config([f"model.path={made[1]}", "model.lora.upper_share=1", *sizes, *overrides])
        reads = {"model": config.model, "seed": 0}
        context = Context(stage="x", reads=reads, folders={}, out=tmp_path, launch=config.launch)
        if module is sft:
            metrics, _ = function(rows, config.sft, context)
        elif module is reward:
            metrics, _ = function(rows, str(made[1]), config.reward, 0.0, context)
        elif module is pairs:
            metrics, _ = function(rows, str(made[1]), method_of(config), config.align, context)
        else:
            metrics, _ = function(rows, str(made[1]), config.align, context)
        [trainer] = trainers
        return trainer.data_collator(list(trainer.train_dataset)), metrics

    return train_on


def split_rows(batch: dict[str, torch.Tensor], learned: torch.Tensor) -> list[tuple[list[int], list[int]]]:
    """Each row without its padding: the tokens that are read only, and those that are learned, which come last."""
    found = []
    for ids, mask, flags in zip(batch["input_ids"], batch["attention_mask"].bool(), learned, strict=True):
        ids, flags = ids[mask], flags[mask]
        start = len(ids) - int(flags.sum())
        assert flags.tolist() == [False] * start + [True] * (len(ids) - start)
        found.append((ids[:start].tolist(), ids[start:].tolist()))
    return found


def test_sft_learns_the_reply_and_its_end(made: tuple[Case, Path], first_batch: Train):
    expected = Expected(*made)
    rows = [
        TrainingRow(id=name, origin="revision", source_id=name, messages=messages, reply=REPLY)
        for name, messages in DIALOGUES.items()
    ]
    batch, metrics = first_batch(sft, sft.train_sft, rows)
    labels = batch["labels"]
    assert split_rows(batch, labels != -100) == [(expected.prompts[name], expected.reply) for name in DIALOGUES]
    assert bool(((labels == -100) | (labels == batch["input_ids"])).all())
    assert metrics == {"num_rows": 2, "num_rows_cut": 0, "num_rows_left_out": 0}


@pytest.mark.parametrize("method", ["dpo", "ipo"])
def test_dpo_learns_both_replies_and_their_ends(made: tuple[Case, Path], first_batch: Train, method: str):
    expected, config = Expected(*made), align_config()
    rows = pairs.trainable([preference(name) for name in DIALOGUES], config)
    batch, _ = first_batch(pairs, pairs.train_pairs, rows, f"align={method}", "align.num_reply_tokens=null")
    assert split_rows(batch, batch["completion_mask"] == 1) == [
        (expected.prompts[name], reply) for reply in (expected.reply, expected.other) for name in DIALOGUES
    ]


def test_the_beginning_of_a_reply_has_no_end_of_turn(made: tuple[Case, Path], first_batch: Train):
    expected, config = Expected(*made), align_config()
    whole, begun = pairs.trainable([preference(name) for name in DIALOGUES], config)
    rows = [whole, begun | {"begun_a": True, "begun_b": True, "opening": "With a"}]
    batch, _ = first_batch(pairs, pairs.train_pairs, rows, "align=decide")
    learned = {tuple(reply) for _, reply in split_rows(batch, batch["completion_mask"] == 1)}
    ends = (expected.reply, expected.other, expected.reply_begun, expected.other_begun)
    assert learned == {tuple(ids) for ids in ends}
    num_compared = set(batch["num_compared"].tolist())
    assert num_compared == {len(expected.begun), 512}, "as many tokens as the opening has, or all"


def test_a_recovery_row_declines_after_the_beginning_of_the_answer(made: tuple[Case, Path], first_batch: Train):
    expected, config = Expected(*made), align_config()
    rows = pairs.trainable([preference(name) for name in DIALOGUES], config)
    settings = ("align=decide", "align.recovery_ratio=1", "align.recovery_tokens=1", "align.global_batch_size=4")
    batch, metrics = first_batch(pairs, pairs.train_pairs, rows, *settings)
    read = split_rows(batch, batch["completion_mask"] == 1)
    assert metrics["num_recovery_rows"] == len(rows) and len(read) == 4 * len(rows)
    for name in DIALOGUES:
        begun = expected.prompts[name] + expected.other[:1]
        [rest, declined] = sorted((reply for prompt, reply in read if prompt == begun), key=expected.other[1:].__ne__)
        assert rest == expected.other[1:] and declined[-len(expected.reply) :] == expected.reply


def test_dpo_may_read_the_beginnings_of_replies_only(made: tuple[Case, Path], first_batch: Train):
    expected, config = Expected(*made), align_config()
    rows = pairs.trainable([preference(name) for name in DIALOGUES], config)
    batch, metrics = first_batch(pairs, pairs.train_pairs, rows, "align.num_reply_tokens=2")
    assert [learned for _, learned in split_rows(batch, batch["completion_mask"] == 1)] == (
        [expected.reply[:2]] * 2 + [expected.other[:2]] * 2
    )
    assert metrics["num_rows_cut"] == 0


def test_kto_learns_each_reply_and_its_end(made: tuple[Case, Path], first_batch: Train):
    expected, config = Expected(*made), align_config()
    rows = pairs.trainable([preference(name) for name in DIALOGUES], config)
    batch, _ = first_batch(kto, kto.train_kto, rows, "align=kto", "align.kl_batch_size=2")
    read = split_rows(batch, batch["completion_mask"] == 1)
    found = [(*row, wanted) for row, wanted in zip(read, batch["label"].tolist(), strict=True)]
    assert sorted(found) == sorted(
        (expected.prompts[name], reply, wanted)
        for name in DIALOGUES
        for reply, wanted in ((expected.reply, True), (expected.other, False))
    )
    mismatched = {"input_ids": batch["KL_input_ids"], "attention_mask": batch["KL_attention_mask"]}
    prompts = [prompt for prompt, _ in split_rows(mismatched, batch["KL_completion_mask"] == 1)]
    assert prompts == [prompt for prompt, *_ in found]


def test_the_reward_model_reads_what_the_policy_wrote_and_what_follows_its_end(
    made: tuple[Case, Path], first_batch: Train
):
    expected = Expected(*made)
    whole = [expected.prompts[name] + expected.reply + expected.after for name in DIALOGUES]
    batch, _ = first_batch(reward, reward.train_reward, [preference(name) for name in DIALOGUES])
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    assert [ids[:length] for ids, length in zip(batch["input_ids"].tolist(), lengths, strict=True)][:2] == whole
    scored: list[list[int]] = []

    def score_tokens(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        scored.extend(ids[mask].tolist() for ids, mask in zip(input_ids, attention_mask.bool(), strict=True))
        return torch.zeros(len(input_ids))

    tokenizer = load_tokenizer(str(made[1]))
    model = RewardModel(score_tokens, tokenizer, name="r", context=500, device=torch.device("cpu"), batch_rows=1)
    model.score(list(DIALOGUES.values()), [REPLY] * 2)
    assert sorted(scored) == sorted(whole)


def align_config() -> Any:
    return compose_config([]).align


# --- The renderer itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIALOGUES)
def test_an_example_is_a_prompt_and_a_reply(made: tuple[Case, Path], name: str):
    case, folder = made
    tokenizer, expected = AutoTokenizer.from_pretrained(folder), Expected(case, folder)
    chat = Renderer(tokenizer)
    ids, mask = chat.example(DIALOGUES[name], REPLY)
    prompt = chat.prompt_ids(DIALOGUES[name])
    assert ids[: len(prompt)] == prompt and mask == [0] * len(prompt) + [1] * len(expected.reply)
    assert tokenizer.decode(ids) == getattr(case, name) + REPLY + case.end
    assert chat.stop_ids <= expected.stops and chat.end_ids[-1] in chat.stop_ids
    check_model(str(folder), None)


def test_the_tokenizer_would_have_doubled_bos(made: tuple[Case, Path]):
    expected = Expected(*made)
    assert expected.bos is None or expected.text[0] == expected.bos
