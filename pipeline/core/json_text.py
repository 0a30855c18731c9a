"""Reads JSON text strictly: any mistake, also a repeated key, is one error with a place."""

from __future__ import annotations

import json
from typing import Any


class NotJsonError(ValueError):
    """The text is not JSON, or says two things about one key. ``line`` and ``column`` are None where the place is
    unknown."""

    def __init__(self, reason: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(reason)
        self.line, self.column = line, column


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        NotJsonError: it is not JSON, has a repeated key (Python would keep only the last), a number that is too long,
            or too many brackets inside each other.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise NotJsonError(f"not valid JSON: {error.msg}", error.lineno, error.colno) from None
    except RecursionError:
        raise NotJsonError("not valid JSON: too many brackets inside each other") from None
    except NotJsonError:
        raise
    except ValueError:  # Python refuses to read a number of more than 4300 digits
        raise NotJsonError("not valid JSON: a number has too many digits") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        shown = json.dumps(pairs[keys.index(twice)][1])[:40]
        raise NotJsonError(f"key {twice!r} is repeated (first with the value {shown})")
    return found
