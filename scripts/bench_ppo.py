"""Benchmark of our PPO and TRL's last one (1.12.0): samples per second, peak memory, reward and KL.

    python3.11 -m venv VENV && VENV/bin/pip install -r scripts/bench_ppo_requirements.txt
    python scripts/bench_ppo.py --trl-python VENV/bin/python [--output docs/bench_ppo.md]

Both use the SFT model and reward model of a finished ``align=ppo`` run, and the same prompts, batch, minibatches, PPO
epochs and steps. Each variant runs in a separate process. The same code scores the final policies on held-out prompts.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from pipeline.chain.compose import compose_config
from pipeline.core.stage import Context
from pipeline.data.loading import load_prompts
from pipeline.engines.base import Request
from pipeline.engines.hf import HFEngine
from pipeline.engines.models import load_model, load_tokenizer, resolve_precision
from pipeline.engines.reward_model import load_reward_model, reward_scaling
from pipeline.methods.policy_gradient.actors import load_actors
from pipeline.methods.policy_gradient.loop import Loop
from pipeline.methods.policy_gradient.ppo import PPO
from pipeline.methods.policy_gradient.rollouts import Rollout, collate, logprobs_and_entropy
from pipeline.methods.rewards import make_rewards
from pipeline.records import Prompt

Job = dict[str, Any]
VARIANTS = {  # name → ("trl" or "ours", changes to the job)
    "TRL, LoRA policy, full critic (as TRL sets it up)": ("trl", {"tuning": "lora", "value_tuning": "full"}),
    "TRL, LoRA policy, LoRA critic": ("trl", {"tuning": "lora", "value_tuning": "lora"}),
    "ours, LoRA, one base model": ("ours", {"tuning": "lora"}),
    "TRL, LoRA, TRL's default: 4 PPO epochs of 1 minibatch": (
        "trl",
        {"tuning": "lora", "value_tuning": "full", "num_epochs": 4, "num_minibatches": 1},
    ),
    "ours, LoRA, our default: 1 PPO epoch of 4 minibatches": (
        "ours",
        {"tuning": "lora", "num_epochs": 1, "num_minibatches": 4},
    ),
    "TRL, full": ("trl", {"tuning": "full", "value_tuning": "full"}),
    "ours, full": ("ours", {"tuning": "full"}),
}


class Timed(Loop):
    """The loop with a timer, and without scoring on held-out prompts (TRL does not have it either)."""

    seconds: list[float]

    def _step(self) -> None:
        started = time.perf_counter()
        super()._step()
        self.seconds = [*getattr(self, "seconds", []), time.perf_counter() - started]

    def _examine(self, step: int) -> dict[str, float]:
        self._control.held_out[str(step)], self._control.best_step = [0.0], step
        if step:
            self._checkpoints.save(f"best-{step}", {"weights": self._actors.state()})
        return {}


def run_ours(job: Job, out: Path) -> dict[str, Any]:
    """Run the job with our PPO. Only one checkpoint is written, at the end."""
    torch.set_num_threads(job["num_threads"])
    config = compose_config(
        [
            "align=ppo",
            "model.lora.upper_share=1",  # as in TRL
            f"model.tuning={job['tuning']}",
            f"align.num_epochs={job['num_steps'] * job['batch_size'] / len(job['prompts'])}",
            f"align.global_batch_size={job['batch_size']}",
            f"align.num_minibatches={job['num_minibatches']}",
            f"align.num_ppo_epochs={job['num_epochs']}",
            f"align.learning_rate={job['learning_rate']}",
            f"align.value_learning_rate={job['learning_rate']}",
            f"align.beta={job['kl_coefficient']}",
            f"align.rollout.max_reply_tokens={job['max_reply_tokens']}",
            f"align.rollout.missing_eos_penalty={job['missing_eos_penalty']}",
            "align.clip_score=null",
            "align.max_kl=null",
            "align.save_every_steps=1000",
            "align.rollout.held_out_every_steps=1000",
            f"launch.per_device_batch_size={job['per_device_batch_size']}",
        ]
    )
    reward = Path(job["reward_model"]).parent
    context = Context(
        stage="align",
        reads={"seed": job["seed"], "model": config.model, "policy_engine": config.policy_engine},
        folders={"reward": reward, "sft": Path(job["model"]).parent},
        out=out,
        launch=config.launch,
    )
    actors = load_actors(job["model"], config.model, reward, True, "reward", job["seed"])
    prompts = [prompt_of(number, messages) for number, messages in enumerate(job["prompts"])]
    rewards = make_rewards(config.align, prompts, context, actors.reward_model)
    trainer = Timed(PPO(), actors, rewards, prompts, prompts[:2], config.align, context)
    _, history = trainer.train()
    seconds = trainer.seconds
    result = {
        "seconds_per_step": seconds,
        "samples_per_second": (len(seconds) - 1) * job["batch_size"] / sum(seconds[1:]),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "history": history,
    }
    actors.save(Path(job["save_policy"]).parent)
    return result


def prompt_of(number: int, messages: list[Any]) -> Prompt:
    return Prompt(id=f"{number:03d}", pool="ordinary", kind="bench", split="train", messages=messages)


def examined(policy: Path, job: Job, prompts: list[Prompt]) -> dict[str, float]:
    """Mean reward and KL (nats per reply) on held-out prompts, with standard errors; the same code for all variants."""
    base, tokenizer = load_model(job["model"], "fp32").eval(), load_tokenizer(job["model"])
    if (policy / "adapter_config.json").exists():
        import peft

        model = peft.PeftModel.from_pretrained(load_model(job["model"], "fp32"), str(policy)).merge_and_unload()
    else:
        model = load_model(str(policy), "fp32")
    engine = HFEngine(model.eval(), tokenizer, name="policy")
    requests = [
        Request(
            id=p.id, messages=p.messages, seed=i, max_new_tokens=job["max_reply_tokens"], temperature=job["temperature"]
        )
        for i, p in enumerate(prompts)
    ]
    found: dict[str, Rollout] = {}
    for batch in engine.batches(requests):
        for request, sample in zip(batch, engine.sample(batch), strict=True):
            assert sample is not None
            kept = sample.reply[:-1] if sample.ended else sample.reply
            found[request.id] = Rollout(
                index=0,
                prompt=prompts[0],
                prompt_tokens=sample.prompt,
                reply_tokens=sample.reply,
                ended=sample.ended,
                text=engine.text_of(kept),
            )
    rollouts = [found[prompt.id] for prompt in prompts]
    scores = load_reward_model(job["reward_model"]).score([p.messages for p in prompts], [r.text for r in rollouts])
    kls = []
    for rollout in rollouts:
        row = collate([rollout], torch.device("cpu"))
        with torch.no_grad():
            new, old = (logprobs_and_entropy(m, row, job["temperature"])[0] for m in (model, base))
        kls.append(float((new - old).sum()))
    size = len(prompts) ** 0.5
    return {
        "reward": fmean(scores),
        "reward_error": stdev(scores) / size,
        "kl": fmean(kls),
        "kl_error": stdev(kls) / size,
        "ended": fmean(rollout.ended for rollout in rollouts),
        "reply_tokens": fmean(len(rollout.reply_tokens) for rollout in rollouts),
    }


def make_job(arguments: argparse.Namespace) -> tuple[Job, list[Prompt]]:
    config = compose_config(["align=ppo"])
    prompts = load_prompts(config.data).prompts
    cache = arguments.outputs / "cache"
    reward = max(cache.glob("reward-*/model"), key=lambda folder: folder.stat().st_mtime)
    sft = cache / json.loads((reward.parent / "manifest.json").read_text())["inputs"]["sft"] / "model"
    mean, std = reward_scaling(reward)
    pools = ("red_team", "ordinary", "look_alike")
    of_pool = {pool: [p for p in prompts if p.pool == pool and p.split == "train"] for pool in pools}
    number = arguments.batch * arguments.steps
    mixed = [prompt for row in zip(*of_pool.values(), strict=False) for prompt in row][:number]
    held_out = [prompt for prompt in prompts if prompt.split == "validation"][: arguments.held_out]
    job = {
        "model": str(sft.resolve()),
        "reward_model": str(reward.resolve()),
        "prompts": [prompt.messages for prompt in mixed],
        "batch_size": arguments.batch,
        "num_minibatches": arguments.minibatches,
        "per_device_batch_size": arguments.rows,
        "num_epochs": arguments.passes,
        "num_steps": arguments.steps,
        "max_reply_tokens": arguments.reply_tokens,
        "temperature": 1.0,
        "learning_rate": arguments.learning_rate,
        "kl_coefficient": config.align.beta,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "vf_coefficient": 1.0,
        "gamma": 1.0,
        "lam": 0.95,
        "whiten_rewards": False,
        "missing_eos_penalty": 1.0,
        "lora": {"rank": config.model.lora.rank, "alpha": config.model.lora.alpha, "target_modules": "all-linear"},
        "seed": 0,
        "num_threads": torch.get_num_threads(),
        "reward_mean": mean,
        "reward_std": std,
    }
    return job, held_out


def table(results: dict[str, dict[str, Any]], job: Job, arguments: argparse.Namespace) -> str:
    speed = {name: result["samples_per_second"] for name, result in results.items()}
    memory = {name: result["peak_memory_bytes"] / 2**30 for name, result in results.items()}
    baseline = next(iter(results))
    precision = str(resolve_precision("auto")).removeprefix("torch.")
    rows = [
        "# PPO benchmark",
        "",
        f"Command: `python scripts/bench_ppo.py`, on {arguments.device}.",
        "",
        f"Settings: SmolLM2-135M after SFT, TRL in fp32, ours in {precision}; {job['num_steps']} steps of "
        f"{job['batch_size']} rollouts of at most "
        f"{job['max_reply_tokens']} tokens; {job['num_epochs']} PPO epochs of {job['num_minibatches']} minibatches "
        f"unless the variant says otherwise; {job['per_device_batch_size']} rows per backward pass; learning rate "
        f"{job['learning_rate']:g}; KL coefficient {job['kl_coefficient']:g}. The first step is not timed.",
        "",
        f"Reward and KL are measured on {arguments.held_out} held-out prompts, with the standard error in brackets. "
        f"The SFT model has a reward of {results[baseline]['start']['reward']:.2f} "
        f"[{results[baseline]['start']['reward_error']:.2f}].",
        "",
        "TRL's minibatches are corrected in `scripts/bench_ppo_trl.py`: TRL 1.12.0 as released makes one optimiser "
        "step per PPO epoch, whatever the number of minibatches.",
        "",
        "| variant | samples per second | relative to the first row | peak memory, GiB | relative to the first row "
        "| reward | KL, nats per reply | replies that ended before the limit "
        "| losses of policy and critic (last step) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        end, last = result["end"], result["history"][-1]
        rows.append(
            f"| {name} | {speed[name]:.2f} | {speed[name] / speed[baseline]:.1f} | {memory[name]:.2f} "
            f"| {memory[name] / memory[baseline]:.2f} | {end['reward']:.2f} [{end['reward_error']:.2f}] "
            f"| {end['kl']:.2f} [{end['kl_error']:.2f}] | {100 * end['ended']:.0f} % "
            f"| {last['loss/policy_avg']:.3f}, {last['loss/value_avg']:.3f} |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--trl-python", type=Path, help="python of an environment with trl 1.12.0")
    arguments.add_argument("--outputs", type=Path, default=Path("outputs"), help="of a finished align=ppo run")
    for name, value in (("batch", 16), ("minibatches", 4), ("rows", 4), ("passes", 2), ("steps", 4)):
        arguments.add_argument(f"--{name}", type=int, default=value)
    arguments.add_argument("--reply-tokens", type=int, default=48)
    arguments.add_argument("--held-out", type=int, default=48)
    arguments.add_argument("--learning-rate", type=float, default=2e-4)
    arguments.add_argument("--only", nargs="*", default=list(VARIANTS), help="variants to run")
    arguments.add_argument("--device", default=f"CPU, {torch.get_num_threads()} threads")
    arguments.add_argument("--output", type=Path, default=Path("docs/bench_ppo.md"))
    arguments.add_argument("--job", type=Path, nargs=2, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.job:  # in a separate process, to measure its peak memory
        source, target = chosen.job
        with tempfile.TemporaryDirectory() as folder:
            result = run_ours(json.loads(source.read_text()), Path(folder) / "stage")
        target.write_text(json.dumps(result))
        return
    job, held_out = make_job(chosen)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        start = examined(Path(job["model"]), job, held_out)
        for number, name in enumerate(chosen.only):
            whose, changes = VARIANTS[name]
            policy = Path(folder) / str(number) / "model"
            source, target = Path(folder) / "job.json", Path(folder) / "result.json"
            source.write_text(json.dumps({**job, **changes, "save_policy": str(policy)}))
            python = chosen.trl_python if whose == "trl" else Path(sys.executable)
            script = [__file__, "--job"] if whose == "ours" else [str(Path(__file__).with_name("bench_ppo_trl.py"))]
            print(f"{name} …", flush=True)
            subprocess.run([str(python), *script, str(source), str(target)], check=True)
            results[name] = {**json.loads(target.read_text()), "start": start, "end": examined(policy, job, held_out)}
            print({k: results[name][k] for k in ("seconds_per_step", "samples_per_second", "peak_memory_bytes", "end")})
            chosen.output.with_suffix(".json").write_text(json.dumps(results, indent=1))
            chosen.output.write_text(table(results, job, chosen), encoding="utf-8")
    print(chosen.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
