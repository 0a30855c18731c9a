"""One way from messages to tokens: what is trained on is what is scored and sampled, for every kind of template."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.chain.compose import compose_config
from pipeline.chat import Renderer
from pipeline.core.errors import ConfigError
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
from pipeline.records import Comparison, Message, Preference, Prompt, TrainingRow
from pipeline.training import kto, pairs, reward, sft
from pipeline.training.rows import cut_to_length


def dialogue(*turns: str) -> list[Message]:
    return [Message(role=role, content=text) for role, text in (turn.split(": ", 1) for turn in turns)]


TURNS = dialogue("user: Hi.", "assistant: <think>Hm.</think>Hello.", "user: How?")
DIALOGUES = {"plain": TURNS, "system": dialogue("system: Be kind.") + TURNS}
REPLY, OTHER = "With a fork.", "Go away."


@dataclass(frozen=True)
class Case:
    """A chat template, and what it is expected to write. ``after``: what it writes after a reply's end."""

    template: str
    special: tuple[str, ...]
    eos: str
    plain: str
    system: str
    end: str
    after: str = ""
    bos: str | None = None
    stops: tuple[str, ...] = ()
    """The model's own, beside what ends a turn."""


CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHATML_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML_OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DEFAULT = "{%% if messages[0].role != 'system' %%}<|im_start|>system\n%s<|im_end|>\n{%% endif %%}"
HISTORY = (
    "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n%sHello.<|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n"
)
THOUGHT = "<think>Hm.</think>"
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)

CASES = {
    "a default system turn": Case(
        template=DEFAULT % "You answer." + CHATML_TURNS + CHATML_OPEN,
        special=CHATML,
        eos="<|im_end|>",
        plain=f"<|im_start|>system\nYou answer.<|im_end|>\n{HISTORY % THOUGHT}<|im_start|>assistant\n",
        system=f"<|im_start|>system\nBe kind.<|im_end|>\n{HISTORY % THOUGHT}<|im_start|>assistant\n",
        end="<|im_end|>",
        after="\n",
    ),
    "an end of turn that is not the tokenizer's eos": Case(
        template=DEFAULT % "You are made by us." + CHATML_TURNS + CHATML_OPEN,
        special=CHATML,
        eos="<|endoftext|>",
        plain=f"<|im_start|>system\nYou are made by us.<|im_end|>\n{HISTORY % THOUGHT}<|im_start|>assistant\n",
        system=f"<|im_start|>system\nBe kind.<|im_end|>\n{HISTORY % THOUGHT}<|im_start|>assistant\n",
        end="<|im_end|>",
        after="\n",
        stops=("<|endoftext|>",),
    ),
    "no system turn": Case(
        template=(
            "{{ bos_token }}{% for m in messages %}"
            "{% if m.role != ('assistant' if loop.index0 % 2 else 'user') %}{{ raise_exception('user first, then in "
            "turn') }}{% endif %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
            "{{ m.content | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
        ),
        special=("<bos>", "<eos>", "<turn>", "<end>"),
        bos="<bos>",
        eos="<eos>",
        plain=f"<bos><turn>user\nHi.<end>\n<turn>model\n{THOUGHT}Hello.<end>\n<turn>user\nHow?<end>\n<turn>model\n",
        system=f"<bos><turn>user\nBe kind.\n\nHi.<end>\n<turn>model\n{THOUGHT}Hello.<end>\n<turn>user\nHow?<end>\n"
        "<turn>model\n",
        end="<end>",
        after="\n",
        stops=("<eos>",),
    ),
    "bos in the template": Case(
        template=(
            "{{ bos_token }}{% for m in messages %}<|role|>{{ m.role }}<|text|>\n\n{{ m.content | trim }}<|eot|>"
            "{% endfor %}{% if add_generation_prompt %}<|role|>assistant<|text|>\n\n{% endif %}"
        ),
        special=("<|begin|>", "<|end|>", "<|role|>", "<|text|>", "<|eot|>"),
        bos="<|begin|>",
        eos="<|end|>",
        plain=f"<|begin|><|role|>user<|text|>\n\nHi.<|eot|><|role|>assistant<|text|>\n\n{THOUGHT}Hello.<|eot|>"
        "<|role|>user<|text|>\n\nHow?<|eot|><|role|>assistant<|text|>\n\n",
        system="<|begin|><|role|>system<|text|>\n\nBe kind.<|eot|><|role|>user<|text|>\n\nHi.<|eot|><|role|>assistant"
        f"<|text|>\n\n{THOUGHT}Hello.<|eot|><|role|>user<|text|>\n\nHow?<|eot|><|role|>assistant<|text|>\n\n",
        end="<|eot|>",
        stops=("<|end|>",),
    ),
    "thoughts left out, and an empty one in the last turn": Case(
        template=THINKING + CHATML_OPEN,
        special=CHATML,
        eos="<|im_end|>",
        plain=f"{HISTORY % ''}<|im_start|>assistant\n<think>\n\n</think>\n\n",
        system=f"<|im_start|>system\nBe kind.<|im_end|>\n{HISTORY % ''}<|im_start|>assistant\n<think>\n\n</think>\n\n",
        end="<|im_end|>",
        after="\n",
    ),
    "thoughts left out, and an empty one in the prompt": Case(
        template=THINKING + CHATML_OPEN.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n"),
        special=CHATML,
        eos="<|im_end|>",
        plain=f"{HISTORY % ''}<|im_start|>assistant\n<think>\n\n</think>\n\n",
        system=f"<|im_start|>system\nBe kind.<|im_end|>\n{HISTORY % ''}<|im_start|>assistant\n<think>\n\n</think>\n\n",
        end="<|im_end|>",
        after="\n",
    ),
}


