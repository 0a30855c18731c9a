"""Benchmark of the engine's batching and prefix sharing: replies per second, relative to one row at a time.

    python scripts/bench_engine.py [--model PATH] [--rows 32] [--new-tokens 32] [--output docs/bench.md]

Every variant generates critiques for the same prompts, after worked examples of the default constitution, in one
process. A first pass for warm-up is not timed. The table is written to the output file.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

from pipeline.chain.compose import compose_config
from pipeline.constitution.critique import critique_examples, critique_question
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.data.loading import load_prompts
from pipeline.engines.base import Request
from pipeline.engines.hf import HFEngine
from pipeline.engines.models import load_model, load_tokenizer, resolve_path
from pipeline.records import Message, derived_rng

NUM_EXAMPLES = 8
VARIANTS = {
    "one row at a time (baseline)": {"batch_rows": 1, "share_prefix": False},
    "batched": {"share_prefix": False},
    "batched, shared prefix computed once (one prefill for all rows)": {"share_prefix": True},
}


def requests(rows: int, new_tokens: int) -> list[Request]:
    constitution = load_constitution(find_constitution("default"))
    config = compose_config([])
    few_shot = critique_examples(constitution, "red_team", NUM_EXAMPLES)
    prompts = load_prompts(config.data).select("red_team", "train")[:rows]
    asked = []
    for prompt in prompts:
        [principle] = constitution.sample("red_team", 1, derived_rng(0, prompt.key))
        question = critique_question(prompt.messages, "Sure, I can help you with that.", principle)
        messages = [*few_shot, Message(role="user", content=question)]
        asked.append(Request(id=prompt.id, messages=messages, seed=0, max_new_tokens=new_tokens, temperature=0.0))
    return asked


def seconds(engine: HFEngine, asked: list[Request]) -> tuple[float, dict[str, str]]:
    started = time.perf_counter()
    done = {reply.id: reply.text for batch in engine.batches(asked) for reply in engine.generate(batch)}
    return time.perf_counter() - started, done


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="embedded")
    arguments.add_argument("--rows", type=int, default=32)
    arguments.add_argument("--new-tokens", type=int, default=32)
    arguments.add_argument("--output", type=Path, default=Path("docs/bench.md"))
    args = arguments.parse_args()

    path = resolve_path(args.model)
    model, tokenizer = load_model(path, "auto"), load_tokenizer(path)
    asked = requests(args.rows, args.new_tokens)
    seconds(HFEngine(model, tokenizer, "warm-up"), asked[:2])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    lines = [
        "# Engine benchmark",
        "",
        f"Task: write critiques after {NUM_EXAMPLES} worked examples. "
        "All prompts of a batch begin with the same examples.",
        "",
        f"Command: `python scripts/bench_engine.py --model {args.model} --rows {args.rows} --new-tokens "
        f"{args.new_tokens}`, on {device}, {model.dtype}, torch {torch.__version__}.",
        "",
        "| variant | seconds | replies per second | speed relative to the baseline | replies equal to the baseline's |",
        "| --- | --- | --- | --- | --- |",
    ]
    baseline: tuple[float, dict[str, str]] | None = None
    for name, options in VARIANTS.items():
        taken, done = seconds(HFEngine(model, tokenizer, name, **options), asked)
        baseline = baseline or (taken, done)
        same = sum(done[row_id] == text for row_id, text in baseline[1].items())
        lines.append(
            f"| {name} | {taken:.1f} | {len(done) / taken:.2f} | {baseline[0] / taken:.1f} × | {same} of {len(done)} |"
        )
        print(lines[-1], flush=True)
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
