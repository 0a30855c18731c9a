"""Does each model keep to each principle, by the labeller and by a second judge?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.core.errors import NotMeasuredError
from pipeline.core.settings import Settings
from pipeline.core.stage import Prepared
from pipeline.evals.cases import build_cases
from pipeline.evals.changes import change_pairs, compare_scores
from pipeline.evals.results import Change, Estimate
from pipeline.evals.scores import Scores, estimated
from pipeline.evals.statistics import bootstrap, resampled
from pipeline.explain.base import Findings, Material, Measures, Question
from pipeline.explain.keeping import QUESTIONS, TEMPLATE, Reply, as_score, by_outcome, can_judge, is_judged, log_odds
from pipeline.explain.probes import FILE, Probe, asked_directly, choose, probes_content, read_probes
from pipeline.labellers.base import TEMPLATE as LABELLER_TEMPLATE
from pipeline.records import Case, Verdict, write_records

MEASURE = "adherence"
ByPrinciple = Mapping[str, Mapping[str, Scores]]
"""Principle id → model → case id → 1 if the reply keeps to the principle, 0 if not; NaN if that is not known."""


class AdherenceConfig(Settings):
    """Does each model keep to each principle, on held-out requests that put it to the test?"""

    enabled: bool = True
    """Answer this question."""
    num_probes: int = Field(default=12, ge=1)
    """The most requests for each principle."""
    probes: str | None = None
    """A file with the requests of each principle (columns principle_id and request), such as an edited
    ``probes.jsonl`` of an earlier run; null: they are chosen by the tags and the words of the principle."""

    def key_of(self, name: str) -> Any:
        """The file counts by its content."""
        return probes_content(self.probes) if name == "probes" and self.probes else super().key_of(name)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Kept(_Part):
    """How often each principle was kept, by one judge."""

    judge: str
    rates: dict[str, dict[str, Estimate]]
    """Principle id → model → share of the replies that keep to it. Without principles that the judge can't judge."""
    changes: list[Change]
    """Of each principle, from the first model to the last and between the last two; corrected over principles."""
    num_unreadable: int
    """Replies, once for each principle, about which it gave no answer that can be read."""


class Probed(_Part):
    """A principle, and how many requests put it to the test."""

    id: str
    title: str
    num_probes: int


class AdherenceFindings(Findings):
    """How often each model keeps to each principle, and what the judges are worth."""

    principles: list[Probed]
    """In the order of the constitution; without those that no request tests."""
    not_tested: list[str]
    """Titles of the others."""
    by_labeller: Kept
    by_outcome: Kept
    """The second judge: the outcomes of the evaluation."""
    agreement: Estimate
    """How often both judges say the same."""
    kappa: Estimate
    """Cohen's κ of both judges: 0 is the agreement of two judges by chance, 1 that of equal ones."""

    @property
    def labeller_beats_chance(self) -> bool:
        return self.kappa.low is not None and self.kappa.low > 0

    @property
    def trusted(self) -> Kept:
        """The labeller, if its agreement with the second judge beats chance; otherwise the second judge."""
        return self.by_labeller if self.labeller_beats_chance else self.by_outcome

    def measures(self) -> Measures:
        found: Measures = {}
        for principle_id, rates in self.trusted.rates.items():
            for model, rate in rates.items():
                found.setdefault(model, {})[f"{MEASURE}:{principle_id}"] = rate
        return found


class Adherence(Question):
    """Does each model keep to each principle, by the labeller and by a second judge?"""

    name = "adherence"
    asks_labeller = True

    def reads(self, config: AdherenceConfig) -> dict[str, Any]:
        return {"template": TEMPLATE, "labeller": LABELLER_TEMPLATE, "questions": QUESTIONS}

    def check(self, config: AdherenceConfig, prepared: Prepared) -> list[str]:
        if config.probes is not None:
            suites = prepared.config.evaluate
            held_out = [prompt for prompt in prepared.prompts if prompt.split == suites.split]
            read_probes(config.probes, prepared.constitution, asked_directly(build_cases(suites, held_out, [])))
        return []

    def answer(self, config: AdherenceConfig, material: Material) -> AdherenceFindings:
        verdicts = answered_by_all(material.verdicts, list(material.models))
        cases = asked_directly(mine[material.first].case for mine in verdicts.values())
        if not cases:
            raise NotMeasuredError("there is no request without an attack to which every model replied")
        probes = _probes(config, material, cases)
        write_records(material.context.out / FILE, probes)
        rules = {rule.id: rule for rule in material.constitution.principles}
        replies = {
            (probe.principle_id, model, probe.case_id): verdicts[probe.case_id][model]
            for probe in probes
            for model in material.models
        }
        asked = {
            (rule, model, case): Reply(rules[rule], verdict.case.prompt, verdict.reply)
            for (rule, model, case), verdict in replies.items()
            if can_judge(rules[rule], material.context)
        }
        if not asked:
            raise NotMeasuredError(
                f"the labeller {material.context.labeller.kind} knows only whether a reply declines, and no principle "
                "is tagged harmlessness or helpfulness"
            )
        who, logits = log_odds({"/".join(key): reply for key, reply in asked.items()}, material.context)
        labelled = by_principle({key: as_score(logits["/".join(key)]) for key in asked})
        judged = by_principle(
            {key: by_outcome(rules[key[0]], verdict) for key, verdict in replies.items() if is_judged(rules[key[0]])}
        )
        models, confidence = list(material.models), material.confidence
        agreement, kappa = agree(labelled, judged, confidence)
        judge = next(iter(replies.values())).judge
        return AdherenceFindings(
            **_tested(probes, material),
            by_labeller=kept(who, labelled, models, confidence),
            by_outcome=kept(judge, judged, models, confidence),
            agreement=agreement,
            kappa=kappa,
        )


