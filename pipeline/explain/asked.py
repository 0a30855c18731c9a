"""All questions: their settings, and what was found."""

from __future__ import annotations

from pydantic import Field

from pipeline.core.settings import Settings
from pipeline.explain.adherence import Adherence, AdherenceConfig, AdherenceFindings
from pipeline.explain.base import Findings, Measures, Question
from pipeline.explain.depth import Depth, DepthConfig, DepthFindings
from pipeline.explain.directions import Directions, DirectionsConfig, DirectionsFindings
from pipeline.explain.principles import Principles, PrinciplesConfig, PrinciplesFindings
from pipeline.explain.reward import RewardTaste, RewardTasteConfig, RewardTasteFindings

QUESTIONS: tuple[Question, ...] = (Adherence(), Principles(), Depth(), Directions(), RewardTaste())


class ExplainConfig(Settings):
    """Questions about the finished run: which principle did what, how deep it goes, and what the reward model likes."""

    enabled: bool = False
    """Answer them after the evaluation. ``cai explain RUN`` does it for a finished run."""
    adherence: AdherenceConfig = AdherenceConfig()
    """Does each model keep to each principle?"""
    principles: PrinciplesConfig = PrinciplesConfig()
    """Which principle did the work?"""
    depth: DepthConfig = DepthConfig()
    """How deep is the alignment?"""
    directions: DirectionsConfig = DirectionsConfig()
    """Does the model not see the harm, or see it and not decline?"""
    reward: RewardTasteConfig = RewardTasteConfig()
    """What does the reward model like?"""

    @property
    def asked(self) -> list[Question]:
        """The questions that are switched on."""
        return [question for question in QUESTIONS if getattr(self, question.name).enabled]


class Explanation(Findings):
    """``explanation.json``: what was found. None: not asked, or a note says why it was not measured."""

    models: list[str]
    """The first is the model before training; the last is the one that is explained."""
    confidence: float
    adherence: AdherenceFindings | None = None
    principles: PrinciplesFindings | None = None
    depth: DepthFindings | None = None
    directions: DirectionsFindings | None = None
    reward: RewardTasteFindings | None = None
    notes: list[str] = Field(default=[])

    @property
    def findings(self) -> dict[str, Findings]:
        """Question → its findings, for those that were answered."""
        answers = {question.name: getattr(self, question.name) for question in QUESTIONS}
        return {name: found for name, found in answers.items() if found is not None}

    def measures(self) -> Measures:
        measures: Measures = {}
        for found in self.findings.values():
            for model, mine in found.measures().items():
                measures.setdefault(model, {}).update(mine)
        return measures
