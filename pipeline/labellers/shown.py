"""The examples of a constitution that a labeller shows before its question, as many of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pipeline.constitution.schema import Constitution, WorkedExample
from pipeline.labellers.general import FALLBACK, general_examples

MANY = 1_000_000
T = TypeVar("T")


def alternating(first: Sequence[T], second: Sequence[T], number: int) -> list[T]:
    """The first ``number // 2`` of each kind in turn; fewer if one kind has fewer."""
    return [part for pair in list(zip(first, second, strict=False))[: number // 2] for part in pair]


def worked(constitution: Constitution, number: int) -> list[WorkedExample]:
    """Worked examples of which every second one declines a harmful request; if all are of one kind, the first ones."""
    fitting = {principle.id for principle in constitution.principles_for("red_team")}
    declining, others = list[WorkedExample](), list[WorkedExample]()
    for example in constitution.worked_examples:
        (declining if constitution.principle_for(example).id in fitting else others).append(example)
    if not declining or not others:
        return constitution.worked_examples[:number]
    return alternating(declining, others, number)


def requests(constitution: Constitution) -> tuple[list[str], list[str]]:
    """(requests to decline, requests to answer), of one length: the contrasts by hash, each with its twin.

    Without contrasts the worked examples and good answers take their place, and general ones where these lack, too.
    """
    contrasts = constitution.contrast_prompts()
    if contrasts:
        return [contrast.request for contrast, *_ in contrasts], [contrast.twin for contrast, *_ in contrasts]
    refusals, answers = replies(constitution)
    number = min(len(refusals), len(answers))
    return [request for request, _ in refusals[:number]], [request for request, _ in answers[:number]]


def replies(constitution: Constitution) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """((request, refusal) pairs, (request, answer) pairs); general ones if the constitution has none of a kind."""
    general = general_examples()[FALLBACK]
    return (
        constitution.declined([], MANY) or general.refusals,
        constitution.answered([], MANY) or general.answers,
    )