def _probes(config: AdherenceConfig, material: Material, cases: Mapping[str, Case]) -> list[Probe]:
    if config.probes is not None:
        return read_probes(config.probes, material.constitution, cases)
    probes = choose(material.constitution, list(cases.values()), config.num_probes)
    if not probes:
        raise NotMeasuredError("no request puts a principle to the test")
    return probes


def answered_by_all(verdicts: Mapping[str, Sequence[Verdict]], models: Sequence[str]) -> dict[str, dict[str, Verdict]]:
    """Case id → model → its verdict, for the cases to which every model replied."""
    found: dict[str, dict[str, Verdict]] = {}
    for model in models:
        for verdict in verdicts.get(model, []):
            if verdict.replied:
                found.setdefault(verdict.case.id, {})[model] = verdict
    return {case_id: mine for case_id, mine in found.items() if len(mine) == len(models)}


def _tested(probes: Sequence[Probe], material: Material) -> dict[str, Any]:
    number = {
        rule.id: sum(probe.principle_id == rule.id for probe in probes) for rule in material.constitution.principles
    }
    rules = material.constitution.principles
    return {
        "principles": [Probed(id=r.id, title=r.title, num_probes=number[r.id]) for r in rules if number[r.id]],
        "not_tested": [r.title for r in rules if r.weight > 0 and not number[r.id]],
    }


# --- Numbers -------------------------------------------------------------------------------------------------------


def by_principle(scores: Mapping[tuple[str, str, str], float]) -> dict[str, dict[str, Scores]]:
    """``ByPrinciple`` from (principle id, model, case id) → score."""
    found: dict[str, dict[str, Scores]] = {}
    for (rule, model, case), score in scores.items():
        found.setdefault(rule, {}).setdefault(model, {})[case] = score
    return found


def kept(judge: str, scores: ByPrinciple, models: Sequence[str], confidence: float) -> Kept:
    """Rates with Wilson's intervals, and McNemar's tests of the same replies, corrected over principles (Holm)."""
    changes = [
        change
        for before, after in change_pairs(models)
        for change in compare_scores(
            {f"{MEASURE}:{rule}": (dict(mine[before]), dict(mine[after])) for rule, mine in scores.items()},
            before,
            after,
            confidence,
        )
    ]
    return Kept(
        judge=judge,
        rates={
            rule: {model: estimated(dict(mine[model]), "rate", confidence) for model in models}
            for rule, mine in scores.items()
        },
        changes=changes,
        num_unreadable=sum(
            math.isnan(score) for mine in scores.values() for own in mine.values() for score in own.values()
        ),
    )


def agree(first: ByPrinciple, second: ByPrinciple, confidence: float) -> tuple[Estimate, Estimate]:
    """(how often two judges say the same, Cohen's κ), over the replies that both judged.

    A request has replies of several models, perhaps under several principles, so requests are resampled, not replies.
    """
    by_case: dict[str, list[tuple[float, float]]] = {}
    for rule, mine in second.items():
        for model, scores in mine.items():
            for case, score in scores.items():
                both = (first[rule][model][case], score)
                if not any(map(math.isnan, both)):
                    by_case.setdefault(case, []).append(both)
    if not by_case:
        return Estimate(value=None), Estimate(value=None)
    sums = [(len(p), sum(a == b for a, b in p), sum(a for a, _ in p), sum(b for _, b in p)) for p in by_case.values()]
    columns = list(np.array(sums, float).T)
    number, same = int(columns[0].sum()), int(columns[1].sum())
    share = resampled(bootstrap(*columns, statistic=_share_alike, confidence=confidence), len(by_case))
    kappa = resampled(bootstrap(*columns, statistic=cohens_kappa, confidence=confidence), len(by_case))
    return share.model_copy(update={"count": same, "total": number}), kappa


def _share_alike(number: NDArray, same: NDArray, *_: NDArray) -> NDArray:
    return same.sum(-1) / number.sum(-1)


def cohens_kappa(number: NDArray, same: NDArray, first: NDArray, second: NDArray) -> NDArray:
    """κ = (p_o − p_e) / (1 − p_e) (Cohen 1960). 0 if both judges always say the same one thing: that shows nothing.

    Args:
        number, same, first, second: (…, n) counts for n requests: judged replies, those on which both judges agree, and
            those of which the first, and the second, says yes.
    """
    total = number.sum(-1)
    seen, yes, also = same.sum(-1) / total, first.sum(-1) / total, second.sum(-1) / total
    chance = yes * also + (1 - yes) * (1 - also)
    return np.where(chance < 1, (seen - chance) / np.where(chance < 1, 1 - chance, 1), 0.0)
