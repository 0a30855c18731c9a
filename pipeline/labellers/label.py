"""The labelling loop of all labellers: sample principles, ask the queries, read the answers, average the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pipeline.constitution.schema import Constitution, Principle
from pipeline.core.stage import Cost
from pipeline.core.text import about_tokens
from pipeline.engines.base import Answer, Ask, Completion, Engine, EngineConfig, Query, Request, chooser
from pipeline.engines.votes import cost_of_choices
from pipeline.engines.worklist import Logbook, generate_all, score_all
from pipeline.labellers.base import LABELLERS, TEMPLATE, Labeller, LabellerConfig, soft_label
from pipeline.records import Comparison, Judgement, Preference, derived_rng

Drawn = Sequence[tuple[Comparison, Principle]]
"""Comparisons, each once with every principle under which it is judged."""
AskedT = TypeVar("AskedT", Request, Query)
FoundT = TypeVar("FoundT", Completion, Answer)


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
    drawn = draw(comparisons, constitution, config, seed, purpose)
    return label_drawn(drawn, engine, config, constitution, seed, logbook, purpose, Known())


class Known:
    """Results by what was asked, whatever its id, so that no question is put twice."""

    def __init__(self) -> None:
        self._results: dict[str, Completion | Answer] = {}

    def __contains__(self, ask: Ask) -> bool:
        return _content(ask) in self._results

    def add(self, ask: Ask, result: Completion | Answer) -> None:
        self._results[_content(ask)] = result

    def complete(
        self, asks: Sequence[AskedT], answer: Callable[[list[AskedT]], dict[str, FoundT]]
    ) -> dict[str, FoundT]:
        """Ask id → result. ``answer`` is called with those asks that are not known."""
        found = answer([ask for ask in asks if ask not in self])
        return {ask.id: found[ask.id] if ask.id in found else self._known(ask) for ask in asks}

    def _known(self, ask: Ask) -> Any:
        return replace(self._results[_content(ask)], id=ask.id)


def _content(ask: Ask) -> str:
    return repr(replace(ask, id=""))


def label_drawn(
    drawn: Drawn,
    engine: Engine,
    config: LabellerConfig,
    constitution: Constitution,
    seed: int,
    logbook: Logbook,
    purpose: str,
    known: Known,
    opposed: bool = False,
) -> list[Preference]:
    """``label`` under given principles. ``opposed``: see ``Labeller``."""
    labeller = LABELLERS[config.kind](config, constitution, seed)
    labeller.opposed = opposed
    requests = [request for pair in drawn for request in labeller.reasoning(*pair)]
    thoughts = known.complete(
        requests,
        lambda new: generate_all(engine, f"{purpose}: chains of thought", new, logbook, f"{purpose}-thoughts"),
    )
    queries = {query.id: query for pair in drawn for query in labeller.queries(*pair, thoughts)}
    answers = known.complete(
        list(queries.values()), lambda new: score_all(engine, purpose, new, logbook, f"{purpose}-answers")
    )
    comparisons = {comparison.id: comparison for comparison, _ in drawn}
    judgements: dict[str, list[Judgement]] = {row_id: [] for row_id in comparisons}
    for comparison, principle in drawn:
        judgements[comparison.id].append(labeller.judge(comparison, principle, answers, thoughts))
    return [
        Preference(
            comparison=comparison,
            judgements=judgements[row_id],
            probability_a=soft_label([j.logit for j in judgements[row_id]], config.clamp),
            labeller=f"{config.kind}:{chooser(engine)}",
            template=TEMPLATE,
        )
        for row_id, comparison in comparisons.items()
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
        tokens: of the replies in one call, beside the text that the comparisons have.
    """
    labeller = LABELLERS[config.kind](config, constitution, seed)
    return cost_of_asks(*placeholders(labeller, draw(comparisons, constitution, config, seed, purpose)), engine, tokens)


def placeholders(labeller: Labeller, drawn: Drawn) -> tuple[list[Request], list[Query]]:
    """What ``label_drawn`` asks at most, with placeholders for chains of thought."""
    requests = [request for pair in drawn for request in labeller.reasoning(*pair)]
    thoughts = {r.id: Completion(id=r.id, text="…", num_tokens=1, finish="stop") for r in requests}
    queries = {query.id: query for pair in drawn for query in labeller.queries(*pair, thoughts)}
    return requests, list(queries.values())


def cost_of_asks(requests: Sequence[Request], queries: Sequence[Query], engine: EngineConfig, tokens: int) -> Cost:
    """What these calls cost, with their examples and rules. ``tokens``: as for ``cost``."""
    num_written = sum(request.max_new_tokens for request in requests)
    thoughts = num_written // max(len(requests), 1)  # the queries repeat them
    reasoning = Cost(
        num_calls=len(requests),
        num_tokens_written=num_written,
        num_tokens_read=len(requests) * (_mean_tokens(requests) + tokens),
    )
    return Cost.sum([reasoning, cost_of_choices(engine, len(queries), _mean_tokens(queries) + tokens + thoughts)])


def _mean_tokens(asks: Sequence[Request] | Sequence[Query]) -> int:
    texts = [turn["content"] for ask in asks for turn in ask.messages]
    return -(-about_tokens(*texts) // max(len(asks), 1))
