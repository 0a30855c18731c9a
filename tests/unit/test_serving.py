"""Servers that a run starts: they are waited for, and none is left however the run ends."""

from __future__ import annotations

import gc
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import pipeline
from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError, StageError
from pipeline.engines.base import Engine, Request, StreamingEngine, Weights, open_engine
from pipeline.engines.serving import SHOWN_CHARACTERS, trouble_with_command
from pipeline.records import Exchange, Message, read_records
from tests.fakes import is_alive

SERVER = Path(__file__).parents[1] / "tiny_server.py"
COMMAND = f"{sys.executable} {SERVER} --port {{port}} --model {{model}} --name {{name}}"


def config(command: str = COMMAND, *overrides: str) -> Any:
    options = ["engine=serve", f"engine.serve={command}", "engine.max_retries=0", "preferences=ab"]
    return compose_config([*options, *overrides]).engine


def engine(command: str = COMMAND, *overrides: str) -> StreamingEngine:
    weights = Weights(path="/models/sft-folder", name="sft")
    opened: Engine = open_engine(config(command, *overrides), weights, LaunchConfig())
    assert isinstance(opened, StreamingEngine)
    return opened


def ask(number: int) -> Request:
    messages = [Message(role="user", content=f"q{number}")]
    return Request(id=str(number), messages=messages, seed=0, max_new_tokens=5, temperature=0.0)


def texts(tested: StreamingEngine, number: int) -> list[str]:
    return sorted(result.text for result in tested.answers([ask(i) for i in range(number)]))  # type: ignore[union-attr]


def all_ended(pids: Path, seconds: float = 15.0) -> bool:
    """Whether the server and its child end in time."""
    numbers = [int(word) for word in pids.read_text().split()]
    assert len(numbers) == 2
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(map(is_alive, numbers)):
            return True
        time.sleep(0.05)
    return False


def test_a_server_is_started_with_the_weights_asked_and_stopped_with_its_child(tmp_path: Path):
    pids = tmp_path / "pids"
    tested = engine(f"{COMMAND} --pids {pids} --loads 0.5")
    assert not pids.exists(), "it starts when it is first asked"
    assert texts(tested, 2) == ["sft of sft-folder heard: q0.", "sft of sft-folder heard: q1."]
    assert tested.name == "sft" and tested.asks_from_one_rank
    started = pids.read_text()
    texts(tested, 1)
    assert pids.read_text() == started, "it starts once"
    del tested
    gc.collect()
    assert all_ended(pids)


def test_a_server_that_ends_at_once_is_one_sentence_without_the_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    sentence = r"^The server for sft ended before it answered; .*: loading / no CUDA for \*\*\* \(.*sft.log\)"
    with pytest.raises(StageError, match=sentence):
        texts(engine(f"{COMMAND} --fails 'no CUDA for sk-secret'"), 1)


