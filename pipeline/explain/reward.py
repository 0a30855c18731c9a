"""What does the reward model like?"""

from __future__ import annotations

from pipeline.core.errors import NotMeasuredError
from pipeline.core.settings import Settings
from pipeline.explain.base import Findings, Material, Question


class RewardTasteConfig(Settings):
    """TODO"""

    enabled: bool = True
    """Answer this question."""


class RewardTasteFindings(Findings):
    """TODO"""


class RewardTaste(Question):
    """What does the reward model like?"""

    name = "reward"

    def answer(self, config: RewardTasteConfig, material: Material) -> RewardTasteFindings:
        raise NotMeasuredError("it is not built yet")
