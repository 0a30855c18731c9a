"""What ``--json`` prints."""

from __future__ import annotations

import json


def print_json(value: object) -> None:
    """Print one JSON value, to be read by a program."""
    print(json.dumps(value, indent=1, ensure_ascii=False))
