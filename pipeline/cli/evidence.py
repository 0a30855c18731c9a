"""What ``cai bundle``, ``cai verify`` and ``cai approve`` do and print."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.cli.codes import NOT_VERIFIED, exit_code
from pipeline.cli.json_value import print_json

if TYPE_CHECKING:
    from pipeline.evidence.verify import Verification

MOST = 20  # one changed verdict changes many numbers


def bundle(args: argparse.Namespace) -> int:
    from pipeline.chain.bundling import bundle_run
    from pipeline.evidence.bundle import Options

    options = Options(
        redact=args.redact,
        weights=args.weights,
        sign=args.sign,
        mapping=args.mapping,
        base_flop=args.base_flop,
        watts=args.watts,
    )
    print(bundle_run(args.output_dir, args.run, args.output, options))
    return 0


def verify(args: argparse.Namespace) -> int:
    from pipeline.evidence.verify import verify as check

    found = check(args.bundle.expanduser(), args.key)
    if args.json:
        print_json({"verified": not found.problems, **asdict(found)})
    else:
        show(found)
    return NOT_VERIFIED if found.problems else 0


def approve(args: argparse.Namespace) -> int:
    from pipeline.chain.bundling import approve_run

    return exit_code(approve_run(args.output_dir, args.run, args.override, args.by, args.note))


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
