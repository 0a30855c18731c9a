"""Benchmark of the in-process engine: tokens and pairs per second beside plain transformers, in one process.

    python scripts/bench_engine.py [--model PATH] [--rows 64] [--new-tokens 48] [--precision auto] [--int8]
        [--output FILE]

Three tasks of the default run, on its own prompts:

- first replies to requests, as they are also drawn for pairs and in the evaluation (short prompts);
- critiques after worked examples of the constitution (long prompts with one beginning);
- labels by the likelihood ratio: two replies per pair, each after examples with and against a principle.

The baseline is what one writes with transformers alone: the model in 32 bits, prompts padded on the left, one call of
``model.generate`` with a batch of as many rows; for labels, one forward pass per prompt. Nothing is timed before a
first pass for warm-up. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chat import Renderer
from pipeline.constitution.critique import critique_examples, critique_question
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.constitution.schema import Constitution
from pipeline.data.loading import load_prompts
from pipeline.engines.base import ReplyQuery, Request
from pipeline.engines.hf import HFEngine
from pipeline.engines.int8 import check_int8, round_to_int8
from pipeline.engines.models import load_model, load_tokenizer, resolve_path
from pipeline.labellers.base import LABELLERS
from pipeline.records import Message, derived_rng

NUM_EXAMPLES = 8  # worked examples before a critique
REPLIES = (
    "I won't help with that, because it could hurt someone. I can explain how to stay safe instead.",
    "First, look at the problem from all sides. Then take one step after the other, and check each of them.",
)


# --- Tasks ---------------------------------------------------------------------------------------------------------


def first_replies(config: Config, num_rows: int, new_tokens: int) -> list[Request]:
    prompts = load_prompts(config.data).select("red_team", "train")[:num_rows]
    return [
        Request(id=prompt.id, messages=prompt.messages, seed=number, max_new_tokens=new_tokens, temperature=1.0)
        for number, prompt in enumerate(prompts)
    ]


def critiques(config: Config, constitution: Constitution, num_rows: int, new_tokens: int) -> list[Request]:
    few_shot = critique_examples(constitution, "red_team", NUM_EXAMPLES)
    asked = []
    for number, prompt in enumerate(load_prompts(config.data).select("red_team", "train")[:num_rows]):
        [principle] = constitution.sample("red_team", 1, derived_rng(0, prompt.key))
        question = critique_question(prompt.messages, "Sure, I can help you with that.", principle)
        messages = [*few_shot, Message(role="user", content=question)]
        asked.append(
            Request(id=prompt.id, messages=messages, seed=number, max_new_tokens=new_tokens, temperature=0.4, top_p=0.9)
        )
    return asked


def labels(config: Config, constitution: Constitution, num_pairs: int) -> list[ReplyQuery]:
    labeller: Any = LABELLERS["likelihood"](LABELLERS["likelihood"].Config(), constitution, 0)
    asked: list[ReplyQuery] = []
    for prompt in load_prompts(config.data).select("red_team", "train")[:num_pairs]:
        [principle] = constitution.sample("red_team", 1, derived_rng(0, prompt.key))
        for side, reply in zip("ab", REPLIES, strict=True):
            asked += labeller.ask(prompt.id, side, prompt, reply, principle)
    return asked


# --- Plain transformers --------------------------------------------------------------------------------------------


@torch.inference_mode()
def plain_generate(model: Any, tokenizer: Any, asked: Sequence[Request]) -> int:
    """One call of ``generate``. Returns the number of tokens up to the end of each reply."""
    chat = Renderer(tokenizer, model.generation_config.eos_token_id)
    rows = [chat.prompt_ids(request.messages) for request in asked]
    width, pad = max(map(len, rows)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=asked[0].temperature,
        top_p=asked[0].top_p,
        top_k=0,
        max_new_tokens=asked[0].max_new_tokens,
        eos_token_id=sorted(chat.stop_ids),
        pad_token_id=pad,
    )
    return sum(_num_tokens(tokens, chat.stop_ids) for tokens in output[:, width:].tolist())


def _num_tokens(tokens: list[int], stop_ids: frozenset[int]) -> int:
    return next((place for place, token in enumerate(tokens) if token in stop_ids), len(tokens))


@torch.inference_mode()
def plain_score(model: Any, tokenizer: Any, asked: Sequence[ReplyQuery]) -> int:
    """One forward pass per prompt. Returns the number of prompts."""
    chat = Renderer(tokenizer, model.generation_config.eos_token_id)
    for query in asked:
        row, reply = chat.example(query.messages, query.reply).ids, chat.reply_ids(query.reply)
        logits = model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0]
        logprobs = logits[-len(reply) - 1 : -1].float().log_softmax(-1)
        logprobs.gather(1, torch.tensor(reply, device=model.device)[:, None]).mean()
    return len(asked)


# --- Our engine ----------------------------------------------------------------------------------------------------


def generate(engine: HFEngine, asked: Sequence[Request]) -> int:
    return sum(reply.num_tokens for batch in engine.batches(asked) for reply in engine.generate(batch))


def score(engine: HFEngine, asked: Sequence[ReplyQuery]) -> int:
    return sum(len(engine.score(batch)) for batch in engine.batches(asked))


# --- The table -----------------------------------------------------------------------------------------------------


def rate(work: Callable[[], int]) -> float:
    """How many units of work are done per second."""
    started = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - started)


@dataclass(frozen=True)
class Task:
    """What both sides do. ``unit``: what one piece of the returned work counts as, in ``what``."""

    name: str
    num_rows: int
    baseline: Callable[[], int]
    ours: Callable[[], int]
    what: str = "tokens"
    unit: float = 1

    def row(self) -> str:
        before, after = self.unit * rate(self.baseline), self.unit * rate(self.ours)
        numbers = f"{before:.1f} {self.what} | {after:.1f} {self.what} | {after / before:.1f} ×"
        return f"| {self.name} | {self.num_rows} | {numbers} |"


def tasks_of(plain: Any, tokenizer: Any, engine: HFEngine, num_rows: int, new_tokens: int) -> list[Task]:
    """The three tasks, after a first pass of both sides for warm-up."""
    config, constitution = compose_config([]), load_constitution(find_constitution("default"))
    replies = first_replies(config, num_rows, new_tokens)
    reviews = critiques(config, constitution, min(num_rows, 24), new_tokens)
    asked = labels(config, constitution, num_rows)
    generate(engine, replies[:2]), plain_generate(plain, tokenizer, replies[:2])

    def generated(name: str, asks: Sequence[Request]) -> Task:
        return Task(name, len(asks), lambda: plain_generate(plain, tokenizer, asks), lambda: generate(engine, asks))

    few = asked[: len(asked) // 4]
    return [
        generated("first replies, replies of the evaluation", replies),
        generated(f"critiques after {NUM_EXAMPLES} examples", reviews),
        Task(
            "labels by likelihood",
            len(asked),
            lambda: plain_score(plain, tokenizer, few),
            lambda: score(engine, asked),
            what="pairs",
            unit=1 / 4,
        ),
    ]


def parsed() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="embedded")
    arguments.add_argument("--rows", type=int, default=64)
    arguments.add_argument("--new-tokens", type=int, default=48)
    arguments.add_argument("--precision", default="auto")
    arguments.add_argument("--int8", action="store_true", help="the engine computes in 8 bits, as a critic may")
    arguments.add_argument("--output", type=Path, default=Path("docs/bench.md"))
    return arguments.parse_args()


def main() -> None:
    args = parsed()
    if args.int8:
        check_int8("--int8")
    path = resolve_path(args.model)
    tokenizer, plain = load_tokenizer(path), load_model(path, "fp32")
    model = load_model(path, "fp32" if args.int8 else args.precision)
    precision, numbers = f"--precision {args.precision}", str(model.dtype)
    if args.int8:
        round_to_int8(model)
        precision, numbers = "--int8", "8 bits"
    engine = HFEngine(model, tokenizer, "engine", batch_rows=args.rows)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"a CPU with {os.cpu_count()} cores"
    lines = [
        "# Engine benchmark",
        "",
        f"Command: `python scripts/bench_engine.py --model {args.model} --rows {args.rows} --new-tokens "
        f"{args.new_tokens} {precision}`, on {device}, torch {torch.__version__}. Baseline: plain "
        f"transformers, {plain.dtype}, for labels one forward pass per prompt. Engine: {numbers}.",
        "",
        "| task | rows | baseline, per second | engine, per second | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task in tasks_of(plain, tokenizer, engine, args.rows, args.new_tokens):
        lines.append(task.row())
        print(lines[-1], flush=True)
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
