"""The engine behind ``vllm``, and the one model that vLLM holds in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from pipeline.core import distributed
from pipeline.core.errors import StageError, first_line
from pipeline.engines.base import Answer, AskT, ChoiceQuery, Completion, Query, Request, Weights
from pipeline.engines.encoding import Encoding
from pipeline.engines.live import Adapter, Sample
from pipeline.engines.models import generation_ends, load_tokenizer, short_name

_held: tuple[dict[str, Any], Any] | None = None
"""The arguments of the open ``vllm.LLM``, and the LLM: two of them would not share the memory of a GPU."""


def _hold(arguments: dict[str, Any]) -> Any:
    """Return the ``vllm.LLM`` with these arguments. If another one is open, it is closed first.

    Raises:
        StageError: vLLM can't start it.
    """
    global _held
    if _held is None or _held[0] != arguments:
        close()
        _held = arguments, _start(arguments)
    return _held[1]


def close() -> None:
    """Stop the processes of the open ``vllm.LLM``, if there is one, so that its memory is free."""
    global _held
    if _held is not None:
        (_, llm), _held = _held, None
        llm.llm_engine.engine_core.shutdown()


def _start(arguments: dict[str, Any]) -> Any:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    # A forked process would wait for ever for the threads of torch, which a fork does not copy.
    os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
    import vllm

    try:
        with _own_gpus(arguments["tensor_parallel_size"]):
            return vllm.LLM(**arguments)
    except (ValueError, RuntimeError) as error:
        raise StageError(
            f"vLLM can't start {short_name(arguments['model'])} ({first_line(error)}); its lines above give the cause: "
            "if memory is short, lower gpu_memory_utilization or max_model_len of this engine."
        ) from error


@contextmanager
def _own_gpus(num_gpus: int) -> Iterator[None]:
    """Of several ranks, each one starts its own copy of the model on its own GPUs."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if distributed.world_size() > 1 and torch.cuda.is_available():
        visible = before.split(",") if before else [str(index) for index in range(torch.cuda.device_count())]
        first = int(os.environ.get("LOCAL_RANK", "0")) * num_gpus
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[first : first + num_gpus])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


# --- The engine -----------------------------------------------------------------------------------------------------


