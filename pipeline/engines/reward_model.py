"""A reward model: how good a reply is, as one number. It brings its own tokenizer and chat template, so it may be of
another family than the model whose replies it scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jinja2 import TemplateError
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat import Renderer
from pipeline.core import distributed
from pipeline.core.cache import write_text_atomically
from pipeline.core.errors import ConfigError
from pipeline.engines.base import ReplyQuery, Scored
from pipeline.engines.models import load_tokenizer, resolve_path, resolve_precision
from pipeline.records import Message

BATCH_ROWS = 16
MEAN, STD = "reward_mean", "reward_std"  # in config.json

ScoreTokens = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(input_ids, attention_mask), each (rows, length) with padding on the right → (rows,) logits."""


class RewardModel:
    """Scores replies in standard deviations from the mean of the replies that it was gauged on.

    Args:
        score_tokens: the forward pass; whoever gives one of their own pools with ``last_real``.
        tokenizer: the reward model's own, with its chat template (texts are joined by blank lines where it has none).
        context: the most tokens; a longer text keeps its end, which is the reply.
        mean, std: of the logits of the replies that it was gauged on.
    """

    def __init__(
        self,
        score_tokens: ScoreTokens,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        context: int,
        device: torch.device,
        mean: float = 0.0,
        std: float = 1.0,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        self.name, self.mean, self.std = name, mean, std
        self._score_tokens, self._tokenizer = score_tokens, tokenizer
        self._chat = Renderer(tokenizer)
        self._context, self._device, self._batch_rows = context, device, batch_rows

    def score(self, dialogues: Sequence[list[Message]], replies: Sequence[str]) -> list[float]:
        return [self.standardise(logit) for logit in self.raw_scores(dialogues, replies)]

    def raw_scores(self, dialogues: Sequence[list[Message]], replies: Sequence[str]) -> list[float]:
        """Logits: differences between two replies are log-odds that the first is preferred (Bradley & Terry 1952)."""
        asks = [
            ReplyQuery(id=str(index), messages=messages, reply=reply)
            for index, (messages, reply) in enumerate(zip(dialogues, replies, strict=True))
        ]
        found = {row.id: row.score for batch in self.batches(asks) for row in self.score_batch(batch)}
        return [found[ask.id] for ask in asks]

    def standardise(self, logit: float) -> float:
        return (logit - self.mean) / self.std

    def batches(self, asks: Sequence[ReplyQuery]) -> list[list[ReplyQuery]]:
        """Sorted by length, longest first, and cut to size: a function of the asks alone."""
        sizes = {ask.id: len(self._encode(ask)) for ask in asks}
        order = sorted(asks, key=lambda ask: (-sizes[ask.id], ask.id))
        return [order[start : start + self._batch_rows] for start in range(0, len(order), self._batch_rows)]

    @torch.inference_mode()
    def score_batch(self, batch: Sequence[ReplyQuery]) -> list[Scored]:
        """Raw logits of one batch."""
        rows = [torch.tensor(self._encode(ask)) for ask in batch]
        ids = pad_sequence(rows, batch_first=True, padding_value=int(self._tokenizer.pad_token_id))
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        logits = self._score_tokens(ids.to(self._device), mask.to(self._device))
        return [Scored(id=ask.id, score=score) for ask, score in zip(batch, logits.float().tolist(), strict=True)]

    def _encode(self, ask: ReplyQuery) -> list[int]:
        return self._chat.dialogue_ids(ask.messages, ask.reply, self._context)


def last_real(values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The value at each row's last real token, by the mask: a text may well end with the token that also pads.

    Args:
        values: (rows, length, …).
        attention_mask: (rows, length), padding on the right.

    Returns:
        (rows, …)
    """
    return values[torch.arange(len(values), device=values.device), attention_mask.sum(dim=1) - 1]


def pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A token that no text ends with, out of those the tokenizer has.

    transformers reads a classifier's answer at the rightmost token that is not the pad token. Where a text ends with
    the very token that pads, as with templates that end in eos when pad is eos, that is one token too early.

    Raises:
        ConfigError: the tokenizer has no other special token than the one that its template ends with.
    """
    last = Renderer(tokenizer).dialogue_ids([Message(role="user", content="x")], "x", 1)[-1]
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    candidates = [token for token in (tokenizer.pad_token, tokenizer.unk_token, *special) if token]
    free = [token for token in candidates if tokenizer.convert_tokens_to_ids(token) != last]
    if not free:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path} has no special token to pad with but the one that its chat "
            "template ends with; add a pad token to it."
        )
    return next((token for token in free if token != tokenizer.eos_token), free[0])


def check_scoring(path: str, revision: str | None, field: str) -> None:
    """Refuse a tokenizer that can't write down a reply, or has no token to pad it with.

    Raises:
        ConfigError: in one sentence.
    """
    folder = resolve_path(path)
    try:
        pad_token(load_tokenizer(folder, revision if folder == path else None))
    except (TemplateError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{field}: the tokenizer of {path} can't write down a reply ({reason}).") from None


def scoring_precision(precision: str) -> torch.dtype:
    """That of the policy on a GPU, where a second model of its size must fit; fp32 on a CPU."""
    return resolve_precision(precision) if torch.cuda.is_available() else torch.float32


def load_reward_model(
    path: str,
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
    score_tokens: ScoreTokens | None = None,
    batch_rows: int | None = None,
) -> RewardModel:
    """Any sequence classifier with one output: the reward stage's or somebody else's.

    Where its configuration names a pad token, it is read as published: transformers pools before that.

    Args:
        score_tokens: takes the place of the weights, which are not loaded then.
    """
    path = resolve_path(path)
    config, tokenizer = AutoConfig.from_pretrained(path), load_tokenizer(path)
    text_config = config.get_text_config()
    if text_config.pad_token_id is None:
        text_config.pad_token_id = tokenizer.convert_tokens_to_ids(pad_token(tokenizer))
    tokenizer.pad_token_id = text_config.pad_token_id
    if score_tokens is None:
        model = AutoModelForSequenceClassification.from_pretrained(path, config=config, dtype=dtype)
        score_tokens = classifier_logits(model.to(distributed.default_device()))
    mean, std = reward_scaling(path)
    longest = getattr(text_config, "max_position_embeddings", None) or 1 << 30
    return RewardModel(
        score_tokens,
        tokenizer,
        name=name or Path(path).name,
        context=int(min(longest, tokenizer.model_max_length)),
        device=distributed.default_device(),
        mean=mean,
        std=std,
        batch_rows=batch_rows or BATCH_ROWS,
    )


def classifier_logits(model: PreTrainedModel) -> ScoreTokens:
    """The forward pass of a sequence classifier whose configuration names the pad token."""
    model.eval()

    def score_tokens(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits[:, 0]

    return score_tokens


def reward_scaling(path: str | Path) -> tuple[float, float]:
    """Mean and standard deviation that the reward stage has written into the model's configuration; 0 and 1 without."""
    config = AutoConfig.from_pretrained(path)
    return float(getattr(config, MEAN, 0.0)), float(getattr(config, STD, 1.0))


def write_reward_scaling(folder: Path, mean: float, std: float) -> None:
    """Write them beside the weights, so that whoever loads the model scores on the same scale."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), MEAN: mean, STD: std}
    write_text_atomically(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
