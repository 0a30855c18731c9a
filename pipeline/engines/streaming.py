"""A reply in pieces, while a model draws it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import TextIteratorStreamer

from pipeline.engines.base import Request
from pipeline.engines.sampling import SeededSampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Talking(Protocol):
    """An engine that shows a reply while it is drawn."""

    name: str

    def fits(self, request: Request) -> bool: ...

    def stream(self, request: Request) -> Iterator[str]: ...


def in_pieces(
    model: PreTrainedModel,
    tokenizer: Any,
    ids: torch.Tensor,
    request: Request,
    stop_ids: Collection[int],
    pad_id: int,
) -> Iterator[str]:
    """Yield the text of a reply without special tokens. A thread draws it, and stops if the iterator is closed.

    Args:
        ids: (1, tokens), the prompt.
    """
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    closed, failed = Event(), list[BaseException]()

    def draw() -> None:
        try:
            with torch.inference_mode():
                model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=request.max_new_tokens,
                    do_sample=False,
                    logits_processor=[SeededSampler([request.seed], [request.temperature], [request.top_p])],
                    stopping_criteria=[lambda *_: torch.tensor([closed.is_set()], device=ids.device)],
                    eos_token_id=sorted(stop_ids),
                    pad_token_id=pad_id,
                    streamer=pieces,
                )
        except BaseException as error:  # raised again by the thread that reads
            failed.append(error)
            pieces.on_finalized_text("", stream_end=True)  # end() decodes once more, and may fail as well

    thread = Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield from pieces
    finally:
        closed.set()
        thread.join()
    if failed:
        raise failed[0]
