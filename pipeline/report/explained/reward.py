"""TODO"""

from __future__ import annotations

from pipeline.explain.reward import RewardTasteFindings
from pipeline.report.explained.section import Section


def section(found: RewardTasteFindings, models: list[str]) -> Section:
    """The section, for models of which the first is that before training and the last is explained."""
    return Section(name="reward", title="TODO", said="TODO.", findings=found)
