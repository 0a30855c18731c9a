"""Two ranks that divide the weights by FSDP2 do what one process does. ``fsdp_rank`` makes it possible on CPUs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from pipeline.chain import launch
from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config, to_config, to_plain
from pipeline.chain.launch import ACCELERATE, JOB, RESULT, Job, launch_command
from pipeline.chain.runner import run
from pipeline.core import accelerate_file
from pipeline.core.cache import WORK
from pipeline.data.loading import load_prompts
from pipeline.training.history import read_history
from tests.conftest import _teach_to_babble

Tiny = Callable[..., Config]
BATCHES = [f"{stage}.global_batch_size=4" for stage in ("sft", "reward", "align")]
BATCHES += ["reward.num_epochs=3", "reward.learning_rate=1e-3"]
RUNS = {
    "lora, ppo": ["align=ppo"],
    "lora, dpo": ["align=dpo"],
    "full, ppo": ["align=ppo", "model.tuning=full", "align.num_minibatches=4"],
    "full, ipo": ["align=ipo", "model.tuning=full", "align.num_epochs=2"],
    "full, kto": ["align=kto", "model.tuning=full", "align.kl_batch_size=4", "align.num_epochs=2"],
}


@pytest.fixture(scope="session")
def tied_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one weight for both embeddings, as most small models have."""
    folder = tmp_path_factory.mktemp("tied-model")
    tokenizer, config = AutoTokenizer.from_pretrained(tiny_model), AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    texts = [prompt.request for prompt in load_prompts(compose_config([]).data).prompts][:660]
    for _ in range(2):
        _teach_to_babble(model, tokenizer, texts)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def alone(
    tiny: Tiny, tiny_model: Path, tied_model: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[Job, Path]]:
    """Stage and run → its job in one process, and the folder with its result."""
    jobs: dict[str, Job] = {}
    made: dict[str, tuple[Job, Path]] = {}
    execute = launch.execute

    def noted(job: Job) -> Any:
        jobs[job.stage] = job
        return execute(job)

    monkeypatch.setattr(launch, "execute", noted)
    for name, overrides in RUNS.items():
        models = [f"model.path={tied_model}", f"engine.path={tiny_model}"] if "full" in name else []
        stages = run(tiny(*overrides, *models, *BATCHES, "until=align")).stages
        for stage in ("sft", "reward", "align"):
            if stage in stages and not stages[stage].cached:
                tuning, method = name.split(", ")
                made[f"{tuning} {method if stage == 'align' else stage}"] = (jobs[stage], stages[stage].folder)
    return made


def divided(job: Job, out: Path) -> Path:
    """The same job for two ranks that divide the weights; returns its file."""
    config = to_plain(job.config)
    config["launch"] |= {"num_processes": 2, "sharding": "fsdp2"}
    job = replace(job, out=out, config=to_config(config))
    (out / WORK).mkdir(parents=True)
    accelerate_file.write(job.config.launch, out / WORK / ACCELERATE)
    (out / WORK / JOB).write_text(json.dumps({**launch._to_json(job), "parent": os.getpid()}))
    return out / WORK / JOB


def start(first: Path, *jobs: str) -> int:
    data = json.loads(first.read_text())
    command = launch_command(to_config(data["config"]).launch, first.parent)
    return subprocess.call(
        [*command, "-m", "tests.fsdp_rank", *jobs], env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900
    )


def learned(folder: Path) -> dict[str, list[float]]:
    """Losses and norms of gradients, step by step."""
    rows = read_history(folder)
    return {key: [row[key] for row in rows] for key in rows[0] if key.endswith(("loss", "grad_norm"))}


def test_divided_weights_are_trained_as_whole_ones(alone: dict[str, tuple[Job, Path]], tmp_path: Path):
    files = {name: divided(job, tmp_path / name.replace(" ", "-")) for name, (job, _) in alone.items()}
    assert len(files) == len(RUNS) + 4, "SFT and the reward model are the same in several runs"
    torn = ("lora ppo", "full ppo", "full sft")
    jobs = [part for name, file in files.items() for part in ([f"{file}!stop"] if name in torn else []) + [str(file)]]
    killed = jobs.index(str(files["lora sft"]))
    jobs[killed] += "!kill"
    jobs.append(jobs.pop(killed))
    assert start(files["lora sft"], *jobs) != 0, "one rank was killed"
    assert not (files["lora sft"].parent / RESULT).exists()
    assert start(files["lora sft"], str(files["lora sft"])) == 0
    for name, (_, folder) in alone.items():
        resumed = json.loads((files[name].parent / RESULT).read_text())["metrics"]["resumed_from_step"]
        assert (resumed > 0) == (name in (*torn, "lora sft")), name
        out = files[name].parents[1]
        before, after = (learned(place) for place in (folder, out))
        assert before.keys() == after.keys() and "loss" in before, name
        for key, values in before.items():
            assert values == pytest.approx(after[key], rel=1e-4, abs=1e-5), f"{name}, {key}"
            assert len(set(values)) > 1, f"{name}: the {key} never moved, so equality shows nothing"
        whole, merged = (load_file(place / "model" / "model.safetensors") for place in (folder, out))
        assert whole.keys() == merged.keys(), name
        for key, weight in whole.items():
            assert torch.allclose(weight, merged[key], atol=1e-5), f"{name}, {key}"
