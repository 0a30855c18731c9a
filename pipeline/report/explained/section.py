"""What the report shows of one question."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.explain.base import Findings

Table = list[dict[str, Any]]
"""Rows with the same keys, which are the column titles."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One answered question. Its picture is ``templates/page/explain/NAME.html.j2``, which gets it as ``section``."""

    name: str
    title: str
    """The question."""
    said: str
    """The answer, in one or two sentences that a reader without training in machine learning understands."""
    is_warning: bool = False
    """The answer is bad news."""
    first_page: str = ""
    """One sentence for the first page; empty: none."""
    tables: dict[str, Table] = field(default_factory=dict)
    """Name → rows, for Markdown, CSV and JSON."""
    findings: Findings
