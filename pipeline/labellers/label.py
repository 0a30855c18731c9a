"""The labelling loop of all labellers: sample principles, ask the queries, read the answers, average the logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.constitution.schema import Constitution, Principle
from pipeline.core.stage import Cost
from pipeline.engines.base import Completion, Engine, EngineConfig, chooser
from pipeline.engines.votes import cost_of_choices
from pipeline.engines.worklist import Logbook, generate_all, score_all
from pipeline.labellers.base import LABELLERS, TEMPLATE, LabellerConfig, soft_label
from pipeline.records import Comparison, Judgement, Preference, derived_rng


def draw(
    comparisons: Iterable[Comparison], constitution: Constitution, config: LabellerConfig, *seed: object
) -> list[tuple[Comparison, Principle]]:
    """Return (comparison, principle) pairs: each comparison with each distinct principle sampled for it."""
    by_pool = LABELLERS[config.kind].draws_by_pool
    return [
        (comparison, principle)
        for comparison in comparisons
        for principle in unique(
            constitution.sample(
                comparison.prompt.pool if by_pool else None,
                config.num_principles,
                derived_rng(seed[0], comparison.prompt.key, *seed[1:]),
            )
        )
    ]


def unique(principles: Sequence[Principle]) -> list[Principle]:
    return list({principle.id: principle for principle in principles}.values())


def label(
    comparisons: Sequence[Comparison],
    engine: Engine,
    config: LabellerConfig,
    constitution: Constitution,
    seed: int,
    logbook: Logbook,
    purpose: str = "labels",
) -> list[Preference]:
    """Label every comparison under the principles that are sampled for it. Preferences are in the order of comparisons.

    Args:
        purpose: a name for the logs and part of the sampling seed: the same purpose samples the same principles.
    """
    labeller = LABELLERS[config.kind](config, constitution, seed)
    drawn = draw(comparisons, constitution, config, seed, purpose)
    requests = [request for pair in drawn for request in labeller.reasoning(*pair)]
    thoughts = generate_all(engine, f"{purpose}: chains of thought", requests, logbook, f"{purpose}-thoughts")
    queries = {query.id: query for pair in drawn for query in labeller.queries(*pair, thoughts)}
    answers = score_all(engine, purpose, list(queries.values()), logbook, f"{purpose}-answers")
    judgements: dict[str, list[Judgement]] = {comparison.id: [] for comparison in comparisons}
    for comparison, principle in drawn:
        judgements[comparison.id].append(labeller.judge(comparison, principle, answers, thoughts))
    return [
        Preference(
            comparison=comparison,
            judgements=judgements[comparison.id],
            probability_a=soft_label([j.logit for j in judgements[comparison.id]], config.clamp),
            labeller=f"{config.kind}:{chooser(engine)}",
            template=TEMPLATE,
        )
        for comparison in comparisons
    ]


def num_refused(logbook: Logbook, purpose: str) -> int:
    """How many chains of thought and answers of ``label`` the server refused for good."""
    thoughts, answers = (logbook.log(f"{purpose}-{what}").rows.values() for what in ("thoughts", "answers"))
    return sum(row["finish"] == "refused" for row in thoughts) + sum(row.get("refused", False) for row in answers)


def num_failed(logbook: Logbook, purpose: str) -> int:
    """How many chains of thought and answers of ``label`` the server did not give."""
    return sum(len(logbook.log(f"{purpose}-{what}").failures) for what in ("thoughts", "answers"))


def cost(
    comparisons: Sequence[Comparison],
    engine: EngineConfig,
    config: LabellerConfig,
    constitution: Constitution,
    seed: int,
    purpose: str,
    tokens: int,
) -> Cost:
    """What ``label`` asks at most; the replies of the comparisons may be placeholders.

    Args:
        tokens: read by one call.
    """
    labeller = LABELLERS[config.kind](config, constitution, seed)
    drawn = draw(comparisons, constitution, config, seed, purpose)
    requests = [request for pair in drawn for request in labeller.reasoning(*pair)]
    thoughts = {r.id: Completion(id=r.id, text="…", num_tokens=1, finish="stop") for r in requests}
    reasoning = Cost(
        num_calls=len(requests),
        num_tokens_written=sum(request.max_new_tokens for request in requests),
        num_tokens_read=len(requests) * tokens,
    )
    queries = {query.id for pair in drawn for query in labeller.queries(*pair, thoughts)}
    return Cost.sum([reasoning, cost_of_choices(engine, len(queries), tokens)])
