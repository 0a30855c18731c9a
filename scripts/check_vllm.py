"""Compare the engines hf and vllm on one model: do they generate and score the same, and how fast are they?

    .venv-vllm/bin/python scripts/check_vllm.py [MODEL] [--precision fp32] [--rows 16] [--new-tokens 48]

MODEL is a folder, a hub id or "embedded". Both engines get the same requests, one after the other. It prints a table.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import psutil
import torch

from pipeline.chain.compose import compose_config
from pipeline.constitution.critique import critique_examples, critique_question
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.core.distributed import LaunchConfig
from pipeline.data.loading import load_prompts
from pipeline.engines.base import ENGINES, Answer, ChoiceQuery, Completion, ReplyQuery, Request, Weights, open_engine
from pipeline.engines.models import load_tokenizer, resolve_path
from pipeline.records import Message, Prompt, derived_rng

NUM_EXAMPLES = 4
ENGINES_COMPARED = ("hf", "vllm")


def replies(prompts: Sequence[Prompt], new_tokens: int) -> list[Request]:
    greedy: dict[str, Any] = {"seed": 0, "max_new_tokens": new_tokens, "temperature": 0.0}
    return [Request(id=prompt.id, messages=prompt.messages, **greedy) for prompt in prompts]


def critiques(prompts: Sequence[Prompt], new_tokens: int) -> list[Request]:
    """With worked examples, which are the same in all requests."""
    constitution = load_constitution(find_constitution("default"))
    examples = critique_examples(constitution, "red_team", NUM_EXAMPLES)
    asked = []
    for prompt in prompts:
        [principle] = constitution.sample("red_team", 1, derived_rng(0, prompt.key))
        question = critique_question(prompt.messages, "Sure, I can help you with that.", principle)
        messages = [*examples, Message(role="user", content=question)]
        asked.append(Request(id=prompt.id, messages=messages, seed=0, max_new_tokens=new_tokens, temperature=0.0))
    return asked


def choices(prompts: Sequence[Prompt]) -> list[ChoiceQuery]:
    question = "\n\nIs it right to help with this request?\n(A) Yes, it is.\n(B) No, it is not."
    return [
        ChoiceQuery(
            id=prompt.id,
            messages=[Message(role="user", content=prompt.messages[-1]["content"] + question)],
            opening="The right answer is (",
            choices=("A", "B"),
        )
        for prompt in prompts
    ]


def given_replies(prompts: Sequence[Prompt]) -> list[ReplyQuery]:
    refusal = "I can't help with that, because it could hurt someone. I can tell you how to stay safe instead."
    return [ReplyQuery(id=prompt.id, messages=prompt.messages, reply=refusal) for prompt in prompts]


def cpu_seconds() -> float:
    """What this process and those that it started have computed so far. Other work on the machine hardly changes it."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))


def timed(engine: Any, asks: Sequence[Any], work: Callable[[Any], list[Any]]) -> tuple[dict[str, Any], float, float]:
    """Return ask id → result, the seconds, and the CPU seconds."""
    started, cpu_started = time.perf_counter(), cpu_seconds()
    found = {result.id: result for batch in engine.batches(asks) for result in work(batch)}
    return found, time.perf_counter() - started, cpu_seconds() - cpu_started


def same_tokens(tokenizer: Any, one: dict[str, Completion], other: dict[str, Completion]) -> str:
    """How many replies are equal, and the share of tokens before the first one that differs."""
    same = total = 0
    for row_id, reply in one.items():
        a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (reply.text, other[row_id].text))
        first = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        same, total = same + first, total + max(len(a), len(b))
    equal = sum(reply.text == other[row_id].text for row_id, reply in one.items())
    return f"{equal} of {len(one)} replies are equal; {100 * same / max(total, 1):.1f} % of tokens before a difference"


def difference(one: dict[str, Answer], other: dict[str, Answer]) -> str:
    pairs = [
        pair for row_id, answer in one.items() for pair in zip(answer.logprobs, other[row_id].logprobs, strict=True)
    ]
    apart = [abs(a - b) for a, b in pairs]
    values = [a for a, _ in pairs]
    return f"mean {mean(apart):.1e}, max {max(apart):.1e} apart (values {min(values):.1f} to {max(values):.1f})"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model", nargs="?", default="embedded")
    arguments.add_argument("--precision", default="fp32")
    arguments.add_argument("--rows", type=int, default=16)
    arguments.add_argument("--new-tokens", type=int, default=48)
    given = arguments.parse_args()

    prompts = load_prompts(compose_config([]).data).select("red_team", "train")[: given.rows]
    tokenizer = load_tokenizer(resolve_path(given.model))
    tasks: dict[str, list[Any]] = {
        "replies": replies(prompts, given.new_tokens),
        f"critiques after {NUM_EXAMPLES} examples": critiques(prompts, given.new_tokens),
        "choices": choices(prompts),
        "given replies": given_replies(prompts),
    }
    weights = Weights(path=given.model, precision=given.precision, name="checked")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    rates: dict[tuple[str, str], str] = {}
    for kind in ENGINES_COMPARED:
        engine = open_engine(ENGINES.parse({"kind": kind}), weights, LaunchConfig(batch_rows=given.rows))
        engine.generate(replies(prompts[:2], 4))  # starts vLLM
        for task, asks in tasks.items():
            generates = isinstance(asks[0], Request)
            results, seconds, computed = timed(engine, asks, engine.generate if generates else engine.score)
            found[kind, task] = results
            done = sum(reply.num_tokens for reply in results.values()) if generates else len(asks)
            what = "tokens" if generates else "queries"
            rates[kind, task] = f"{done / seconds:.1f} {what}/s, {done / computed:.1f} per CPU second"
        del engine
        ENGINES[kind].release()

    print(
        f"{given.model}, {given.precision}, {given.rows} requests, {given.new_tokens} new tokens, "
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n\n"
        "| | hf | vllm | vllm beside hf |\n| --- | --- | --- | --- |"
    )
    for task, asks in tasks.items():
        one, other = (found[kind, task] for kind in ENGINES_COMPARED)
        apart = same_tokens(tokenizer, one, other) if isinstance(asks[0], Request) else difference(one, other)
        print(f"| {task} | {rates['hf', task]} | {rates['vllm', task]} | {apart} |")


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
