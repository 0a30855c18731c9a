"""The baseline of the PPO benchmark: TRL's last PPO (1.12.0, experimental) on a job that our own PPO runs too.

    python3.11 -m venv VENV && VENV/bin/pip install -r scripts/bench_ppo_requirements.txt
    VENV/bin/python scripts/bench_ppo_trl.py JOB.json RESULT.json

TRL removed PPO after 1.12, so this has an environment of its own and imports nothing of ``pipeline``. It runs in fp32
on the CPU and sets TRL up as a competent user would: what costs time and isn't PPO is off, TRL's loop stays as it is.

The job: model and reward_model (folders with one tokenizer), prompts (dialogues), batch_size (rollouts a step),
num_minibatches (optimizer steps an epoch), per_device_batch_size (rows a backward pass), num_epochs, num_steps,
max_reply_tokens, temperature, learning_rate, kl_coefficient, cliprange, cliprange_value, vf_coefficient, gamma, lam,
whiten_rewards, missing_eos_penalty (or null), tuning ("lora" or "full"), lora (rank, alpha, target_modules), seed,
num_threads, reward_mean, reward_std. If wanted, value_tuning ("full" is TRL's way whatever the policy's; "lora" gives
the critic an adapter too) and rollout_batch_size (rows that are generated and scored at once; TRL's default is 64),
save_policy (a folder).
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from datasets import Dataset
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import set_seed
from trl.experimental.ppo import PPOConfig, PPOTrainer

PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets")
SAME_NAME = ("temperature", "missing_eos_penalty", "learning_rate", "cliprange", "cliprange_value", "gamma", "lam")

Job = dict[str, Any]


class Stopwatch(TrainerCallback):
    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.marks = [time.perf_counter()]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append(time.perf_counter())


def tokenize(job: Job, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    rows = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True) for p in job["prompts"]]
    return Dataset.from_dict({"input_ids": [row["input_ids"] for row in rows]})


def separate_pad_from_eos(tokenizer: PreTrainedTokenizerBase, prompts: Dataset) -> None:
    """Pad with a special token that no prompt has. TRL takes every token with the padding's id for padding: where that
    is eos too (SmolLM2), no reply's end is scored or trained, and the ends of turns are masked out of the prompt."""
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return
    used = {token for row in prompts["input_ids"] for token in row}
    used |= {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(max(special - used))  # SmolLM2: <empty_output>


def load_policy(job: Job, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    model.config.use_cache = False  # else every training pass fills a key-value cache that nobody reads
    # A fresh one: TRL overrides temperature, top-k and top-p alone; what else the folder says of sampling would stay.
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad, use_cache=True)
    return model


def load_scorer(job: Job) -> PreTrainedModel:
    """The reward model with (logit - mean) / std folded into its head. The critic starts as a copy of it."""
    model = AutoModelForSequenceClassification.from_pretrained(job["reward_model"], num_labels=1, dtype=torch.float32)
    model.config.use_cache = False
    head = torch.nn.Linear(model.score.in_features, 1)
    bias = 0.0 if model.score.bias is None else model.score.bias.item()
    with torch.no_grad():
        head.weight.copy_(model.score.weight / job["reward_std"])
        head.bias.fill_((bias - job["reward_mean"]) / job["reward_std"])
    model.score = head
    return model


def lora_config(job: Job, task: str) -> LoraConfig:
    lora = job["lora"]
    return LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=lora["target_modules"], task_type=task)


def load_critic(job: Job) -> PreTrainedModel:
    model = load_scorer(job)
    if job.get("value_tuning", "full") == "lora":  # injected: TRL looks for the backbone and the head by their names
        inject_adapter_in_model(lora_config(job, "SEQ_CLS"), model)
        model.score.requires_grad_(True)
    return model


def ppo_config(job: Job, scratch: str) -> PPOConfig:
    """Off: bf16 and gradient checkpointing (TRL's defaults), samples to look at, checkpoints, evaluation, trackers."""
    batch, rows = job["batch_size"], job["per_device_batch_size"]
    if batch % (job["num_minibatches"] * rows):
        raise ValueError(f"batch_size {batch} isn't a multiple of num_minibatches × per_device_batch_size")
    if len(job["prompts"]) < batch:
        raise ValueError(f"{len(job['prompts'])} prompts for batches of {batch}: TRL would wait for one for ever")
    return PPOConfig(
        output_dir=scratch,
        seed=job["seed"],
        total_episodes=job["num_steps"] * batch,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=batch // rows,  # TRL's batch is the product of the two
        num_mini_batches=job["num_minibatches"],
        num_ppo_epochs=job["num_epochs"],
        local_rollout_forward_batch_size=job.get("rollout_batch_size", 64),
        response_length=job["max_reply_tokens"],
        stop_token="eos",
        lr_scheduler_type="constant",
        kl_coef=job["kl_coefficient"],
        vf_coef=job["vf_coefficient"],
        whiten_rewards=job["whiten_rewards"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **{name: job[name] for name in SAME_NAME},
    )


def step_every_minibatch(trainer: PPOTrainer, job: Job) -> None:
    """Have the optimizer step after every minibatch. As TRL sets Accelerate up, it steps once an epoch however many
    minibatches there are, but after every backward pass, on gradients that are too small, while the current batch is
    the dataset's last; and TRL's statistics are averages over places that stay empty."""
    passes = job["batch_size"] // job["num_minibatches"] // job["per_device_batch_size"]
    trainer.accelerator.gradient_state.plugin_kwargs.update(num_steps=passes, sync_with_dataloader=False)
    trainer.args.gradient_accumulation_steps = passes


def memory() -> tuple[int, int]:
    """Bytes resident now, and at most so far."""
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(job: Job, scratch: str) -> dict[str, Any]:
    started = time.perf_counter()
    torch.set_num_threads(job["num_threads"])
    set_seed(job["seed"])  # numpy's too, by which TRL shuffles minibatches without seeding it
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    prompts = tokenize(job, tokenizer)
    separate_pad_from_eos(tokenizer, prompts)
    stopwatch = Stopwatch()
    trainer = PPOTrainer(
        args=ppo_config(job, scratch),
        processing_class=tokenizer,
        model=load_policy(job, tokenizer),
        ref_model=None,  # with LoRA TRL switches the adapter off, else it makes a copy
        reward_model=load_scorer(job),
        value_model=load_critic(job),
        train_dataset=prompts,
        callbacks=[stopwatch],
        peft_config=lora_config(job, "CAUSAL_LM") if job["tuning"] == "lora" else None,
    )
    step_every_minibatch(trainer, job)
    loaded, loading = memory()
    trainer.train()
    if "save_policy" in job:
        trainer.accelerator.unwrap_model(trainer.model).policy.save_pretrained(job["save_policy"])
    seconds = [end - start for start, end in pairwise(stopwatch.marks)]
    timed = seconds[1:]  # the first step warms up
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "seconds_total": time.perf_counter() - started,
        "seconds_per_step": seconds,
        "samples_per_second": len(timed) * job["batch_size"] / sum(timed) if timed else None,
        "peak_memory_bytes": memory()[1],
        "peak_memory_after_loading_bytes": loaded,  # weights are mapped by now, most not read yet
        "peak_memory_while_loading_bytes": loading,
        "optimizer_steps": max(int(state["step"]) for state in trainer.optimizer.state.values()),
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "history": trainer.state.log_history,
    }


if __name__ == "__main__":
    job_file, result_file = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        result = run(json.loads(job_file.read_text(encoding="utf-8")), folder)
    result_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
