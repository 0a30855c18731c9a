"""A model with its guard, for programs: it answers like the model, and declines where the guard fires."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ConfigError
from pipeline.guard.guard import FOLDER, Guard
from pipeline.guard.rows import split_reply
from pipeline.guard.watching import Watch
from pipeline.records import Message

if TYPE_CHECKING:
    from pipeline.engines.states import Reader

Asked = str | Sequence[Message]
REFUSED = ("streamer", "num_beams", "num_return_sequences", "stopping_criteria", "assistant_model", "input_ids")
"""Arguments of ``generate`` that a guard sets itself, or with which it can't follow the reply."""


@dataclass(frozen=True)
class Reply:
    """What was said. ``fired``: the guard replaced the model's own reply. ``score``: the highest log-odds of harm that
    it saw."""

    text: str
    fired: bool
    score: float


class GuardedModel:
    """A model of transformers with its guard.

    >>> model = GuardedModel.load("outputs/runs/latest/checkpoint")
    >>> model.generate("How do I pick a lock?", max_new_tokens=64).text
    >>> for piece in model.stream("How do I pick a lock?", max_new_tokens=64):
    ...     print(piece, end="")
    """

    def __init__(self, reader: Reader, guard: Guard) -> None:
        """Args: a loaded model with its tokenizer, and the guard that was made for it.

        Raises:
            ConfigError: the guard is that of another model.
        """
        from pipeline.chat import Renderer

        guard.check_model(reader)
        self.model, self.tokenizer, self.guard = reader.model, reader.tokenizer, guard
        self._chat = Renderer(reader.tokenizer, reader.model.generation_config.eos_token_id)

    @classmethod
    def load(cls, checkpoint: str | Path, guard: str | Path | None = None, precision: str = "auto") -> GuardedModel:
        """Load a checkpoint and its guard, by default from the folder ``guard`` beside the checkpoint.

        Raises:
            ConfigError: there is no such guard, or it is that of another model.
        """
        from pipeline.engines.models import load_model, load_tokenizer
        from pipeline.engines.states import Reader

        found = Guard.load(Path(checkpoint).expanduser().parent / FOLDER if guard is None else guard)
        folder = str(Path(checkpoint).expanduser())
        if not (Path(folder) / "config.json").is_file():
            raise ConfigError(f"there is no model in {folder}; give the checkpoint of a run.")
        return cls(Reader(load_model(folder, precision).eval(), load_tokenizer(folder), batch_rows=1), found)

    def generate(self, asked: Asked, max_new_tokens: int = 256, **options: Any) -> Reply:
        """A reply to a request, or to a dialogue whose last turn is the person's or the start of a reply.

        Args:
            options: of ``generate`` of transformers, such as ``do_sample`` or ``temperature``.

        Raises:
            ConfigError: an option with which the guard can't follow the reply.
        """
        pieces: list[str] = []
        watch = self._watch(asked, pieces.append)
        self._run(watch, max_new_tokens, options)
        return Reply(self.guard.refusal if watch.fired else "".join(pieces), watch.fired, watch.score)

    def stream(self, asked: Asked, max_new_tokens: int = 256, **options: Any) -> Iterator[str]:
        """The reply in pieces, each of which the guard has read. If it fires, the pieces end with its refusal; what it
        let pass before has been said. Arguments and errors as in ``generate``."""
        _check(options)
        pieces: Queue[str | BaseException | None] = Queue()
        watch, left = self._watch(asked, pieces.put), Event()
        watch.left = left

        def work() -> None:
            try:
                self._run(watch, max_new_tokens, options)
                pieces.put(None)
            except BaseException as error:  # raised again where the pieces are read
                pieces.put(error)

        thread = Thread(target=work, daemon=True)
        thread.start()
        begun = False
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                begun = True
                yield piece
            if watch.fired:
                yield f"\n\n{self.guard.refusal}" if begun else self.guard.refusal
        finally:  # also if nobody reads the rest
            left.set()
            thread.join()

    def _watch(self, asked: Asked, say: Callable[[str], None]) -> Watch:
        messages = [Message(role="user", content=asked)] if isinstance(asked, str) else list(asked)
        before, begun = split_reply(messages)
        prompt = self._chat.prompt_ids(before)
        return Watch(self.guard, self.tokenizer, prompt, self._chat.text_ids(begun), self._chat.stop_ids, say)

    def _run(self, watch: Watch, max_new_tokens: int, options: dict[str, Any]) -> None:
        import torch
        from transformers import StoppingCriteriaList

        _check(options)
        ids = torch.tensor([watch.given], device=self.model.device)
        ends = sorted(self._chat.stop_ids)
        pad = {"pad_token_id": ends[0]} if ends else {}
        with watch.over(self.model):
            self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                stopping_criteria=StoppingCriteriaList([watch]),
                **({"eos_token_id": ends} if ends else {}) | pad | options,
            )
        watch.finish()


def _check(options: dict[str, Any]) -> None:
    for name in REFUSED:
        value = options.get(name)
        if value is not None and not (isinstance(value, int) and value == 1):
            raise ConfigError(
                f"{name} can't be used with a guard, which follows one reply token by token; leave it out."
            )
