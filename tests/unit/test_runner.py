"""A full disk and a lack of memory become one sentence; other errors are raised unchanged."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.chain.runner import _explained
from pipeline.core.errors import StageError
from pipeline.stages import STAGES

SFT = next(stage for stage in STAGES if stage.name == "sft")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full; free some space"),
        (ValueError("I/O error: No space left on device (os error 28)"), "is full; free some space"),
        (MemoryError(), "out of memory; lower launch.batch_rows"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory; lower launch.batch_rows"),
    ],
)
def test_a_full_disk_and_too_little_memory_are_one_sentence(error: Exception, expected: str):
    with pytest.raises(StageError, match=expected), _explained(SFT, Path("cache/sft.partial")):
        raise error


def test_anything_else_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError), _explained(SFT, Path("cache/sft.partial")):
        raise ZeroDivisionError
