"""Ranks and devices: the same stage code runs in one process or in many (Accelerate's ``PartialState``)."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.core.settings import RUNTIME, Settings

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import device


class LaunchConfig(Settings):
    """Where a stage runs, and on how many processes. These settings don't change its result and are in no cache key."""

    num_processes: Annotated[int, RUNTIME] = Field(default=1, ge=1)
    """Processes on this machine: CPU ranks, or one per GPU."""
    batch_rows: Annotated[int | None, RUNTIME] = Field(default=None, ge=1)
    """The most rows to generate or score at once; null: chosen from the hardware."""
    per_device_batch_size: Annotated[int | None, RUNTIME] = Field(default=None, ge=1)
    """The most rows that one device trains on at once; null: chosen from the hardware."""
    gradient_checkpointing: Annotated[bool | None, RUNTIME] = None
    """Recompute activations in the backward pass to save memory; null: only on a GPU."""


@cache
def state() -> PartialState:
    import torch
    from accelerate import PartialState

    # Ranks wait for each other between long batches. With a large model, the default of ten minutes is too short.
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    options = {"timeout": timedelta(hours=12)} if many else {}
    return PartialState(cpu=not torch.cuda.is_available(), **options)


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        state().wait_for_everyone()


def default_device() -> device:
    return state().device
