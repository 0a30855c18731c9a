"""The order of training rows: rows of like lengths come together, so that batches have little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler

from pipeline.training.rows import REPLIES


class LengthSorted(Sampler[int]):
    """Draws the same global batches as a random sampler, and sorts the rows of each by length.

    A step adds the gradients of its whole global batch, so the order of rows in it changes only the padding.

    Args:
        lengths: of all rows.
        global_batch: rows of a step, on all ranks.
    """

    def __init__(self, lengths: Sequence[int], global_batch: int, seed: int) -> None:
        self._lengths, self._global_batch = lengths, global_batch
        self._drawn = SeedableRandomSampler(lengths, data_seed=seed)

    def set_epoch(self, epoch: int) -> None:
        self._drawn.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        drawn = list(self._drawn)
        for start in range(0, len(drawn), self._global_batch):
            yield from sorted(drawn[start : start + self._global_batch], key=self._lengths.__getitem__)


class SortsByLength:
    """Mixin for trainers whose rows are token ids: it draws rows with ``LengthSorted``."""

    train_dataset: Any
    args: Any

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> LengthSorted:
        options = self.args
        rows = options.per_device_train_batch_size * options.gradient_accumulation_steps * options.world_size
        return LengthSorted([length_of(row) for row in self.train_dataset], rows, options.data_seed)


def length_of(row: dict[str, Any]) -> int:
    """Tokens of a row; of a pair, those of its prompt and its longer reply."""
    longest = max(len(row[name]) for name in ("input_ids", *REPLIES) if name in row)
    return len(row.get("prompt_ids", ())) + longest
