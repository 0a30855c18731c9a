"""The vllm engine asks vLLM for the same tokens that hf computes, and holds one model at a time.

vLLM is not installed here. ``fake_vllm.py`` has the parts of its interface that the engine uses, and computes with
transformers; scripts/check_vllm.py compares the engines with the real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError, StageError
from pipeline.engines import vllm
from pipeline.engines.base import ENGINES, ChoiceQuery, Completion, Query, ReplyQuery, Request, Weights, open_engine
from pipeline.engines.orphans import end_with_parent
from pipeline.records import Message, Preference, read_records
from tests import fake_vllm
from tests.fake_vllm import LLM, installed
from tests.fakes import is_alive


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LLM]]:
    with installed(monkeypatch) as parts:
        yield parts


def opened(kind: str, model: Path, **settings: Any) -> Any:
    weights = Weights(path=str(model), precision="fp32", name="tiny")
    return open_engine(ENGINES.parse({"kind": kind, **settings}), weights, LaunchConfig(batch_rows=4))


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def asks(temperature: float = 0.0) -> list[Request]:
    shown: dict[str, Any] = {"max_new_tokens": 12, "temperature": temperature, "top_p": 0.9}
    return [Request(id=str(i), messages=user("word " * i), seed=i, prefix="Well" * (i % 2), **shown) for i in range(6)]


def queries() -> list[Query]:
    choices = [
        ChoiceQuery(id=f"c{i}", messages=user("Which? " * (i + 1)), opening="It is (", choices=("A", "B", "A"))
        for i in range(3)
    ]
    return [*choices, *(ReplyQuery(id=f"r{i}", messages=user("Why?"), reply="Yes. " * (i + 1)) for i in range(3))]


def everything(engine: Any) -> dict[str, Any]:
    found = {done.id: done for batch in engine.batches(asks()) for done in engine.generate(batch)}
    for kind in (ChoiceQuery, ReplyQuery):
        asked = [query for query in queries() if isinstance(query, kind)]
        found |= {answer.id: answer.logprobs for batch in engine.batches(asked) for answer in engine.score(batch)}
    return found


def test_it_generates_and_scores_what_hf_does(tiny_model: Path, random_model: Path):
    finishes = set()
    for model in (tiny_model, random_model):
        expected, found = everything(opened("hf", model)), everything(opened("vllm", model))
        for row_id, value in expected.items():
            assert found[row_id] == (pytest.approx(value, abs=1e-5) if isinstance(value, list) else value)
        finishes |= {reply.finish for reply in expected.values() if isinstance(reply, Completion)}
    assert finishes == {"stop", "length"}


def test_each_request_has_its_own_seed_and_settings(random_model: Path):
    engine = opened("vllm", random_model)
    [first, *_] = batches = engine.batches(asks(temperature=0.7)[::-1])
    assert batches == engine.batches(asks(temperature=0.7))
    engine.generate(first)
    asked = LLM.opened[0].asked
    assert [param.seed for param in asked] == [request.seed for request in first]
    assert {(param.temperature, param.top_p) for param in asked} == {(0.7, 0.9)}
    assert all(param.stop for param in asked)


def test_what_does_not_fit_the_context_is_marked(random_model: Path):
    engine = opened("vllm", random_model, max_model_len=60)
    long = Request(**{**vars(asks()[0]), "id": "long", "max_new_tokens": 59})
    cut, kept = engine.generate([long, asks()[0]])
    assert (cut.finish, cut.text, kept.finish != "too_long") == ("too_long", "", True)
    fits, does_not = queries()[0], ChoiceQuery(**{**vars(queries()[0]), "id": "x", "messages": user("word " * 60)})
    assert [answer.is_readable for answer in engine.score([does_not, fits])] == [False, True]


def test_one_model_is_held_and_the_end_of_a_stage_frees_it(random_model: Path, tiny_model: Path):
    one, again, other = (opened("vllm", model) for model in (random_model, random_model, tiny_model))
    for engine in (one, again, other):
        engine.generate(asks()[:1])
    assert [llm.is_open for llm in LLM.opened] == [False, True]
    ENGINES["vllm"].release()
    assert not any(llm.is_open for llm in LLM.opened)
    one.generate(asks()[:1])
    assert len(LLM.opened) == 3


def test_a_run_generates_and_labels_with_it(tiny: Callable[..., Config], tiny_model: Path):
    done = run(tiny("policy_engine=vllm", "engine=vllm", "until=preferences"))
    preferences = list(read_records(done.stages["preferences"].folder / "preferences.jsonl", Preference))
    assert any(p.labeller == "likelihood:base" and p.probability_a != 0.5 for p in preferences)
    assert [llm.is_open for llm in LLM.opened] == [
        False
    ] * 3  # the base model of critique, the SFT model and the base model of preferences


def test_a_judge_beside_training_sleeps_between_batches(random_model: Path):
    engine = opened("vllm", random_model, sleep=True)
    for _ in range(2):
        engine.score(queries()[:1])
    assert LLM.opened[0].states == ["awake", "asleep", "awake", "asleep"]
    assert LLM.opened[0].arguments["enable_sleep_mode"]


def test_each_rank_starts_on_its_own_gpus(random_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("CUDA_VISIBLE_DEVICES", "4,5,6,7")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fake_vllm, "load_model", lambda *_: None)
    with pytest.raises(TypeError):  # the fake has no model
        opened("vllm", random_model, tensor_parallel=2, precision="fp32").generate(asks()[:1])
    assert LLM.opened[0].visible_gpus == "6,7"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"


def test_a_failing_start_is_one_sentence(random_model: Path):
    with pytest.raises(StageError, match=r"vLLM can't start .* \(Engine core initialization failed\)"):
        opened("vllm", random_model, gpu_memory_utilization=1).generate(asks()[:1])


@pytest.mark.parametrize(
    ("version", "settings", "sentence"),
    [
        (None, {}, r"engine\.kind is 'vllm', but vLLM is not installed here; run `pip install vllm`"),
        ("0.21.3", {}, r"vLLM 0\.21\.3 is too old; install 0\.22 or newer"),
        ("0.32.0+cpu", {"sleep": True}, r"engine\.sleep is true, but vLLM can do this only on a GPU"),
        ("0.32.0", {"path": "/no/such/model"}, r"engine\.path: there is no model folder"),
    ],
)
def test_what_can_not_work_is_refused_before_the_run(
    version: str | None, settings: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vllm, "installed_version", lambda: version)
    with pytest.raises(ConfigError, match=sentence):
        ENGINES.parse({"kind": "vllm", **settings}).check("engine")


def test_the_cache_key_holds_the_version_and_not_where_it_runs(monkeypatch: pytest.MonkeyPatch):
    def key(**settings: Any) -> Any:
        return ENGINES.parse({"kind": "vllm", **settings}).key()

    before = key()
    assert before == key(tensor_parallel=4, gpu_memory_utilization=0.5, enforce_eager=True, sleep=True)
    assert before != key(quantization="fp8")
    monkeypatch.setattr(vllm, "installed_version", lambda: "0.33.0")
    assert before != key()


def test_the_processes_of_a_killed_run_end(tmp_path: Path):
    root = Path(__file__).parents[2]
    [plugin] = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"][
        "vllm.general_plugins"
    ].values()
    assert plugin == f"{end_with_parent.__module__}:{end_with_parent.__name__}"
    program = tmp_path / "run.py"
    program.write_text(ORPHAN)
    here = os.environ | {"PYTHONPATH": str(root)}
    run = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True, env=here)
    assert run.stdout is not None
    child = int(run.stdout.readline())
    run.kill()
    for _ in range(100):
        run.poll()
        if not is_alive(child):
            return
        time.sleep(0.1)
    os.kill(child, 9)
    pytest.fail("the process goes on after its parent is gone")


ORPHAN = """
import multiprocessing, os, time
from pipeline.engines.orphans import end_with_parent

def work():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    end_with_parent()
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
"""


def test_the_key_has_the_number_format_of_this_hardware(monkeypatch: pytest.MonkeyPatch):
    found = set()
    for native in (True, False):
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda native=native: native)
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda native=native: native)
        found.add(str(ENGINES.parse({"kind": "vllm", "path": "org/m", "precision": "auto"}).key()))
    assert len(found) == 2


def test_an_engine_of_another_kind_gets_the_room_of_vllm(tiny_model: Path):
    first = opened("vllm", tiny_model)
    before = first.generate(asks())
    opened("hf", tiny_model)
    assert [llm.is_open for llm in LLM.opened] == [False]
    assert first.generate(asks()) == before, "it starts again when it is used again"
