"""Hidden states of a model at the last token of each prompt: what it has computed before it writes a reply."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat import Renderer
from pipeline.core import distributed
from pipeline.core.errors import ConfigError, NotMeasuredError
from pipeline.core.memory import free_memory
from pipeline.engines.base import ENGINES, Request, Weights
from pipeline.engines.models import context_of, load_model, load_tokenizer, resolve_path, resolve_precision
from pipeline.engines.prefix import cache_of, common_length, shares_prefixes
from pipeline.engines.reward_model import last_real
from pipeline.records import Message

BATCH_TOKENS = 8192  # with padding; more are no faster
GIB = 2**30


@dataclass(frozen=True)
class States:
    """``values``: (prompts, layers, hidden). A prompt that does not fit the context has NaN.

    ``layers``: the number of each layer in ``values``, from 1; ``num_layers`` is the number of the last one.
    """

    values: NDArray[np.float32]
    layers: list[int]
    num_layers: int

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(prompts,) whether all states of a prompt are numbers; fp16 may overflow."""
        return np.asarray(np.isfinite(self.values).all((1, 2)))


def prompt_states(weights: Weights, dialogues: Sequence[Sequence[Message]], batch_rows: int, most: int) -> States:
    """Load a model, and read the states of ``most`` layers or a few more, spread evenly down from the last one.

    Raises what ``load_reader`` raises.
    """
    return load_reader(weights, batch_rows).states(dialogues, most)


@dataclass(frozen=True)
class Reader:
    """A model in memory, whose states can be read and that can reply."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_rows: int

    def states(self, dialogues: Sequence[Sequence[Message]], most: int) -> States:
        """As ``prompt_states``. A dialogue that ends with a turn of the assistant ends with the start of the reply.

        Raises:
            NotMeasuredError: the model has no list of layers, or the device ran out of memory.
        """
        chat = Renderer(self.tokenizer, self.model.generation_config.eos_token_id)
        rows = [chat.prompt_ids(messages, begun) for messages, begun in map(_begun, dialogues)]
        with memory_errors():
            return last_states(self.model, rows, self.batch_rows, most)

    def replies(self, dialogues: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        """Greedy replies of at most so many tokens; "" for a dialogue that does not fit the context.

        Raises:
            NotMeasuredError: the model reads padding, or the device ran out of memory.
        """
        from pipeline.engines.hf import HFEngine

        try:
            engine = HFEngine(self.model, self.tokenizer, name="reader", batch_rows=self.batch_rows)
        except ConfigError:
            raise NotMeasuredError("the model reads padding, so its replies would change in a batch") from None
        asks = [
            Request(id=str(n), messages=messages, prefix=begun, seed=0, max_new_tokens=max_tokens, temperature=0.0)
            for n, (messages, begun) in enumerate(map(_begun, dialogues))
        ]
        with memory_errors():
            found = {one.id: one.text for batch in engine.batches(asks) for one in engine.generate(batch)}
        return [found[ask.id] for ask in asks]


def load_reader(weights: Weights, batch_rows: int) -> Reader:
    """Load a model to read its states. All engines of this process are released first.

    Raises:
        NotMeasuredError: the model is no folder of weights, or does not fit the memory.
    """
    path = resolve_path(weights.path)
    if Path(path).is_file():
        raise NotMeasuredError(f"{Path(path).name} is a file for a server and no folder of weights")
    revision = None if Path(path).is_dir() else weights.revision
    for kind in ENGINES:
        ENGINES[kind].release()
    free_memory()
    _check_room(path, revision, weights.precision)
    with memory_errors():
        model = load_model(path, weights.precision, revision).eval()
    return Reader(model, load_tokenizer(path, revision), batch_rows)


@contextmanager
def loaded(weights: Weights) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """A block with a model and its tokenizer. Raises what ``load_reader`` raises, also for a lack of memory within."""
    reader = load_reader(weights, batch_rows=1)
    with memory_errors():
        yield reader.model, reader.tokenizer


@contextmanager
def memory_errors() -> Iterator[None]:
    """A block in which a lack of memory is a NotMeasuredError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise NotMeasuredError("the device ran out of memory") from None


def _begun(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """A dialogue up to the reply, and the start of the reply."""
    *before, last = messages
    return (before, last["content"]) if last["role"] == "assistant" else (list(messages), "")


def _check_room(path: str, revision: str | None, precision: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, revision=revision))
    needed = sum(weight.numel() for weight in model.parameters()) * resolve_precision(precision).itemsize
    on_gpu = torch.cuda.is_available()
    free = torch.cuda.mem_get_info(distributed.default_device())[0] if on_gpu else psutil.virtual_memory().available
    if needed > free:
        raise NotMeasuredError(f"the weights need {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free")


@torch.inference_mode()
def last_states(model: PreTrainedModel, rows: Sequence[list[int]], batch_rows: int, most: int) -> States:
    """The states at the last token of each row of token ids.

    The beginning that all rows share is computed once, if the model allows it. The rest is padded on the right, where
    no earlier token sees it. Of each layer only the last tokens are kept.
    """
    blocks = layers_of(model)
    layers = spread_layers(len(blocks), most)
    values = np.full((len(rows), len(layers), model.config.get_text_config().hidden_size), np.nan, dtype=np.float32)
    num_shared = common_length(rows) if rows and shares_prefixes(model) else 0
    prefix = cache_of(model, torch.tensor([rows[0][:num_shared]], device=model.device)) if num_shared else None
    for batch in batches_of(rows, batch_rows, context_of(model.config)):
        tokens = [torch.tensor(rows[index][num_shared:], device=model.device) for index in batch]
        ids = pad_sequence(tokens, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
        whole_mask = torch.cat([mask.new_ones(len(batch), num_shared), mask], dim=1)
        cache = deepcopy(prefix)
        if cache is not None:
            cache.batch_repeat_interleave(len(batch))
        with _kept_at_the_end([blocks[layer - 1] for layer in layers], mask) as kept:
            model.base_model(
                input_ids=ids, attention_mask=whole_mask, past_key_values=cache, use_cache=cache is not None
            )
        values[batch] = torch.stack(kept, dim=1).numpy()
    return States(values, layers, len(blocks))


def spread_layers(num_layers: int, most: int) -> list[int]:
    """The numbers, from 1, of ``most`` layers or a few more, spread evenly down from the last one."""
    return list(range(num_layers, 0, -max(1, num_layers // most)))[::-1]


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The layers of a model, in order. Raises NotMeasuredError if it has no list of them."""
    number = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    found = next((layers for layers in lists if len(layers) == number), None)
    if found is None:
        raise NotMeasuredError(f"a model of type {model.config.model_type!r} has no list of its layers")
    return found


def batches_of(rows: Sequence[list[int]], batch_rows: int, context: int) -> Iterator[list[int]]:
    """Indices of the rows that fit the context, sorted by length, the longest first."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: -len(rows[index])):
        if len(rows[index]) > context:
            continue
        if batch and (len(batch) == batch_rows or (len(batch) + 1) * len(rows[batch[0]]) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@contextmanager
def _kept_at_the_end(layers: Sequence[torch.nn.Module], mask: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """A block in which each layer's output at the last token of each row, (rows, hidden), is added to a list."""
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        kept.append(last_real(states, mask).float().cpu())

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