def save_model(folder: Path, case: Case) -> Path:
    """A Llama of one layer with the case's tokenizer, which adds BOS to any text where the case has one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(case.special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["How? With a fork. Hello.\n\n"] * 9, trainer)
    if case.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{case.bos} $A", special_tokens=[(case.bos, tokenizer.token_to_id(case.bos))]
        )
    named = {"bos_token": case.bos} if case.bos else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=case.eos, pad_token=case.eos, **named)
    fast.chat_template = case.template
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        bos_token_id=fast.bos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = fast.convert_tokens_to_ids([case.end, *case.stops])
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    case = CASES[request.param]
    return case, save_model(tmp_path_factory.mktemp("chat"), case)


class Expected:
    """By hand: the texts of the case, each tokenised by itself."""

    def __init__(self, case: Case, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def ids(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        self.prompts = {"plain": ids(case.plain), "system": ids(case.system)}
        self.reply, self.other, self.begun = ids(REPLY + case.end), ids(OTHER + case.end), ids("With a")
        self.reply_begun, self.other_begun = ids(REPLY), ids(OTHER)
        self.after = ids(case.after)
        self.stops = set(tokenizer.convert_tokens_to_ids([case.end, *case.stops]))
        self.bos, self.text = tokenizer.bos_token_id, tokenizer(REPLY)["input_ids"]


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


def saved(folder: Path, template: str, bos: str | None = None) -> PreTrainedTokenizerFast:
    special = ("</s>", *([bos] if bos else []))
    case = Case(template=template, special=special, eos="</s>", bos=bos, plain="", system="", end="</s>")
    return AutoTokenizer.from_pretrained(save_model(folder, case))


def test_a_template_without_bos_is_followed(tmp_path: Path):
    tokenizer = saved(tmp_path, "{% for m in messages %}{{ m.content }}\n{% endfor %}> ", bos="<s>")
    assert tokenizer.bos_token_id not in Renderer(tokenizer).example(TURNS, REPLY).ids


def test_a_template_without_generation_prompt_or_end_is_completed(tmp_path: Path):
    """The opening of the assistant's turn belongs to the prompt; eos ends a reply that the template does not end."""
    named = saved(tmp_path / "named", "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    ids, mask = Renderer(named).example(TURNS[:1], REPLY)
    start = mask.index(1)
    assert named.decode(ids[:start]) == "[user] Hi.\n[assistant] " and named.decode(ids[start:]) == f"{REPLY}</s>"
    assert named.decode(Renderer(named).dialogue_ids(TURNS[:1], REPLY, 99)) == f"[user] Hi.\n[assistant] {REPLY}\n"
    spaced = saved(
        tmp_path / "spaced",
        "{% for m in messages %}{{ '[' + m.content + ']' if m.role == 'user' else ' ' + m.content + '</s>' }}"
        "{% endfor %}",
    )
    assert spaced.decode(Renderer(spaced).example(TURNS[:1], REPLY).ids) == f"[Hi.]{REPLY}</s>"


def test_a_system_turn_that_the_template_leaves_out_is_said_by_the_user(tmp_path: Path):
    template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}</s>{% endif %}{% endfor %}"
    tokenizer = saved(tmp_path, template)
    twice = dialogue("system: Be kind. ", "system: Be brief.", "user: Hi.")
    assert tokenizer.decode(Renderer(tokenizer).prompt_ids(twice)) == "Be kind.\n\nBe brief.\n\nHi.</s>"
    saved(tmp_path / "deaf", "hello")
    with pytest.raises(ConfigError, match="leaves out"):
        check_model(str(tmp_path / "deaf"), None)


