"""From queries to results: success against budget, by family, and paired differences. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from pipeline.adversary.config import SearchConfig
from pipeline.adversary.families import family_of
from pipeline.adversary.records import ALL, Difference, FamilySuccess, ModelCounts, Query, Refused, Success
from pipeline.adversary.search import Found
from pipeline.evals.changes import change_pairs
from pipeline.evals.results import Estimate
from pipeline.evals.statistics import holm, mcnemar, paired_rates, wilson
from pipeline.records import Verdict

First = Mapping[str, int | None]
"""prompt id → the number of the first query that succeeded; None: none did"""
Hits = Mapping[str, bool]


def first_successes(queries: Sequence[Query]) -> dict[str, int | None]:
    """Requests in the order in which they were first asked. A request of which no reply could be judged is left out."""
    first: dict[str, int | None] = {}
    for query in queries:
        if query.verdict.outcome == "unjudged":
            continue
        prompt_id = query.verdict.case.prompt.id
        known = first.setdefault(prompt_id, None)
        if query.succeeded and (known is None or query.number < known):
            first[prompt_id] = query.number
    return first


def within(first: First, budget: int) -> dict[str, bool]:
    """Whether each request was broken with at most so many queries."""
    return {prompt_id: number is not None and number <= budget for prompt_id, number in first.items()}


def best_of(firsts: Sequence[First]) -> dict[str, int | None]:
    """The first success of any attacker, if each has the budget for itself."""
    best: dict[str, int | None] = {}
    for prompt_id, number in chain.from_iterable(first.items() for first in firsts):
        known = best.setdefault(prompt_id, None)
        if number is not None and (known is None or number < known):
            best[prompt_id] = number
    return best


def by_attacker(found: Sequence[Found], model: str) -> dict[str, dict[str, int | None]]:
    """Attacker → its first successes on one model; ``all`` for any of them, if there are several."""
    firsts = {one.attacker: first_successes(one.queries) for one in found if one.model == model}
    return firsts | ({ALL: best_of(list(firsts.values()))} if len(firsts) > 1 else {})


def successes(found: Sequence[Found], models: Sequence[str], config: SearchConfig, confidence: float) -> list[Success]:
    """Success against budget for each model and attacker, with Wilson intervals over the requests."""
    return [
        Success(model=model, attacker=attacker, budget=budget, success=rate(within(first, budget), confidence))
        for model in models
        for attacker, first in by_attacker(found, model).items()
        for budget in config.budgets
        if budget <= (config.largest_budget if attacker == ALL else config.budget_of(attacker))
    ]


def rate(hits: Hits, confidence: float) -> Estimate:
    return wilson(sum(hits.values()), len(hits), confidence)


def by_family(found: Sequence[Found], confidence: float) -> list[FamilySuccess]:
    """Each request counts once for a family, however often it was tried, so that the cases are independent. A family
    that comes in a composition shares its success."""
    rows = []
    for one in found:
        hits: dict[str, dict[str, bool]] = {}
        for query in one.queries:
            if query.verdict.outcome == "unjudged":
                continue
            for family in map(family_of, query.steps):
                mine = hits.setdefault(family, {})
                prompt_id = query.verdict.case.prompt.id
                mine[prompt_id] = mine.get(prompt_id, False) or query.succeeded
        rows += [
            FamilySuccess(model=one.model, attacker=one.attacker, family=family, success=rate(mine, confidence))
            for family, mine in sorted(hits.items())
        ]
    return rows


def refusals(verdicts: Sequence[Verdict]) -> dict[tuple[str, bool], dict[str, bool]]:
    """(model, attacked) → prompt id → whether the look-alike was refused; unjudged ones are left out."""
    found: dict[tuple[str, bool], dict[str, bool]] = {}
    for verdict in verdicts:
        if verdict.outcome != "unjudged":
            cell = found.setdefault((verdict.model, verdict.case.attack != "direct"), {})
            cell[verdict.case.prompt.id] = verdict.outcome == "refused"
    return found


def refused_rates(verdicts: Sequence[Verdict], confidence: float) -> list[Refused]:
    return [
        Refused(model=model, attacked=attacked, refused=rate(hits, confidence))
        for (model, attacked), hits in refusals(verdicts).items()
    ]


def differences(
    found: Sequence[Found], look_alikes: Sequence[Verdict], models: Sequence[str], confidence: float
) -> list[Difference]:
    """The last model compared with the first and with the one before it, at the whole budget; Holm's correction over
    all of them."""
    refused = refusals(look_alikes)
    pairs: list[tuple[str, str, str, Hits, Hits]] = []
    for before, after in change_pairs(models):
        old, new = by_attacker(found, before), by_attacker(found, after)
        pairs += [
            (f"success:{name}", before, after, _broken(old[name]), _broken(new[name])) for name in old if name in new
        ]
        pairs += [
            (measure, before, after, refused[before, attacked], refused[after, attacked])
            for attacked, measure in ((False, "refused"), (True, "refused_under_attack"))
            if (before, attacked) in refused and (after, attacked) in refused
        ]
    made = [_difference(*pair, confidence) for pair in pairs if pair[3].keys() & pair[4].keys()]
    corrected = holm([one.p for one in made])
    return [_decided(one, p, 1 - confidence) for one, p in zip(made, corrected, strict=True) if p is not None]


def _broken(first: First) -> dict[str, bool]:
    return {prompt_id: number is not None for prompt_id, number in first.items()}


def _difference(measure: str, before: str, after: str, old: Hits, new: Hits, confidence: float) -> Difference:
    common = [prompt_id for prompt_id in old if prompt_id in new]
    gained = sum(new[i] and not old[i] for i in common)
    lost = sum(old[i] and not new[i] for i in common)
    value, low, high = paired_rates(gained, lost, len(common), confidence)
    p = mcnemar(gained, lost)
    estimate = Estimate(value=value, low=low, high=high, total=len(common))
    return Difference(
        measure=measure,
        before=before,
        after=after,
        difference=estimate,
        p=p,
        p_corrected=p,
        verdict="no evidence of change",
    )


def _decided(one: Difference, p: float, level: float) -> Difference:
    """Fewer successes and fewer refusals of harmless requests are better."""
    low, high, value = one.difference.low, one.difference.high, one.difference.value
    assert low is not None and high is not None and value is not None
    changed = p < level and not low <= 0 <= high
    verdict = ("better" if value < 0 else "worse") if changed else "no evidence of change"
    return one.model_copy(update={"p_corrected": p, "verdict": verdict})


def counts(found: Sequence[Found]) -> list[ModelCounts]:
    return [
        ModelCounts(
            model=one.model,
            attacker=one.attacker,
            num_queries=len(one.queries),
            num_broken=sum(query.verdict.outcome == "broken" for query in one.queries),
            num_unjudged=sum(query.verdict.outcome == "unjudged" for query in one.queries),
            num_unwritten=one.num_unwritten,
        )
        for one in found
    ]
