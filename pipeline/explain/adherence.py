"""Does each model keep to each principle, by the labeller and by a second judge?"""

from __future__ import annotations

from pipeline.core.errors import NotMeasuredError
from pipeline.core.settings import Settings
from pipeline.explain.base import Findings, Material, Question


class AdherenceConfig(Settings):
    """TODO"""

    enabled: bool = True
    """Answer this question."""


class AdherenceFindings(Findings):
    """TODO"""


class Adherence(Question):
    """Does each model keep to each principle, by the labeller and by a second judge?"""

    name = "adherence"

    def answer(self, config: AdherenceConfig, material: Material) -> AdherenceFindings:
        raise NotMeasuredError("it is not built yet")
