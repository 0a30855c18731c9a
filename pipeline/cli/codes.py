"""The exit codes beside those of errors (``core/errors.py``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.chain.runs import Ending

GATE_FAILED, AWAITS_APPROVAL, NOT_VERIFIED = 3, 4, 5


def exit_code(ending: Ending) -> int:
    """3 if a guideline failed; else 4 if the run awaits approval; else 0."""
    return GATE_FAILED if ending.gate == "FAIL" else AWAITS_APPROVAL if ending.awaits_approval else 0


def worst_code(codes: Iterable[int]) -> int:
    """The exit code of a sweep: a failed guideline comes before a missing approval."""
    found = set(codes)
    return next((code for code in (GATE_FAILED, AWAITS_APPROVAL) if code in found), 0)
