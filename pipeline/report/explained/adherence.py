"""TODO"""

from __future__ import annotations

from pipeline.explain.adherence import AdherenceFindings
from pipeline.report.explained.section import Section


def section(found: AdherenceFindings, models: list[str]) -> Section:
    """The section, for models of which the first is that before training and the last is explained."""
    return Section(name="adherence", title="TODO", said="TODO.", findings=found)
