"""What ``cai verify`` prints."""

from __future__ import annotations

from pipeline.evidence.verify import Verification

MOST = 20  # one changed verdict changes many numbers


def show(found: Verification) -> None:
    """Print what was checked, what was not counted again, and each problem."""
    width = max(map(len, found.said), default=0)
    for label, text in found.said.items():
        print(f"{label:<{width}}  {text}")
    if found.left_out:
        print("not counted again:")
    for sentence in found.left_out:
        print(f"  - {sentence}")
    for problem in found.problems[:MOST]:
        print(f"problem: {problem}")
    if len(found.problems) > MOST:
        print(f"… and {len(found.problems) - MOST} more.")
    number = len(found.problems)
    print(f"NOT VERIFIED: {number} {'problem' if number == 1 else 'problems'}." if number else "VERIFIED.")
