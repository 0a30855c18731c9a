"""A local model through transformers: batched, with a seed per row and one prefill for the prefix that rows share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.core.cache import cache_key
from pipeline.core.errors import ConfigError
from pipeline.engines.base import Answer, AskT, ChoiceQuery, Completion, Query, ReplyQuery, Request
from pipeline.engines.decoding import decode
from pipeline.engines.encoding import Encoding
from pipeline.engines.live import Sample
from pipeline.engines.models import context_of
from pipeline.engines.prefix import cache_of, common_length, reads_padding, shares_prefixes
from pipeline.engines.sampling import SeededSampler
from pipeline.engines.streaming import in_pieces
from pipeline.records import Message

SCORED_ROWS = 16  # at most so many replies are scored at once: logits need rows * reply tokens * vocabulary
MIN_FILL = 0.5  # the length of the shortest ask in a batch is above this share of the longest
MIN_ALIKE = 4  # at least so many asks with the same examples get separate batches


class HFEngine:
    """Generate and score with one model.

    Args:
        batch_rows: the largest number of rows in a batch.
        batch_tokens: the largest number of tokens in a batch's key-value cache (prompts, replies and padding).
        share_prefix: prefill the prefix that all rows of a batch share only once, if the model allows it
            (``shares_prefixes``). It changes the speed, not the text.

    Raises:
        ConfigError: the model's results depend on padding, so its rows can't be put into one batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        batch_rows: int = 64,
        batch_tokens: int = 32768,
        share_prefix: bool = True,
    ) -> None:
        self.name = name
        self._model = model.eval()
        self._batch_rows, self._batch_tokens = batch_rows, batch_tokens
        self._share_prefix = share_prefix and shares_prefixes(model)
        if not self._share_prefix and reads_padding(model):
            raise ConfigError(
                f"the model {name!r} is of type {model.config.model_type!r}, which reads padding, so its "
                "replies would change in a batch; give another model."
            )
        self._context = context_of(model.config)
        self._encoding = Encoding(tokenizer, model.generation_config.eos_token_id)
        self._chat = self._encoding.chat
        self.text_of = self._encoding.text_of
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._groups: set[str] = set()  # keys of the examples that several asks follow
        self._shown: tuple[list[int], Any] = ([], None)  # the examples of the last batch, and their cache

    # --- Batches ---------------------------------------------------------------------------------------------

    def batches(self, asks: Sequence[AskT]) -> list[list[AskT]]:
        """Sort by length and cut into batches. The longest come first, so that a lack of memory shows early.

        A batch ends where asks become much shorter, to avoid padding. Queries are grouped by the examples before them,
        so that the examples are computed once for all of them.
        """
        self._shown = ([], None)  # a model in training may have learnt since then
        sizes = {ask.id: self.num_tokens(ask) for ask in asks}
        shown = {ask.id: _examples_of(ask) for ask in asks}
        asked = Counter(shown.values())
        self._groups = {key for key, number in asked.items() if key and number >= MIN_ALIKE}
        shown = {ask_id: key if key in self._groups else "" for ask_id, key in shown.items()}
        longest: dict[str, int] = {}
        for ask in asks:
            longest[shown[ask.id]] = max(sizes[ask.id], longest.get(shown[ask.id], 0))
        batches: list[list[AskT]] = []
        for ask in sorted(asks, key=lambda ask: (-longest[shown[ask.id]], shown[ask.id], -sizes[ask.id], ask.id)):
            widest = sizes[batches[-1][0].id] if batches else 0
            alike = sizes[ask.id] > widest * MIN_FILL and (not batches or shown[ask.id] == shown[batches[-1][0].id])
            if batches and alike and len(batches[-1]) < min(self._batch_rows, max(1, self._batch_tokens // widest)):
                batches[-1].append(ask)
            else:
                batches.append([ask])
        return batches

    def num_tokens(self, ask: Request | Query) -> int:
        """How many tokens it needs in the cache: those of the text, and those that may be written."""
        extra = ask.max_new_tokens if isinstance(ask, Request) else 0
        return len(self._encoding.ids(ask)) + extra

    def _num_shared(self, rows: list[list[int]]) -> int:
        """How many tokens all rows begin with, without the last token of any row; 0 if there are too few."""
        return common_length(rows) if self._share_prefix else 0

    def _padded(self, rows: list[list[int]], num_shared: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, (rows, width) each, laid out as [shared][padding][rest]."""
        width = max(map(len, rows))
        ids = [row[:num_shared] + [self._pad] * (width - len(row)) + row[num_shared:] for row in rows]
        mask = [[1] * num_shared + [0] * (width - len(row)) + [1] * (len(row) - num_shared) for row in rows]
        return self._tensor(ids), self._tensor(mask)

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, device=self._model.device)

    # --- Text ------------------------------------------------------------------------------------------------

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        return [self._completion(request, found) for request, found in zip(batch, self.sample(batch), strict=True)]

    def _completion(self, request: Request, found: Sample | None) -> Completion:
        if found is None:
            return Completion(id=request.id, text="", num_tokens=0, finish="too_long")
        kept = found.reply[:-1] if found.ended else found.reply
        finish: Literal["stop", "length"] = "stop" if found.ended else "length"
        return Completion(id=request.id, text=self.text_of(kept), num_tokens=len(kept), finish=finish)

    @torch.inference_mode()
    def sample(self, batch: Sequence[Request]) -> list[Sample | None]:
        """Return the token ids for each request, or None if the request does not fit the context."""
        rows = [self._encoding.ids(request) for request in batch]
        fits = [len(row) + request.max_new_tokens <= self._context for row, request in zip(rows, batch, strict=True)]
        results: list[Sample | None] = [None] * len(batch)
        todo = [index for index, fit in enumerate(fits) if fit]
        if todo:
            replies = self._replies([rows[index] for index in todo], [batch[index] for index in todo])
            for index, reply in zip(todo, replies, strict=True):
                ended = bool(reply) and reply[-1] in self._chat.stop_ids
                results[index] = Sample(prompt=rows[index], reply=reply, ended=ended)
        return results

    def _replies(self, rows: list[list[int]], batch: Sequence[Request]) -> list[list[int]]:
        """The tokens of each reply, up to the end token or the limit."""
        limits = [request.max_new_tokens for request in batch]
        sampler = SeededSampler(
            [request.seed for request in batch],
            [request.temperature for request in batch],
            [request.top_p for request in batch],
        )
        if self._share_prefix:
            num_shared = self._num_shared(rows)
            ids, mask = self._padded(rows, num_shared)
            return decode(self._model, ids, mask, num_shared, sampler, limits, self._chat.stop_ids)
        ids, mask = self._padded(rows, 0)
        with self._own_settings():
            output = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(limits),
                do_sample=False,
                logits_processor=[sampler],
                eos_token_id=sorted(self._chat.stop_ids),
                pad_token_id=self._pad,
            )
        drawn = output[:, ids.shape[1] :].tolist()
        return [self._cut(tokens, limit) for tokens, limit in zip(drawn, limits, strict=True)]

    def fits(self, request: Request) -> bool:
        """Whether prompt and reply fit the model's context."""
        return self.num_tokens(request) <= self._context

    def stream(self, request: Request) -> Iterator[str]:
        """Yield a reply in pieces while it is drawn. Joined and stripped, they are the text that ``generate`` returns,
        unless the model writes thoughts. The reply ends where the iterator is closed."""
        with self._own_settings():
            ids, stops = self._tensor([self._encoding.ids(request)]), self._chat.stop_ids
            yield from in_pieces(self._model, self._encoding.tokenizer, ids, request, stops, self._pad)

    @contextmanager
    def _own_settings(self) -> Iterator[None]:
        """Generate without the settings that the model was saved with, such as a repetition penalty, suppressed tokens
        or beams: texts would not come from the model's distribution, which is also what methods train on."""
        saved = self._model.generation_config
        self._model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            self._model.generation_config = saved

    def _cut(self, tokens: list[int], limit: int) -> list[int]:
        """Cut after the first end token, or at the limit."""
        end = next((i for i, token in enumerate(tokens[:limit]) if token in self._chat.stop_ids), limit)
        return tokens[: end + 1][:limit]

    # --- Log-probabilities -----------------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, batch: Sequence[Query]) -> list[Answer]:
        fitting = [query for query in batch if len(self._encoding.ids(query)) <= self._context]
        choices = self._score_choices([query for query in fitting if isinstance(query, ChoiceQuery)])
        replies = self._score_replies([query for query in fitting if isinstance(query, ReplyQuery)])
        found = {answer.id: answer for answer in (*choices, *replies)}
        return [found.get(query.id, Answer(id=query.id, logprobs=[])) for query in batch]

    def _score_choices(self, batch: list[ChoiceQuery]) -> list[Answer]:
        if not batch:
            return []
        rows = [self._encoding.ids(query) for query in batch]
        logprobs = self._logits(rows, self._prefix_of(rows, batch[0]), 1)[:, -1].float().log_softmax(-1)
        return [
            Answer(id=query.id, logprobs=row[self._encoding.choice_ids(query)].tolist())
            for query, row in zip(batch, logprobs, strict=True)
        ]

    def _score_replies(self, batch: list[ReplyQuery]) -> list[Answer]:
        if not batch:
            return []
        rows = [self._encoding.ids(query) for query in batch]
        replies = [self._chat.reply_ids(query.reply) for query in batch]
        # The shared prefix must end before the position that predicts the first token of any reply.
        asked = [row[: len(row) - len(reply)] for row, reply in zip(rows, replies, strict=True)]
        prefix = self._prefix_of(asked, batch[0])
        answers = []
        for start in range(0, len(batch), SCORED_ROWS):
            part = slice(start, start + SCORED_ROWS)
            # All rows end in the same column (padding is on the left), so the last positions contain every reply.
            logits = self._logits(rows[part], prefix, max(map(len, replies[part])) + 1)
            for query, reply, row in zip(batch[part], replies[part], logits, strict=True):
                logprobs = row[-len(reply) - 1 : -1].float().log_softmax(-1)
                taken = logprobs.gather(1, self._tensor(reply)[:, None])
                answers.append(Answer(id=query.id, logprobs=[float(taken.mean())]))
        return answers

    def _prefix_of(self, rows: list[list[int]], ask: Query) -> tuple[int, Any]:
        """How many tokens these rows share, and the key-value cache of these tokens for one row (None: no tokens).

        If all rows begin with the examples of ``ask``, which others follow, too, it is these, and the batch before may
        have computed them. That depends only on what ``batches`` got, so a resumed run gets the same numbers.
        """
        if not self._share_prefix:
            return 0, None
        examples = self._tokens_before(ask)
        if examples and all(len(row) > len(examples) and row[: len(examples)] == examples for row in rows):
            if self._shown[0] != examples:
                self._shown = examples, cache_of(self._model, self._tensor([examples]))
            return len(examples), self._shown[1]
        num_shared = common_length(rows)
        return num_shared, cache_of(self._model, self._tensor([rows[0][:num_shared]])) if num_shared else None

    def _tokens_before(self, ask: Query) -> list[int]:
        """The tokens of the examples before a question, whatever is asked; none if no others follow them."""
        if _examples_of(ask) not in self._groups:
            return []
        dialogues = [[*ask.messages[:-1], Message(role="user", content=text)] for text in ("?", "1")]
        rows = [self._chat.prompt_ids(turns) for turns in dialogues]
        return rows[0][: common_length(rows)]

    def _logits(self, rows: list[list[int]], prefix: tuple[int, Any], num_last: int) -> torch.Tensor:
        """Logits of the last ``num_last`` positions: (rows, num_last, vocabulary). ``prefix``: see ``_prefix_of``."""
        num_shared, cache = prefix[0], deepcopy(prefix[1])  # other rows may continue it, too
        ids, mask = self._padded(rows, num_shared)
        if cache is not None:
            cache.batch_repeat_interleave(len(rows))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return self._model(
            input_ids=ids[:, num_shared:],
            attention_mask=mask,
            position_ids=positions[:, num_shared:],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=num_last,
        ).logits


def _examples_of(ask: Request | Query) -> str:
    """A key for the turns before the question if the ask is a query with examples; otherwise an empty string."""
    return cache_key({"turns": ask.messages[:-1]}) if len(ask.messages) > 2 and not isinstance(ask, Request) else ""
