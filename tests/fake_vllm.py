"""The parts of vLLM's interface that the engine uses. They compute with transformers and peft."""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import peft
import pytest
import torch

from pipeline.engines import vllm
from pipeline.engines.base import ENGINES
from pipeline.engines.models import load_model


class SamplingParams:
    def __init__(
        self,
        *,
        max_tokens: int,
        temperature: float,
        detokenize: bool,
        top_p: float = 1.0,
        seed: int | None = None,
        stop_token_ids: list[int] | None = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        logprob_token_ids: list[int] | None = None,
    ) -> None:
        self.max_tokens, self.temperature, self.top_p, self.seed = max_tokens, temperature, top_p, seed
        self.stop, self.looks_back, self.wanted = stop_token_ids or [], prompt_logprobs == 0, logprob_token_ids or []
        self.tells = logprobs == 0 or bool(self.wanted)


@dataclass
class LoRARequest:
    name: str
    number: int
    path: str


class LLM:
    """One row at a time, without a cache of tokens. It keeps an adapter under its number, as vLLM does.

    ``opened`` are all that were ever opened. ``told_too_much`` is added to the log-probabilities of sampled tokens.
    """

    opened: ClassVar[list[LLM]] = []
    told_too_much: ClassVar[float] = 0.0

    def __init__(self, model: str, revision: str | None, dtype: str, max_model_len: int | None, **rest: Any) -> None:
        if rest["gpu_memory_utilization"] > 0.99:
            raise RuntimeError("Engine core initialization failed.\nSee root cause above.")
        self.arguments = {"model": model, "dtype": dtype, **rest}
        self.base = model
        self.models = {0: load_model(model, "fp32")}
        self.model_config = SimpleNamespace(max_model_len=max_model_len or 2048)
        self.is_open, self.states, self.asked = True, ["awake"], list[SamplingParams]()
        self.visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.llm_engine = SimpleNamespace(
            engine_core=SimpleNamespace(shutdown=lambda: setattr(self, "is_open", False)),
            is_sleeping=lambda: self.states[-1] == "asleep",
        )
        LLM.opened.append(self)

    def sleep(self, level: int) -> None:
        self.states.append("asleep")

    def wake_up(self) -> None:
        self.states.append("awake")

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        params: list[SamplingParams],
        use_tqdm: bool,
        lora_request: LoRARequest | None = None,
    ) -> list[Any]:
        assert self.is_open and self.states[-1] == "awake"
        self.asked += params
        model = self._model(lora_request)
        return [
            self._row(model, prompt["prompt_token_ids"], param) for prompt, param in zip(prompts, params, strict=True)
        ]

    def _model(self, adapter: LoRARequest | None) -> Any:
        if adapter is None:
            return self.models[0]
        assert self.arguments["enable_lora"]
        if adapter.number not in self.models:
            model = peft.PeftModel.from_pretrained(load_model(self.base, "fp32"), adapter.path)
            assert model.peft_config["default"].r <= self.arguments["max_lora_rank"]
            self.models[adapter.number] = model
        return self.models[adapter.number]

    @torch.inference_mode()
    def _row(self, model: Any, prompt: list[int], param: SamplingParams) -> Any:
        assert len(prompt) + param.max_tokens <= self.model_config.max_model_len
        tokens, found = list(prompt), []
        logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        before = [None, *({t: _logprob(row[t])} for t, row in zip(prompt[1:], logprobs[:-1], strict=True))]
        dice = torch.Generator().manual_seed(param.seed or 0)
        for _ in range(param.max_tokens):
            last = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            drawn = torch.multinomial((last / (param.temperature or 1)).exp(), 1, generator=dice)
            tokens.append(int(drawn if param.temperature else last.argmax()))
            # ``logprobs_mode``: processed ones are those at the temperature
            told = (last / param.temperature).log_softmax(-1) if self._is_processed and param.temperature else last
            found.append({token: _logprob(told[token] + LLM.told_too_much) for token in [tokens[-1], *param.wanted]})
            if tokens[-1] in param.stop:
                break
        reply = SimpleNamespace(token_ids=tuple(tokens[len(prompt) :]), logprobs=found if param.tells else None)
        before_it = before if param.looks_back else None
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[reply], prompt_logprobs=before_it)

    @property
    def _is_processed(self) -> bool:
        return self.arguments.get("logprobs_mode") == "processed_logprobs"


def _logprob(value: torch.Tensor) -> Any:
    return SimpleNamespace(logprob=float(value))


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LLM]]:
    """A block in which ``import vllm`` gives these parts."""
    names = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
    }
    for name, parts in names.items():
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(vllm, "installed_version", lambda: "0.32.0")
    LLM.opened.clear()
    yield LLM
    ENGINES["vllm"].release()
