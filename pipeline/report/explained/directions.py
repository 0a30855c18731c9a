"""TODO"""

from __future__ import annotations

from pipeline.explain.directions import DirectionsFindings
from pipeline.report.explained.section import Section


def section(found: DirectionsFindings, models: list[str]) -> Section:
    """The section, for models of which the first is that before training and the last is explained."""
    return Section(name="directions", title="TODO", said="TODO.", findings=found)
