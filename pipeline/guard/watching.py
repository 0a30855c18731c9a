"""Follow one reply while ``generate`` of transformers writes it, and stop it where the guard fires."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria

from pipeline.engines.states import layers_of
from pipeline.guard.guard import Guard
from pipeline.guard.reading import checks
from pipeline.guard.steps import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BROKEN = "�"  # what a tokenizer writes for part of a character


class Watch(StoppingCriteria):
    """Called after each new token. The states of all tokens before it are known by then, whether the model keeps a
    cache or reads all tokens again.

    Args:
        prompt: token ids up to the reply.
        begun: token ids of the start of the reply that was given.
        stops: tokens that end a reply.
        say: gets each piece of text that the guard has read.
    """

    def __init__(
        self,
        guard: Guard,
        tokenizer: PreTrainedTokenizerBase,
        prompt: list[int],
        begun: list[int],
        stops: Collection[int],
        say: Callable[[str], None],
    ) -> None:
        self.given = [*prompt, *begun]
        self.fired, self.score = False, -math.inf
        self.left: Event | None = None
        """Set once nobody reads the pieces any more."""
        self._guard, self._tokenizer, self._stops, self._say = guard, tokenizer, frozenset(stops), say
        self._num_prompt = len(prompt)
        self._request, self._checked = -math.inf, 0
        self._ids = list(self.given)
        self._said = ""
        self._kept: dict[int, torch.Tensor] = {}

    @contextmanager
    def over(self, model: PreTrainedModel) -> Iterator[None]:
        """A block in which the outputs of the guard's layers are kept for one step."""
        blocks = layers_of(model)

        def keeper(layer: int) -> Callable[[torch.nn.Module, Any, Any], None]:
            def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
                self._kept[layer] = output[0] if isinstance(output, tuple) else output

            return keep

        hooks = [blocks[layer - 1].register_forward_hook(keeper(layer)) for layer in set(self._guard.layers)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """(rows,) whether to stop."""
        self._ids = input_ids[0].tolist()
        self._check(num_read=len(self._ids) - 1)
        stop = self.fired or (self.left is not None and self.left.is_set())
        return torch.full((len(input_ids),), stop, dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]

    def finish(self) -> None:
        """Say what is left after the last check."""
        if not self.fired:
            self._tell(len(self._ids), last=True)

    def _check(self, num_read: int) -> None:
        """Check the request, and the reply at each length that is due. ``num_read``: the tokens whose states are
        known."""
        if self._request == -math.inf:
            self._request = self._log_odds(self._guard.request, self._num_prompt - 1, num_read)
            self._see(self._request)
        reply = self._guard.reply
        num_written = len(self._ids) - self._num_prompt
        if self._ids[-1] in self._stops:  # the end of a turn is no part of the reply
            num_written -= 1
        for length in checks(num_written, self._guard.every):
            if length > self._checked and not self.fired:
                self._checked = length
                if reply is not None and self._request > self._guard.gate:
                    self._see(self._log_odds(reply, self._num_prompt - 1 + length, num_read, self._request))
                if not self.fired:
                    self._tell(self._num_prompt + length)

    def _log_odds(self, step: Step, place: int, num_read: int, before: float = 0.0) -> float:
        """Of the state at one token. The kept states are those of the last tokens that were read."""
        states = self._kept[step.layer][0]
        state = states[place - num_read + len(states)].float().cpu().numpy()[None]
        return float(step.log_odds(state, before)[0])

    def _see(self, log_odds: float) -> None:
        self.score = max(self.score, log_odds)
        self.fired = self.score > self._guard.threshold

    def _tell(self, end: int, last: bool = False) -> None:
        """Say the text of the reply up to a token, without part of a character. What was given is not said again."""
        new = self._ids[len(self.given) : end]
        text = str(self._tokenizer.decode(new, skip_special_tokens=True))
        if text.endswith(BROKEN) and not last:
            text = text.rstrip(BROKEN)
        if len(text) > len(self._said):
            self._say(text[len(self._said) :])
            self._said = text
