"""TODO"""

from __future__ import annotations

from pipeline.explain.depth import DepthFindings
from pipeline.report.explained.section import Section


def section(found: DepthFindings, models: list[str]) -> Section:
    """The section, for models of which the first is that before training and the last is explained."""
    return Section(name="depth", title="TODO", said="TODO.", findings=found)
