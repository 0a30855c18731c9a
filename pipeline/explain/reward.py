"""What does the reward model like?

Length and style explain much of what reward models like (Singhal et al. 2023, arXiv 2310.03716). Here: how much of the
variance of the scores such features explain, what edits that improve no answer do to the scores, and single words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.core.errors import NotMeasuredError
from pipeline.core.log import say
from pipeline.core.settings import Settings
from pipeline.core.stage import Cost, Prepared
from pipeline.evals.judges.refusal import NAME
from pipeline.evals.knows_does import SUITES
from pipeline.evals.results import DIRECT, Estimate
from pipeline.evals.shortcuts import SHORTCUTS
from pipeline.evals.statistics import bootstrap, resampled
from pipeline.explain.base import Findings, Material, Question
from pipeline.explain.costs import direct_cases
from pipeline.explain.reward_edits import EDITS, without_words
from pipeline.explain.reward_variance import FEATURES, explained
from pipeline.records import Verdict, derive_seed

MIN_REPLIES = 40  # with 20, noise alone seems to be explained four times as often as the interval says
MOST_WORDS = 60  # of a reply whose words are left out one by one
NUM_NAMED = 3  # words of each side that the findings name

Score = Callable[[Sequence[tuple[Verdict, str]]], list[float]]
"""(a verdict, the reply to score in its place) → scores on one scale."""


class RewardTasteConfig(Settings):
    """What raises the scores of the run's reward model beyond what was asked."""

    enabled: bool = True
    """Answer this question. It needs a run with a reward model, or ``align.reward_model``."""
    num_replies: int = Field(default=150, ge=MIN_REPLIES)
    """How many recorded replies are scored, at most: one to each request, of a model drawn by lot."""
    num_edited: int = Field(default=30, ge=0)
    """How many of them are scored again after each edit; 0: none."""
    num_attributed: int = Field(default=4, ge=0)
    """How many of them are scored again without each of their words; 0: none."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Feature(_Part):
    """Share of the variance of the scores, adjusted R²: by this feature alone, and of what the others leave."""

    name: str
    alone: Estimate
    beyond: Estimate


class Effect(_Part):
    """What an edit does to the score of the same reply, in standard deviations of all scores; replies that it leaves as
    they are do not count."""

    edit: str
    change: Estimate
    num_left_out: int


class WordEffect(_Part):
    """How much lower the score is without the word, in standard deviations of all scores: the mean over its
    occurrences."""

    word: str
    effect: Estimate


class RewardTasteFindings(Findings):
    """What the reward model likes, on recorded replies to requests without an attack."""

    reward_model: str
    num_replies: int
    num_not_scored: int
    """Replies whose score is not a number; they are left out."""
    together: Estimate
    """Share of the variance that all features explain, adjusted R²."""
    features: list[Feature]
    effects: list[Effect]
    words: list[WordEffect]
    """The words with the highest and the lowest effects, the highest first."""

    @property
    def shortcut(self) -> Feature | None:
        """Length or a refusal at the start, if it explains more than half of the variance alone."""
        found = [f for f in self.features if f.name in SHORTCUTS and (f.alone.value or 0) > 0.5]
        return max(found, key=lambda feature: feature.alone.value or 0, default=None)

    @property
    def liked_most(self) -> Effect | None:
        """The edit with the highest gain among those whose whole interval is above zero."""
        gains = [effect for effect in self.effects if effect.change.low is not None and effect.change.low > 0]
        return max(gains, key=lambda effect: effect.change.value or 0, default=None)


class RewardTaste(Question):
    """What does the reward model like?"""

    name = "reward"

    def reads(self, config: RewardTasteConfig) -> dict[str, object]:
        return {"judge": NAME, "edits": list(EDITS), "features": list(FEATURES)}

    def cost(self, config: RewardTasteConfig, prepared: Prepared) -> Cost:
        """Calls are replies to score."""
        if "reward" not in prepared.stages and prepared.config.align.reward_model is None:
            return Cost()
        num_replies = min(config.num_replies, len(direct_cases(prepared)))
        return Cost(num_calls=num_replies + config.num_edited * len(EDITS) + config.num_attributed * MOST_WORDS)

    def answer(self, config: RewardTasteConfig, material: Material) -> RewardTasteFindings:
        from pipeline.engines.reward_model import load_reward_model, scoring_precision

        path = _path(material)
        replies = drawn_replies(material, config.num_replies)
        if len(replies) < MIN_REPLIES:
            raise NotMeasuredError(f"the run has {len(replies)} judged replies, and {MIN_REPLIES} are needed")
        dtype = scoring_precision(material.context.model.precision)
        model = load_reward_model(path, dtype=dtype, batch_rows=material.context.launch.batch_rows)

        def score(asked: Sequence[tuple[Verdict, str]]) -> list[float]:
            with material.context.meter.running():
                return model.score([verdict.case.messages for verdict, _ in asked], [reply for _, reply in asked])

        say(f"explain: scores of {len(replies)} replies, {config.num_edited} of them edited")
        return taste(replies, score, config, material.confidence, _name(material))


def _path(material: Material) -> str:
    """Of the run's reward model, or of the published one that it was trained with."""
    folder, published = material.folder("reward"), material.context.alignment.reward_model
    if folder is None and published is None:
        raise NotMeasuredError("the run has no reward model")
    return str(folder / "model") if folder else str(published)