class VLLMEngine:
    """Generate and score with one model. vLLM starts with the first batch.

    Each draw has its own seed. Another batch can change the last bits of a probability, and so a text.

    Args:
        arguments: those of ``vllm.LLM``.
        batch_rows: the number of rows in a batch. vLLM itself chooses how many of them it computes at once.
    """

    def __init__(self, weights: Weights, arguments: dict[str, Any], batch_rows: int) -> None:
        self.name = weights.name
        path, revision = arguments["model"], arguments["revision"]
        self._encoding = Encoding(load_tokenizer(path, revision), generation_ends(path, revision))
        self._arguments, self._batch_rows = arguments, batch_rows
        self.text_of = self._encoding.text_of
        self.adapter: Adapter | None = None
        """The adapter to run on the model, if ``arguments`` enable adapters."""

    def batches(self, asks: Sequence[AskT]) -> list[list[AskT]]:
        """In the order of their texts: neighbours share their beginning, which vLLM then computes once."""
        ordered = sorted(asks, key=lambda ask: ([turn["content"] for turn in ask.messages], ask.id))
        return [ordered[start : start + self._batch_rows] for start in range(0, len(ordered), self._batch_rows)]

    @contextmanager
    def _awake(self) -> Iterator[Any]:
        llm = _hold(self._arguments)
        sleeps = self._arguments["enable_sleep_mode"]
        if sleeps and llm.llm_engine.is_sleeping():
            llm.wake_up()
        try:
            yield llm
        finally:
            if sleeps:
                llm.sleep(level=1)

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        with self._awake() as llm:
            found = self._ask(llm, batch, [request.max_new_tokens for request in batch], self._draw)
        return [
            Completion(id=request.id, text="", num_tokens=0, finish="too_long")
            if output is None
            else self._completion(request, output)
            for request, output in zip(batch, found, strict=True)
        ]

    def sample(self, batch: Sequence[Request]) -> list[Sample | None]:
        """Token ids with their log-probabilities, or None for a request that does not fit the context."""
        with self._awake() as llm:
            found = self._ask(
                llm,
                batch,
                [request.max_new_tokens for request in batch],
                lambda request: self._draw(request) | {"logprobs": 0},  # those of the sampled tokens alone
            )
        return [None if output is None else self._sampled(output) for output in found]

    def _sampled(self, output: Any) -> Sample:
        [reply] = output.outputs
        tokens = list(reply.token_ids)
        return Sample(
            prompt=list(output.prompt_token_ids),
            reply=tokens,
            ended=bool(tokens) and tokens[-1] in self._encoding.chat.stop_ids,
            logprobs=[row[token].logprob for token, row in zip(tokens, reply.logprobs, strict=True)],
        )

    def _draw(self, request: Request) -> dict[str, Any]:
        return {
            "seed": request.seed,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop_token_ids": sorted(self._encoding.chat.stop_ids),
        }

    def _completion(self, request: Request, output: Any) -> Completion:
        [reply] = output.outputs
        tokens = list(reply.token_ids)
        ended = bool(tokens) and tokens[-1] in self._encoding.chat.stop_ids
        kept = tokens[:-1] if ended else tokens
        finish: Literal["stop", "length"] = "stop" if ended else "length"
        return Completion(id=request.id, text=self._encoding.text_of(kept), num_tokens=len(kept), finish=finish)

    def score(self, batch: Sequence[Query]) -> list[Answer]:
        with self._awake() as llm:
            found = self._ask(llm, batch, [1] * len(batch), self._look)  # vLLM generates at least one token
        return [
            Answer(id=query.id, logprobs=[] if output is None else self._logprobs(query, output))
            for query, output in zip(batch, found, strict=True)
        ]

    def _look(self, query: Query) -> dict[str, Any]:
        wanted: dict[str, Any] = {"prompt_logprobs": 0}  # those of the prompt's own tokens
        if isinstance(query, ChoiceQuery):
            wanted = {"logprob_token_ids": sorted(set(self._encoding.choice_ids(query)))}
        return {"max_tokens": 1, "temperature": 0.0, **wanted}

    def _logprobs(self, query: Query, output: Any) -> list[float]:
        """Before temperature and top-p, as vLLM gives them by default."""
        if isinstance(query, ChoiceQuery):
            [[first]] = [reply.logprobs for reply in output.outputs]
            return [first[token].logprob for token in self._encoding.choice_ids(query)]
        tokens = self._encoding.chat.reply_ids(query.reply)
        rows = output.prompt_logprobs[-len(tokens) :]
        return [sum(row[token].logprob for token, row in zip(tokens, rows, strict=True)) / len(tokens)]

    def _ask(
        self, llm: Any, batch: Sequence[Any], room: Sequence[int], parameters: Callable[[Any], dict[str, Any]]
    ) -> list[Any]:
        """vLLM's output for each ask; None for those that don't fit the context with ``room`` further tokens."""
        from vllm import SamplingParams

        context = llm.model_config.max_model_len
        prompts = [self._encoding.ids(ask) for ask in batch]
        fits = [len(ids) + further <= context for ids, further in zip(prompts, room, strict=True)]
        todo = [index for index, fit in enumerate(fits) if fit]
        outputs = llm.generate(
            [{"prompt_token_ids": prompts[index]} for index in todo],
            [SamplingParams(detokenize=False, **parameters(batch[index])) for index in todo],
            use_tqdm=False,
            lora_request=self.adapter and _asking_for(self.adapter),
        )
        found: list[Any] = [None] * len(batch)
        for index, output in zip(todo, outputs, strict=True):
            found[index] = output
        return found


def _asking_for(adapter: Adapter) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.name, adapter.number, str(adapter.path))
