"""TODO"""

from __future__ import annotations

from pipeline.explain.principles import PrinciplesFindings
from pipeline.report.explained.section import Section


def section(found: PrinciplesFindings, models: list[str]) -> Section:
    """The section, for models of which the first is that before training and the last is explained."""
    return Section(name="principles", title="TODO", said="TODO.", findings=found)
