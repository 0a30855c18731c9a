"""Checkpoints of the policy-gradient loop: one file each. The main rank writes it atomically."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from pipeline.core import distributed


class Checkpoints:
    """Files ``<kind>-<step>.pt`` in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
        distributed.barrier()

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write a temporary file and rename it, so that a killed run leaves no partial file. Call on every rank."""
        if distributed.is_main():
            draft = self._folder / f".{name}.draft"
            torch.save(state, draft)
            draft.replace(self._path(name))
        distributed.barrier()

    def load(self, name: str, restore: Callable[[dict[str, Any]], None]) -> None:
        restore(torch.load(self._path(name), weights_only=True, map_location="cpu"))

    def has(self, name: str) -> bool:
        return self._path(name).exists()

    def newest(self, kind: str) -> int | None:
        """The highest step of this kind, or None."""
        return max(self._steps(kind), default=None)

    def keep(self, kind: str, steps: Collection[int]) -> None:
        """Delete the checkpoints of this kind at all other steps. Call on every rank."""
        if distributed.is_main():
            for step in self._steps(kind):
                if step not in steps:
                    self._path(f"{kind}-{step}").unlink()
        distributed.barrier()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.pt"

    def _steps(self, kind: str) -> list[int]:
        return [int(path.stem.rpartition("-")[2]) for path in self._folder.glob(f"{kind}-*.pt")]
