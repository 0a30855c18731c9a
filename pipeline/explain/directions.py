"""Does the model not see the harm, or does it see it and not decline?"""

from __future__ import annotations

from pipeline.core.errors import NotMeasuredError
from pipeline.core.settings import Settings
from pipeline.explain.base import Findings, Material, Question


class DirectionsConfig(Settings):
    """TODO"""

    enabled: bool = True
    """Answer this question."""


class DirectionsFindings(Findings):
    """TODO"""


class Directions(Question):
    """Does the model not see the harm, or does it see it and not decline?"""

    name = "directions"

    def answer(self, config: DirectionsConfig, material: Material) -> DirectionsFindings:
        raise NotMeasuredError("it is not built yet")
