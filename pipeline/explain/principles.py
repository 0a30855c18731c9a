"""Which principle did the work, from the records of the run?"""

from __future__ import annotations

from pipeline.core.errors import NotMeasuredError
from pipeline.core.settings import Settings
from pipeline.explain.base import Findings, Material, Question


class PrinciplesConfig(Settings):
    """TODO"""

    enabled: bool = True
    """Answer this question."""


class PrinciplesFindings(Findings):
    """TODO"""


class Principles(Question):
    """Which principle did the work, from the records of the run?"""

    name = "principles"

    def answer(self, config: PrinciplesConfig, material: Material) -> PrinciplesFindings:
        raise NotMeasuredError("it is not built yet")
