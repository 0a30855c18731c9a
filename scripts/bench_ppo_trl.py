"""The baseline of the PPO benchmark: TRL's last PPO (1.12.0, experimental) on the same job as our PPO.

    python3.11 -m venv VENV && VENV/bin/pip install -r scripts/bench_ppo_requirements.txt
    VENV/bin/python scripts/bench_ppo_trl.py JOB.json RESULT.json

TRL removed PPO after 1.12, so this script needs a separate environment and does not import ``pipeline``. It runs in
fp32 on the CPU. All that costs time and is not PPO is off; TRL's loop is unchanged except for its minibatches.

The job: model and reward_model (folders with one tokenizer), prompts (dialogues), batch_size (rollouts per step),
num_minibatches (optimizer steps per epoch), per_device_batch_size (rows per backward pass), num_epochs, num_steps,
max_reply_tokens, temperature, learning_rate, kl_coefficient, cliprange, cliprange_value, vf_coefficient, gamma, lam,
whiten_rewards, missing_eos_penalty (or null), tuning ("lora" or "full"), lora (rank, alpha, target_modules), seed,
num_threads, reward_mean, reward_std. Optional: value_tuning ("full", as in TRL, or "lora" for a critic with an
adapter), rollout_batch_size (rows generated and scored at once; TRL's default is 64), save_policy (a folder).
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
    """Pad with a special token that is not in any prompt. TRL masks every token with the pad id. If pad is eos (as in
    SmolLM2), the end of a reply is neither scored nor trained, and the ends of turns are masked in the prompt."""
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return
    used = {token for row in prompts["input_ids"] for token in row}
    used |= {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(max(special - used))  # SmolLM2: <empty_output>


def load_policy(job: Job, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    model.config.use_cache = False  # otherwise every training pass fills an unused key-value cache
    # TRL overrides only temperature, top-k and top-p; a new configuration drops the folder's other sampling settings.
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad, use_cache=True)
    return model


def load_scorer(job: Job) -> PreTrainedModel:
    """Load the reward model; its head computes (logit - mean) / std. The critic starts as a copy of it."""
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
    if job.get("value_tuning", "full") == "lora":  # injected, because TRL finds the backbone and the head by name
        inject_adapter_in_model(lora_config(job, "SEQ_CLS"), model)
        model.score.requires_grad_(True)
    return model


def ppo_config(job: Job, scratch: str) -> PPOConfig:
    """TRL's configuration without bf16, gradient checkpointing, sample tables, checkpoints, evaluation and trackers.

    Raises:
        ValueError: the batch is not a multiple of minibatches × rows, or there are too few prompts.
    """
    batch, rows = job["batch_size"], job["per_device_batch_size"]
    if batch % (job["num_minibatches"] * rows):
        raise ValueError(f"batch_size is {batch}; use a multiple of num_minibatches × per_device_batch_size")
    if len(job["prompts"]) < batch:
        raise ValueError(f"there are {len(job['prompts'])} prompts; give at least batch_size={batch}, or TRL hangs")
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
    """Make the optimizer step after every minibatch. With TRL's setup of Accelerate it steps once per epoch, whatever
    the number of minibatches; in the dataset's last batch it steps after every backward pass, with gradients that are
    too small. TRL's statistics then also average over empty entries."""
    passes = job["batch_size"] // job["num_minibatches"] // job["per_device_batch_size"]
    trainer.accelerator.gradient_state.plugin_kwargs.update(num_steps=passes, sync_with_dataloader=False)
    trainer.args.gradient_accumulation_steps = passes


def memory() -> tuple[int, int]:
    """Resident memory in bytes: now, and the peak so far."""
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(job: Job, scratch: str) -> dict[str, Any]:
    started = time.perf_counter()
    torch.set_num_threads(job["num_threads"])
    set_seed(job["seed"])  # also numpy's seed, because TRL shuffles minibatches with numpy
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    prompts = tokenize(job, tokenizer)
    separate_pad_from_eos(tokenizer, prompts)
    stopwatch = Stopwatch()
    trainer = PPOTrainer(
        args=ppo_config(job, scratch),
        processing_class=tokenizer,
        model=load_policy(job, tokenizer),
        ref_model=None,  # with LoRA, TRL switches the adapter off; otherwise it makes a copy
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
        "peak_memory_after_loading_bytes": loaded,  # weights are memory-mapped, and most are not read yet
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