def test_last_lines_that_are_cut_show_no_part_of_the_key(monkeypatch: pytest.MonkeyPatch):
    key = "sk-" + "9" * 40
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(StageError) as caught:
        texts(engine(f"{COMMAND} --fails {key}{'x' * (SHOWN_CHARACTERS - 20)}"), 1)
    assert "xxx" in str(caught.value) and "999" not in str(caught.value)


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "MY_KEY", "VLLM_API_KEY"])
def test_a_key_in_the_environment_protects_the_server_and_opens_it(
    tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("OPENAI_API_KEY", "VLLM_API_KEY", "LLAMA_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    before = config(COMMAND).key()
    monkeypatch.setenv(variable, "sk-very-secret")
    own = "MY_KEY" if variable == "MY_KEY" else "OPENAI_API_KEY"
    tested: Any = engine(f"{COMMAND} --no-health", f"engine.api_key_variable={own}")
    assert texts(tested, 1) == ["sft of sft-folder heard: q0."]
    assert config(COMMAND).key() == before
    answer = httpx.post(f"{tested._serving.url}/chat/completions", json={"model": "sft"}, trust_env=False)
    assert answer.status_code == 401, "nobody else may use it"


def test_a_served_server_that_scores_no_replies_is_refused_when_it_is_first_asked(random_model: Path):
    """Not after all replies are written, when the first score is needed."""
    command = f"{sys.executable} -m tests.model_server --port {{port}} --model {{model}}"
    options = [f"engine.model={random_model}", "engine.prompts=tokens", "engine.scores=vllm"]
    assert len(texts(engine(command, *options), 1)) == 1
    with pytest.raises(
        StageError, match=r"^scores is 'vllm', but the server of .* returns no .* or set scores=none\.$"
    ):
        texts(engine(f"{command} --no-scores", *options), 1)


def test_a_tokenizer_that_is_not_the_served_models_is_refused_when_it_is_first_asked(random_model: Path):
    command = f"{sys.executable} -m tests.model_server --port {{port}} --model {{model}} --other-tokenizer"
    options = [f"engine.model={random_model}", "engine.prompts=tokens", f"engine.tokenizer={random_model}"]
    with pytest.raises(StageError, match=r"^prompts is 'tokens', but token ids mean something else to the server of "):
        texts(engine(command, *options), 1)


def test_a_server_that_is_never_ready_is_given_up_and_stopped(tmp_path: Path):
    pids = tmp_path / "pids"
    tested = engine(f"{COMMAND} --loads 600 --pids {pids}", "engine.serve_seconds=5")
    with pytest.raises(StageError, match=r"did not answer within 5 s; raise serve_seconds"):
        texts(tested, 1)
    del tested
    gc.collect()
    assert all_ended(pids)


def test_a_server_that_dies_stops_the_run_at_once_with_its_last_lines(tmp_path: Path):
    started, pids = time.monotonic(), tmp_path / "pids"
    tested = engine(f"{COMMAND} --dies-after 3 --pids {pids}", "engine.max_retries=8")
    with pytest.raises(StageError, match=r"The server of sft has ended; .*CUDA error: an illegal memory access"):
        texts(tested, 100)
    assert time.monotonic() - started < 60
    assert all_ended(pids), "its child in another session, too"


RUN = """
import signal, sys, time
from tests.unit.test_serving import engine, texts, COMMAND
tested = engine(COMMAND + " --pids " + sys.argv[1])
texts(tested, 1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_server_is_left_after_a_signal(tmp_path: Path, number: int):
    pids = tmp_path / "pids"
    root = Path(pipeline.__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", RUN, str(pids)], cwd=root, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    process.wait(20)
    assert all_ended(pids)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("policy_engine=serve policy_engine.serve='x {model}'", "serve is 'x {model}', which has no {port}"),
        ("policy_engine=serve policy_engine.serve='vllm --port {port}'", "which has no {model} in it"),
        ("policy_engine=serve policy_engine.model=x", "policy_engine.kind is 'server' with the model 'x'"),
        ("policy_engine=serve policy_engine.base_url=http://a", "are both set"),
        ("policy_engine=serve policy_engine.prompts=chat policy_engine.scores=none", "needs policy_engine.prompts="),
        ("policy_engine.kind=server", "policy_engine.model must be set"),
        ("engine=serve preferences=pointwise align=ppo align.rewards.constitution=1 align.judge.kind=pointwise "
         "launch.num_processes=2", "each process would start the server"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(overrides: str, sentence: str):
    with pytest.raises(ConfigError) as caught:
        compose_config(shlex.split(overrides))
    assert sentence in str(caught.value)


def test_a_program_that_is_not_there_is_named_before_the_run():
    with pytest.raises(ConfigError, match=r"^engine\.serve is 'nowhere .* no program here"):
        config("nowhere {model} {port}").check("engine")


def test_the_command_decides_the_result_and_the_time_to_wait_does_not():
    assert config().key() == config(COMMAND, "engine.serve_seconds=5").key()
    assert config().key() != config(f"{COMMAND} --dtype float16").key()


def test_weights_served_for_another_role_count_by_content(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    served = compose_config(["preferences=ab", "engine=serve", f"engine.model={tmp_path}"]).engine
    before = served.key()
    assert str(tmp_path) not in str(before)
    (tmp_path / "config.json").write_text("{ }")
    assert served.key() != before
    assert served.model_name == tmp_path.name and not served.runs_weights


def test_first_replies_of_a_run_come_from_a_server_that_it_starts(tiny: Callable[..., Config], tmp_path: Path):
    pids = tmp_path / "pids"
    serve = f"policy_engine.serve={COMMAND} --pids {pids}"
    done = run(tiny("policy_engine=serve", serve, "policy_engine.scores=none", "until=critique"))
    exchanges = read_records(done.stages["critique"].folder / "exchanges.jsonl", Exchange)
    assert exchanges and all(e.policy == "base" and e.reply.startswith("base of tiny-model") for e in exchanges)
    assert (done.folder / "server-base.log").exists() and all_ended(pids)


@pytest.mark.parametrize(
    ("command", "has_key"),
    [
        ("x {model} {port} --api-key sk-secret", True),
        ("sh -c 'x {model} {port} --api-key=sk-secret'", True),
        ("x {model} {port} --admin-api-key sk-secret", True),  # SGLang's
        ("x {model} {port} --hf-token sk-secret", True),  # vLLM's
        ("x {model} {port} --hf-token=sk-secret", True),
        ("x {model} --hf-token --port {port}", False),  # vLLM then takes the one on the disk
        ("sh -c 'x {model} {port} --hf-token $HF_TOKEN'", False),
        ("env VLLM_API_KEY=sk-secret x {model} {port}", True),
        ('sh -c \'HF_TOKEN="sk-secret" x {model} {port}', True),
        ("sh -c 'VLLM_API_KEY=$KEY x {model} {port}'", False),
        ("x {model} {port} --api-key-file keys.txt", False),
    ],
)
def test_a_command_with_a_key_is_refused_without_showing_it(command: str, has_key: bool):
    trouble = trouble_with_command(command)
    assert bool(trouble) == has_key and "sk-secret" not in trouble


def test_weights_that_are_not_there_are_named_before_a_run(tmp_path: Path):
    serving = compose_config(
        ["engine=serve", "preferences=ab", f"engine.model={tmp_path}/x", "engine.serve='sh {port}'"]
    )
    with pytest.raises(ConfigError, match=r"^engine.model is '.*/x', but there is no such file or folder"):
        serving.engine.check("engine")
