"""How deep is the alignment: by reply position, after a prefilled beginning, after a little fine-tuning?"""

from __future__ import annotations

from pipeline.core.errors import NotMeasuredError
from pipeline.core.settings import Settings
from pipeline.explain.base import Findings, Material, Question


class DepthConfig(Settings):
    """TODO"""

    enabled: bool = True
    """Answer this question."""


class DepthFindings(Findings):
    """TODO"""


class Depth(Question):
    """How deep is the alignment: by reply position, after a prefilled beginning, after a little fine-tuning?"""

    name = "depth"

    def answer(self, config: DepthConfig, material: Material) -> DepthFindings:
        raise NotMeasuredError("it is not built yet")