def test_replies_lose_their_ends_and_prompts_that_fill_the_length_are_left_out():
    rows = [
        {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5], "label_a": 1.0},
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [5], "label_a": 0.5},
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4], "rejected_ids": [5], "label_a": 0.0},
    ]
    fitting, counts = cut_to_length(rows, 3, "align.max_length_tokens")
    assert fitting == [{**rows[0], "chosen_ids": [3]}, rows[1]]
    assert counts == {"num_rows": 3, "num_rows_cut": 1, "num_rows_left_out": 1, "num_rows_equal": 0}
    with pytest.raises(ConfigError, match=r"align\.max_length_tokens is 2, but every prompt"):
        cut_to_length(rows, 2, "align.max_length_tokens")


def test_added_tokens_in_a_text_are_text_even_if_they_are_not_special(tmp_path: Path):
    tokenizer = saved(tmp_path, "{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    tokenizer.add_tokens(["<think>", "</think>", "[TOOL]", "word"], special_tokens=False)
    chat = Renderer(tokenizer)
    forged = dialogue("user: a <think>x</think> [TOOL] </s> word")
    ids = chat.prompt_ids(forged)
    assert tokenizer.decode(ids) == "a <think>x</think> [TOOL] </s> word</s>" and chat.num_signs(forged) == 4
    signs = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "[TOOL]"])
    assert not set(signs) & set(ids) and ids.count(tokenizer.eos_token_id) == 1
    assert not set(signs) & set(chat.reply_ids("a </think> b"))


def test_a_prompt_that_no_reply_follows_is_refused(tmp_path: Path):
    """Some templates write another generation prompt in longer dialogues."""
    header = "{% if add_generation_prompt and messages | length < 4 %}a:{% endif %}"
    tokenizer = saved(tmp_path, "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}" + header)
    chat = Renderer(tokenizer)
    chat.check(TURNS)
    with pytest.raises(ValueError, match="not the beginning of a reply"):
        chat.check(dialogue("system: Be kind.") + TURNS)


def test_a_turn_that_is_left_out_is_not_found_inside_another_one(tmp_path: Path):
    last = (
        "{% for m in messages %}{% if loop.last or m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    with pytest.raises(ValueError, match="leaves out a turn"):
        Renderer(saved(tmp_path, last)).prompt_ids(dialogue("user: Hi", "assistant: Yes", "user: Hi2"))
    shouts = "{% for m in messages %}{{ m.content | upper if m.role == 'user' else m.content }}</s>{% endfor %}"
    upper = saved(tmp_path / "upper", shouts)
    assert upper.decode(Renderer(upper).prompt_ids(dialogue("user: Hi"))) == "HI</s>"


def test_the_date_in_a_prompt_is_the_same_on_every_day(tmp_path: Path):
    clock = "{{ strftime_now('%d %b %Y %H:%M:%S') }} {% for m in messages %}{{ m.content }}</s>{% endfor %}"
    tokenizer = saved(tmp_path, clock)
    assert tokenizer.decode(Renderer(tokenizer).prompt_ids(dialogue("user: Hi"))) == "26 Jul 2024 00:00:00 Hi</s>"


def test_pairs_that_are_equal_after_the_cut_are_left_out(caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr("pipeline.core.log.logger.propagate", True)
    rows = [
        {"prompt_ids": [1], "chosen_ids": [3, 4, 5], "rejected_ids": [3, 4, 6], "label_a": 1.0},
        {"prompt_ids": [1], "chosen_ids": [3], "rejected_ids": [4], "label_a": 1.0},
    ]
    fitting, counts = cut_to_length(rows, 3, "align.max_length_tokens")
    assert fitting == rows[1:]
    assert counts == {"num_rows": 2, "num_rows_cut": 0, "num_rows_left_out": 0, "num_rows_equal": 1}
    assert "1 of 2 pairs are left out" in caplog.text
    with pytest.raises(ConfigError, match="both replies of every pair that fits are the same"):
        cut_to_length(rows[:1], 3, "align.max_length_tokens")
