"""Rollouts by engines that get only the adapter: vLLM in this process (a fake) and a server of the run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.core.errors import ConfigError, StageError
from pipeline.engines.chat_server import RefusedError
from pipeline.engines.served_rollouts import read_drawn, serving_options
from pipeline.methods.policy_gradient.live import check_live
from pipeline.training.history import read_history
from tests.fake_vllm import LLM, installed
from tests.ppo_bench import QUICK, TOYS, Bench, PowerCutError, epochs, killed_at_call, weights

MODEL_SERVER = f"{sys.executable} {Path(__file__).parent / 'model_server.py'} --port {{port}} --model {{model}}"
SERVED = ["policy_engine=serve", f"policy_engine.serve='{MODEL_SERVER} {{lora}}'"]
ENGINES = {"vllm": ["policy_engine=vllm"], "server": SERVED}
FAST = [*QUICK, epochs("rloo", 0.5), "align.rollout.temperature=0.7"]
MEAN, MAX, KL = "sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max", "sampling/kl"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LLM]]:
    with installed(monkeypatch) as parts:
        yield parts


def bench(model: Path, out: Path, *overrides: str) -> Bench:
    return Bench(model, out, *FAST, *overrides, method="rloo")


@pytest.mark.parametrize("kind", ENGINES)
def test_each_step_samples_from_the_policy_of_that_step(tiny_model: Path, tmp_path: Path, kind: str):
    tested = bench(tiny_model, tmp_path, *ENGINES[kind])
    _, history = tested.train()
    assert len(history) == 4
    assert min(row["policy/approxkl_avg"] for row in history[:2]) > 1e-4, "the policy never moved"
    assert all(row[MEAN] < 1e-5 and row[MAX] < 1e-4 and abs(row[KL]) < 1e-5 for row in history)
    [newest] = (tested.context.work / "rollouts").glob("*")
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {path.name for path in newest.iterdir()}


def test_the_ratio_has_the_trainers_log_probabilities(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    _, right = bench(tiny_model, tmp_path / "right", "policy_engine=vllm").train()
    assert "differ from the trainer's" not in capsys.readouterr().err
    LLM.opened.clear()
    monkeypatch.setattr(LLM, "told_too_much", 0.5)
    _, wrong = bench(tiny_model, tmp_path / "wrong", "policy_engine=vllm").train()
    assert [row[MEAN] for row in wrong] == pytest.approx([0.5] * 4, abs=1e-5)
    assert [row[KL] for row in wrong] == pytest.approx([0.5] * 4, abs=1e-5)
    for one, other in zip(right, wrong, strict=True):
        assert {k: v for k, v in one.items() if k not in (MEAN, MAX, KL)} == {
            k: v for k, v in other.items() if k not in (MEAN, MAX, KL)
        }
    warned = capsys.readouterr().err
    assert warned.count("policy_engine.kind='vllm' differ from the trainer's by 0.5 nats") == 1


def test_vllm_gives_the_rollouts_that_are_killed_and_resumed(tiny_model: Path, tmp_path: Path):
    _, undisturbed = bench(tiny_model, tmp_path / "undisturbed", "policy_engine=vllm").train()
    tested = bench(tiny_model, tmp_path / "disturbed", "policy_engine=vllm")
    with pytest.raises(PowerCutError):
        tested.loop(killed_at_call(tested.rewards(), 4)).train()
    metrics, resumed = tested.train()
    assert metrics["resumed_from_step"] > 0 and resumed == undisturbed
    one, other = weights(tmp_path / "undisturbed"), weights(tmp_path / "disturbed")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_vllm_is_told_what_adapters_come_and_sleeps_on_a_gpu(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.engines.vllm._has_gpu", lambda: True)
    bench(tiny_model, tmp_path, "policy_engine=vllm", "model.lora.rank=20", "model.precision=fp32").rollouts()
    [llm] = LLM.opened
    assert llm.arguments["enable_lora"] and llm.arguments["max_lora_rank"] == 32
    assert llm.arguments["gpu_memory_utilization"] == 0.35
    assert llm.arguments["enable_sleep_mode"] and llm.states[-1] == "asleep"


def test_a_server_is_started_with_the_same_options():
    words = "--enable-lora --max-lora-rank 64 --logprobs-mode processed_logprobs"
    assert serving_options(lora_rank=33)["lora"] == words.split()


def test_a_server_that_takes_no_adapter_is_one_sentence(tiny_model: Path, tmp_path: Path):
    without = ["policy_engine=serve", f"policy_engine.serve='{MODEL_SERVER}'"]
    with pytest.raises(StageError, match=r"^The server of the policy does not take the adapter .*policy-\w+ \(.*Not F"):
        bench(tiny_model, tmp_path, *without).train()


@pytest.mark.parametrize("logprobs", [None, {"tokens": ["token_id:5"], "token_logprobs": []}, {"tokens": []}])
def test_an_answer_without_log_probabilities_is_no_rollout(logprobs: Any):
    choice = {"text": "Hm.", "finish_reason": "stop", "logprobs": logprobs}
    with pytest.raises(RefusedError, match="no token ids with log-probabilities"):
        read_drawn(json.dumps({"choices": [choice]}))


REFUSED = {
    "model.tuning=full": r"model\.tuning is 'full', but policy_engine\.kind='vllm' gets only an adapter",
    "model.tuning=qlora": r"model\.tuning is 'qlora', which trains on weights in 4 bits",
    "model.lora.target_modules='.*(embed_tokens|q_proj)'": r"puts an adapter on the embeddings or the output layer",
    "model.lora.target_modules='.*(lm_head|q_proj)'": r"puts an adapter on the embeddings or the output layer",
    "model.lora.rank=513": r"model\.lora\.rank is 513, but vLLM \(policy_engine\) takes adapters up to rank 512",
    "policy_engine.tensor_parallel=2 launch.num_processes=2": r"policy_engine\.tensor_parallel is 2 and launch\.num_pr",
    "policy_engine=serve policy_engine.serve='vllm {model} {port}'": r"policy_engine\.serve is .* has no \{lora\} in",
    "policy_engine=serve policy_engine.scores=sglang": r"policy_engine\.scores is 'sglang', but of the servers only",
    "engine=vllm align.rewards.constitution=1": r"is judged by 'vllm', too; .* judge by engine=serve",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_can_not_work_is_refused_before_the_run(tiny_model: Path, overrides: str):
    asked = [word.replace("~", " ") for word in overrides.replace("vllm {model} {", "vllm~{model}~{").split()]
    config = compose_config(["align=rloo", "policy_engine=vllm", f"model.path={tiny_model}", *asked])
    with pytest.raises(ConfigError, match=REFUSED[overrides]):
        check_live(config)
    check_live(compose_config(["align=rloo", "policy_engine=hf", f"model.path={tiny_model}", "model.tuning=full"]))


def test_two_ranks_that_ask_one_server_do_what_one_does(tiny: Callable[..., Config], tmp_path: Path):
    found = []
    toy = [f"align.functions.toy={TOYS}:short", "align.rewards.toy=1", "align.rewards.reward_model=0"]
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        options = [f"output_dir={out}", f"launch.num_processes={ranks}", "until=align", "align.learning_rate=1e-2"]
        done = run(tiny("align=rloo", *SERVED, *toy, *options, "align.global_batch_size=4"))
        found.append(read_history(done.stages["align"].folder))
        if ranks == 1:  # the second run finds all but align finished
            shutil.copytree(out / "cache", tmp_path / "2" / "cache", ignore=shutil.ignore_patterns("align-*"))
    assert found[0][0]["policy/approxkl_avg"] > 1e-4
    for one, two in zip(*found, strict=True):
        assert two == pytest.approx(one, abs=1e-4)
        assert two[MEAN] < 1e-4
