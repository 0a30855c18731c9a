"""One process or many: the same stage code, told apart by Accelerate's ``PartialState``."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import device


@cache
def state() -> PartialState:
    import torch
    from accelerate import PartialState

    # Ranks wait for each other between long batches; the default of ten minutes is too short for a large model.
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
