"""Gradients of log-probabilities with respect to the adapter of a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch

from pipeline.chat import Renderer
from pipeline.engines.models import LoraConfig, ModelConfig, load_model, load_tokenizer, resolve_path
from pipeline.engines.prefix import head_reads
from pipeline.training.attention import attend_in_products
from pipeline.training.models import loading_device, lora_config, revision_of

FRESH_RANK = 8


@dataclass(frozen=True)
class Trained:
    """A model that the chain trained."""

    start: str
    """The model that its training began with."""
    path: str
    """Its own weights, with the adapter merged into them."""
    adapter: Path | None
    """The adapter that was trained on ``start``; None: all weights were trained."""


class Adapted:
    """A trained model as weights and an adapter that can get gradients. Nothing is trained.

    The adapter is the one that was trained. If all weights were, it is a fresh one of rank 8 on the trained model, with
    B = 0, so it changes nothing. Its gradient with respect to A is then zero, and that with respect to B is a random
    projection by A of the gradient of the weights: products of gradients are kept on average.

    Args:
        seed: draws the A of a fresh adapter.
    """

    def __init__(self, trained: Trained, config: ModelConfig, seed: int) -> None:
        path = resolve_path(trained.path if trained.adapter is None else trained.start)
        revision = revision_of(path, config)
        weights = load_model(path, config.precision, revision, loading_device())
        attend_in_products(weights)
        if trained.adapter is not None:
            self.model = peft.PeftModel.from_pretrained(weights, str(trained.adapter), is_trainable=True)
        else:
            lora = LoraConfig(rank=FRESH_RANK, alpha=FRESH_RANK)
            fresh = config.model_copy(update={"tuning": "lora", "lora": lora})
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self.model = peft.get_peft_model(weights, lora_config(fresh, weights))
        self.model.eval()
        self.chat = Renderer(load_tokenizer(path, revision), weights.generation_config.eos_token_id)
        self._adapter = [weight for weight in self.model.parameters() if weight.requires_grad]

    def gradient(self, value: torch.Tensor) -> torch.Tensor:
        """The gradient of a number with respect to the adapter: (weights of the adapter,), in 32 bits."""
        return gradient(value, self._adapter)

    def without_adapter(self) -> AbstractContextManager[None]:
        """A block in which the model computes what it did before it got the adapter."""
        found: AbstractContextManager[None] = self.model.disable_adapter()
        return found


def token_logprobs(model: Any, prompt_ids: Sequence[int], reply_ids: Sequence[int]) -> torch.Tensor:
    """log p of each token of a reply given the prompt and the tokens before it: (tokens of the reply,), with gradients.

    It is one row alone, so it holds for every architecture. Logits are computed only where a token of the reply
    follows.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([[*prompt_ids, *reply_ids]], device=device)
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    wanted[:, len(prompt_ids) - 1 : -1] = True
    with head_reads(model, wanted):
        logits = model(input_ids=ids, use_cache=False).logits
    logprobs = logits.reshape(-1, logits.shape[-1]).float().log_softmax(-1)
    return logprobs.gather(1, ids[0, len(prompt_ids) :, None])[:, 0]


def gradient(value: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """d value / d weights in one row: (number of weights,), in 32 bits. Weights that it does not depend on have 0."""
    parts = torch.autograd.grad(value, list(weights), allow_unused=True)
    flat = [torch.zeros_like(w) if part is None else part for w, part in zip(weights, parts, strict=True)]
    return torch.cat([part.detach().float().flatten() for part in flat])
