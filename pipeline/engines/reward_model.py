"""A reward model gives a reply one number: how good it is. It uses its own tokenizer and chat template, so its model
family may differ from the policy's."""

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
from pipeline.core.errors import ConfigError, first_line
from pipeline.engines.base import ReplyQuery, Scored
from pipeline.engines.models import load_tokenizer, resolve_path, resolve_precision
from pipeline.records import Message

BATCH_ROWS = 16
MEAN, STD, NUM_REPLY_TOKENS = "reward_mean", "reward_std", "reward_num_reply_tokens"  # in config.json

ScoreTokens = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(input_ids, attention_mask) → logits of shape (rows,). Inputs are (rows, length) with padding on the right."""


class RewardModel:
    """Scores replies. A score is a logit, standardised by the mean and standard deviation of reference logits.

    Args:
        score_tokens: the forward pass; it must read the logit at the last real token (see ``last_real``).
        tokenizer: the reward model's tokenizer; without a chat template, turns are joined by blank lines.
        context: the largest number of tokens; of a longer text only the end is read, which is the reply.
        mean, std: of the logits of the replies that the reward stage measured.
        num_reply_tokens: it reads only so many first tokens of a reply, as in its training; None: all.
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
        num_reply_tokens: int | None = None,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        self.name, self.mean, self.std = name, mean, std
        self._num_reply_tokens = num_reply_tokens
        self._score_tokens, self._tokenizer = score_tokens, tokenizer
        self._chat = Renderer(tokenizer)
        self._context, self._device, self._batch_rows = context, device, batch_rows

    def score(self, dialogues: Sequence[list[Message]], replies: Sequence[str]) -> list[float]:
        return [self.standardise(logit) for logit in self.raw_scores(dialogues, replies)]

    def raw_scores(self, dialogues: Sequence[list[Message]], replies: Sequence[str]) -> list[float]:
        """Logits, not standardised: the difference of two is the log-odds that the first reply is preferred."""
        asks = [
            ReplyQuery(id=str(index), messages=messages, reply=reply)
            for index, (messages, reply) in enumerate(zip(dialogues, replies, strict=True))
        ]
        found = {row.id: row.score for batch in self.batches(asks) for row in self.score_batch(batch)}
        return [found[ask.id] for ask in asks]

    def read_part(self, reply: str) -> str:
        """What it reads of a reply: all, or the first tokens."""
        return reply if self._num_reply_tokens is None else self._chat.beginning(reply, self._num_reply_tokens)

    def standardise(self, logit: float) -> float:
        return (logit - self.mean) / self.std

    def batches(self, asks: Sequence[ReplyQuery]) -> list[list[ReplyQuery]]:
        """Sort by length, longest first, and cut into batches. The result depends only on the asks."""
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
        return self._chat.dialogue_ids(ask.messages, ask.reply, self._context, self._num_reply_tokens)


def last_real(values: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The value at each row's last token that is not padding. The mask decides: a text may end with the pad token.

    Args:
        values: (rows, length, …).
        attention_mask: (rows, length), padding on the right.

    Returns:
        (rows, …)
    """
    return values[torch.arange(len(values), device=values.device), attention_mask.sum(dim=1) - 1]


def pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Choose a pad token that no text ends with, from the tokenizer's special tokens.

    transformers reads a classifier's logit at the rightmost token that is not the pad token. If texts end with the pad
    token (a template that ends with eos, and pad is eos), it reads one token too early.

    Raises:
        ConfigError: the tokenizer's only special token is the one that its template ends with.
    """
    last = Renderer(tokenizer).dialogue_ids([Message(role="user", content="x")], "x", 1)[-1]
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    candidates = [token for token in (tokenizer.pad_token, tokenizer.unk_token, *special) if token]
    free = [token for token in candidates if tokenizer.convert_tokens_to_ids(token) != last]
    if not free:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path} has no special token to pad with except the one at the end of "
            "its chat template; add a pad token to it."
        )
    return next((token for token in free if token != tokenizer.eos_token), free[0])


def check_scoring(path: str, revision: str | None, field: str) -> None:
    """Check that a reward model's tokenizer can render a reply and has a usable pad token.

    Raises:
        ConfigError: it can't, or it has none.
    """
    folder = resolve_path(path)
    try:
        pad_token(load_tokenizer(folder, revision if folder == path else None))
    except (TemplateError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{field}: the tokenizer of {path} can't render a reply ({first_line(error)}); correct its chat template."
        ) from None


def scoring_precision(precision: str) -> torch.dtype:
    """The dtype of a reward model: the policy's on a GPU, to save memory; fp32 on a CPU."""
    return resolve_precision(precision) if torch.cuda.is_available() else torch.float32


def load_reward_model(
    path: str,
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
    score_tokens: ScoreTokens | None = None,
    batch_rows: int | None = None,
) -> RewardModel:
    """Load a sequence classifier with one output: the reward stage's or a published one.

    If its configuration names a pad token, that token is kept, because transformers reads the logit before it.

    Args:
        score_tokens: a forward pass to use instead of the weights, which are not loaded then.
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
        num_reply_tokens=getattr(config, NUM_REPLY_TOKENS, None),
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
    """Mean and standard deviation that the reward stage wrote into the model's config.json; otherwise 0 and 1."""
    config = AutoConfig.from_pretrained(path)
    return float(getattr(config, MEAN, 0.0)), float(getattr(config, STD, 1.0))


def write_reward_scaling(folder: Path, mean: float, std: float) -> None:
    """Write both into the model's config.json, so that every later load scores on the same scale."""
    _write_in_config(folder, {MEAN: mean, STD: std})


def write_num_reply_tokens(folder: Path, number: int) -> None:
    """Write into the model's config.json how many tokens of a reply it reads."""
    _write_in_config(folder, {NUM_REPLY_TOKENS: number})


def _write_in_config(folder: Path, values: dict[str, float]) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **values}
    write_text_atomically(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
