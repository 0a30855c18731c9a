"""The training history as a file: one JSON object per logged step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HISTORY = "history.jsonl"
HELD_OUT = "held_out.jsonl"  # the measurements of PPO, RLOO and GRPO on held-out prompts: one ``HeldOutPoint`` a line


def write_history(out: Path, history: Sequence[dict[str, Any]]) -> None:
    (out / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")


def read_history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / HISTORY).read_text(encoding="utf-8").splitlines()]
