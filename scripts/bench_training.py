"""Benchmark of training: tokens per second of SFT, DPO and the reward model beside TRL's trainers, in one process.

    python scripts/bench_training.py [--model PATH] [--rows 64] [--batch 16] [--output docs/bench_training.md]

Both train the same adapter (all linear layers) on the same rows with the same global batch for one epoch. TRL's
trainers are taken as they come: the model in 32 bits on a CPU, 8 rows at once, activations recomputed. A second column
turns recomputation off. Tokens are those of the rows, without padding; a pair counts its prompt twice. The time holds
everything from loading the model to the last step; ours also merges and writes the checkpoint. Run it on an idle
machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chat import Renderer
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.core.stage import Context
from pipeline.data.loading import load_prompts
from pipeline.engines.models import load_model, load_tokenizer, resolve_path
from pipeline.methods.base import METHODS
from pipeline.records import Comparison, Message, Preference, TrainingRow
from pipeline.stages.sft import constitution_rows
from pipeline.training.models import lora_config
from pipeline.training.pairs import train_pairs, trainable
from pipeline.training.reward import train_reward
from pipeline.training.sft import train_sft

REPLIES = (
    "I won't help with that, because it could hurt someone. I can explain how to stay safe instead.",
    "First, look at the problem from all sides. Then take one step after the other, and check each of them.",
)


def sft_rows(num_rows: int) -> list[TrainingRow]:
    rows = constitution_rows(load_constitution(find_constitution("default")), num_rows)
    return [rows[number % len(rows)] for number in range(num_rows)]


def preferences(config: Config, num_rows: int) -> list[Preference]:
    prompts = load_prompts(config.data).select("red_team", "train")[:num_rows]
    return [
        Preference(
            comparison=Comparison(
                id=prompt.id, prompt=prompt, reply_a=REPLIES[0], reply_b=REPLIES[1], seed_a=0, seed_b=1
            ),
            judgements=[],
            probability_a=0.9,
            labeller="none",
            template="none",
        )
        for prompt in prompts
    ]


# --- Ours ----------------------------------------------------------------------------------------------------------


def ours(task: str, config: Config, rows: Sequence[Any], folder: Path) -> None:
    reads = {"model": config.model, "seed": 0}
    context = Context(stage=task, reads=reads, folders={}, out=folder, launch=config.launch)
    if task == "sft":
        train_sft(rows, config.sft, context)
    elif task == "reward":
        train_reward(rows, config.model.path, config.reward, 0.0, context)
    else:
        method: Any = METHODS["dpo"]()
        train_pairs(trainable(rows, config.align), config.model.path, method, config.align, context)


# --- TRL's trainers as they come -----------------------------------------------------------------------------------

# task → TRL's trainer, its settings and PEFT's type of task
TRAINERS: dict[str, tuple[Any, Any, str]] = {
    "sft": (trl.SFTTrainer, trl.SFTConfig, "CAUSAL_LM"),
    "dpo": (trl.DPOTrainer, trl.DPOConfig, "CAUSAL_LM"),
    "reward": (trl.RewardTrainer, trl.RewardConfig, "SEQ_CLS"),
}


def theirs(task: str, config: Config, rows: Sequence[Any], folder: Path, *, batch: int, recompute: bool) -> None:
    path = resolve_path(config.model.path)
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "per_device_train_batch_size": min(8, batch),
        "gradient_accumulation_steps": max(1, batch // 8),
        "gradient_checkpointing": recompute,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    trainer, settings, task_type = TRAINERS[task]
    model = load_model(path, "fp32")
    if task == "reward":
        arguments["model_init_kwargs"] = {"dtype": torch.float32}
    trainer(
        model=path if task == "reward" else model,  # TRL itself gives it a head
        args=settings(**arguments),
        train_dataset=Dataset.from_list([trl_row(row) for row in rows]),
        processing_class=load_tokenizer(path),
        peft_config=lora_config(config.model, model, task_type),
    ).train()


def trl_row(row: TrainingRow | Preference) -> dict[str, list[Message]]:
    if isinstance(row, TrainingRow):
        return {"prompt": row.messages, "completion": answer(row.reply)}
    pair = row.comparison
    return {"prompt": pair.prompt.messages, "chosen": answer(pair.reply_a), "rejected": answer(pair.reply_b)}


def answer(text: str) -> list[Message]:
    return [Message(role="assistant", content=text)]


# --- The table -----------------------------------------------------------------------------------------------------


def num_tokens(rows: Sequence[Any], chat: Renderer) -> int:
    if isinstance(rows[0], TrainingRow):
        return sum(len(chat.prompt_ids(row.messages)) + len(chat.reply_ids(row.reply)) for row in rows)
    pairs = [row.comparison for row in rows]
    replies = [(pair.prompt.messages, reply) for pair in pairs for reply in (pair.reply_a, pair.reply_b)]
    return sum(len(chat.prompt_ids(messages)) + len(chat.reply_ids(reply)) for messages, reply in replies)


def timed(work: Callable[[Path], None]) -> float:
    """Seconds that it takes."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        work(Path(folder))
        return time.perf_counter() - started


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="embedded")
    arguments.add_argument("--rows", type=int, default=64)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--output", type=Path, default=Path("docs/bench_training.md"))
    args = arguments.parse_args()
    each = (f"global_batch_size={args.batch}", "num_epochs=1", "save_every_steps=1000")
    config = compose_config(
        [
            f"model.path={args.model}",
            "model.lora.upper_share=1",
            "align=dpo",
            "align.num_reply_tokens=null",
            *(f"{section}.{setting}" for section in ("sft", "reward", "align") for setting in each),
        ]
    )
    path = resolve_path(args.model)
    model = load_model(path, "auto")
    chat = Renderer(load_tokenizer(path), model.generation_config.eos_token_id)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"a CPU with {os.cpu_count()} cores"
    ratio_note = "Tokens per second; in brackets the ratio to TRL as it comes."
    lines = [
        "# Training benchmark",
        "",
        f"Command: `python scripts/bench_training.py --model {args.model} --rows {args.rows} --batch {args.batch}`, on "
        f"{device}, torch {torch.__version__}, TRL {trl.__version__}. TRL as it comes: torch.float32. "
        f"Ours: {model.dtype}. {ratio_note}",
        "",
        "| task | rows | TRL as it comes | TRL without recomputation | ours |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task in TRAINERS:
        rows: Sequence[Any] = sft_rows(args.rows) if task == "sft" else preferences(config, args.rows)
        tokens = num_tokens(rows, chat)
        variants = (
            partial(theirs, task, config, rows, batch=args.batch, recompute=True),
            partial(theirs, task, config, rows, batch=args.batch, recompute=False),
            partial(ours, task, config, rows),
        )
        base, plain, mine = (tokens / timed(variant) for variant in variants)
        ratios = f"{plain:.0f} ({plain / base:.1f} ×) | {mine:.0f} ({mine / base:.1f} ×)"
        lines.append(f"| {task} | {len(rows)} | {base:.0f} | {ratios} |")
        print(lines[-1], flush=True)
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