def _name(material: Material) -> str:
    from pipeline.engines.models import short_name

    return "of the run" if material.folder("reward") else short_name(_path(material))


def drawn_replies(material: Material, most: int) -> list[Verdict]:
    """One reply to each request without an attack, of a model drawn by lot; at most so many, chosen by hash."""
    by_case: dict[str, list[Verdict]] = {}
    for verdicts in material.verdicts.values():
        for verdict in verdicts:
            case = verdict.case
            plain = case.attack == DIRECT and case.group is None and SUITES.intersection(case.suites)
            if plain and verdict.replied and verdict.reply.strip():
                by_case.setdefault(case.id, []).append(verdict)
    drawn = [mine[derive_seed(material.seed, "reward", name) % len(mine)] for name, mine in by_case.items()]
    return sorted(drawn, key=lambda verdict: derive_seed(material.seed, "scored", verdict.case.id))[:most]


def taste(
    replies: Sequence[Verdict], score: Score, config: RewardTasteConfig, confidence: float, name: str
) -> RewardTasteFindings:
    """The findings for a reward model that is given as a function."""
    given = score([(verdict, verdict.reply) for verdict in replies])
    known = [(verdict, value) for verdict, value in zip(replies, given, strict=True) if math.isfinite(value)]
    if len(known) < MIN_REPLIES:
        raise NotMeasuredError(f"{len(known)} replies have a score that is a number, and {MIN_REPLIES} are needed")
    spread = float(np.std([value for _, value in known])) or 1.0

    def scaled(asked: Sequence[tuple[Verdict, str]]) -> list[float]:
        return [value / spread for value in score(asked)]

    known = [(verdict, value / spread) for verdict, value in known]
    columns = {
        feature: [function(verdict.case.prompt.request, verdict.reply) for verdict, _ in known]
        for feature, function in FEATURES.items()
    }
    found = explained([value for _, value in known], columns, confidence)
    attributed = [pair for pair in known if len(pair[0].reply.split()) <= MOST_WORDS][: config.num_attributed]
    return RewardTasteFindings(
        reward_model=name,
        num_replies=len(known),
        num_not_scored=len(replies) - len(known),
        together=found["together"]["all"],
        features=[Feature(name=feature, **found[feature]) for feature in FEATURES],
        effects=effects(known[: config.num_edited], scaled, confidence),
        words=extremes(word_effects(attributed, scaled, confidence)),
    )


def effects(known: Sequence[tuple[Verdict, float]], score: Score, confidence: float) -> list[Effect]:
    """The mean paired change of the score by each edit."""
    asked = [
        (edit, verdict, before, edited)
        for edit, function in EDITS.items()
        for verdict, before in known
        if (edited := function(verdict.reply)) is not None
    ]
    after = score([(verdict, edited) for _, verdict, _, edited in asked])
    rows = []
    for edit in EDITS if known else ():
        changes = [
            new - before
            for (name, _, before, _), new in zip(asked, after, strict=True)
            if name == edit and math.isfinite(new)
        ]
        rows.append(Effect(edit=edit, change=_mean(changes, confidence), num_left_out=len(known) - len(changes)))
    return rows


def word_effects(known: Sequence[tuple[Verdict, float]], score: Score, confidence: float) -> list[WordEffect]:
    """Leave one word out (Li et al. 2016, arXiv 1612.08220): the score of a reply minus that without the word."""
    asked = [
        (word, verdict, before, rest)
        for verdict, before in known
        for word, rest in without_words(verdict.reply)
        if rest
    ]
    after = score([(verdict, rest) for _, verdict, _, rest in asked])
    by_word: dict[str, list[float]] = {}
    for (word, _, before, _), new in zip(asked, after, strict=True):
        bare = word.strip(".,:;!?\"'()*").casefold()
        if bare and math.isfinite(new):
            by_word.setdefault(bare, []).append(before - new)
    return [WordEffect(word=word, effect=_mean(found, confidence)) for word, found in by_word.items()]


def extremes(found: Sequence[WordEffect]) -> list[WordEffect]:
    """The words with the highest and the lowest effects, the highest first."""
    ranked = sorted(found, key=lambda row: -(row.effect.value or 0))
    return [*ranked[:NUM_NAMED], *ranked[NUM_NAMED:][-NUM_NAMED:]]


def _mean(values: Sequence[float], confidence: float) -> Estimate:
    return resampled(bootstrap(values, confidence=confidence), len(values)) if values else Estimate(value=None)
