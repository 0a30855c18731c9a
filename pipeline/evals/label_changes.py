"""Ask the labeller again about some comparisons, each time with one thing changed, and count the labels that turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from pipeline.constitution.schema import Constitution, Principle
from pipeline.core import distributed
from pipeline.core.log import say
from pipeline.core.stage import Cost
from pipeline.core.text import beginning
from pipeline.engines.base import Answer, Completion, Engine, EngineConfig
from pipeline.engines.worklist import Logbook
from pipeline.evals.made_of import AI, CONSTITUTION, COUNTERFACTUAL, POOL, MadeOf, Turned, said
from pipeline.evals.statistics import wilson
from pipeline.labellers.base import LABELLERS, OPPOSITE_WORDS, LabellerConfig
from pipeline.labellers.label import Drawn, Known, cost_of_asks, draw, label_drawn, placeholders
from pipeline.records import Comparison, Preference, derive_seed

# --- The changes ---------------------------------------------------------------------------------------------------


class Opposite:
    """A principle whose words say the opposite; its id and its tags stay."""

    def __init__(self, principle: Principle) -> None:
        self._principle = principle

    def __getattr__(self, name: str) -> Any:
        text = getattr(self._principle, name)
        return OPPOSITE_WORDS[name].format(text) if name in OPPOSITE_WORDS else text


def opposite(comparison: Comparison, principle: Principle) -> tuple[Comparison, Principle]:
    return comparison, cast(Principle, Opposite(principle))  # a copy would read fields that the stage does not declare


def swapped(comparison: Comparison, principle: Principle) -> tuple[Comparison, Principle]:
    return comparison.swap(), principle


def refiled(comparison: Comparison, principle: Principle) -> tuple[Comparison, Principle]:
    pool = "look_alike" if comparison.prompt.pool == "red_team" else "red_team"
    prompt = comparison.prompt.model_copy(update={"pool": pool})
    return comparison.model_copy(update={"prompt": prompt}), principle


def cut(comparison: Comparison, principle: Principle) -> tuple[Comparison, Principle] | None:
    """The longer reply gets the length of the shorter one; None if both are equally long, or nothing else is left."""
    a, b = comparison.reply_a, comparison.reply_b
    most = min(len(a), len(b))
    cut_a, cut_b = beginning(a, most), beginning(b, most)
    if len(a) == len(b) or not cut_a or not cut_b or cut_a == cut_b:
        return None
    return comparison.model_copy(update={"reply_a": cut_a, "reply_b": cut_b}), principle


CHANGES: dict[str, Callable[[Comparison, Principle], tuple[Comparison, Principle] | None]] = {
    "words": opposite,
    "order": swapped,
    "pool": refiled,
    "length": cut,
}


def _asked(config: LabellerConfig) -> list[str]:
    """The changes for which the labeller is asked again."""
    known = {"order"} if LABELLERS[config.kind].asks_both_orders else set()
    return [name for name in CHANGES if name not in known]


def _changed(name: str, drawn: Drawn) -> Drawn:
    return [changed for pair in drawn if (changed := CHANGES[name](*pair)) is not None]


# --- Asking again --------------------------------------------------------------------------------------------------


def made_of(
    preferences: Sequence[Preference],
    engine: Engine | None,
    config: LabellerConfig,
    constitution: Constitution,
    seed: int,
    logbook: Logbook,
    purpose: str,
    num_probed: int,
) -> MadeOf:
    """Say in the log what the labels are made of, and return it. All ranks must call it.

    Args:
        preferences: all labels of the run. Those that no model gave are only counted.
        engine: of the labeller; None: no label is an AI's.
        purpose: that of ``label``, in whose logs the first answers are: what was asked there is not asked again.
        num_probed: labels for which the labeller is asked again; 0: no change is measured.
    """
    labelled = [p for p in preferences if p.probability_a is not None]
    by_ai = [p for p in labelled if p.labeller not in (CONSTITUTION, POOL, COUNTERFACTUAL)]
    decided = [p for p in by_ai if p.probability_a != 0.5]
    sample = sorted(decided, key=lambda p: derive_seed(seed, p.comparison.id, "probed"))[:num_probed]
    turned: dict[str, Turned] = {}
    assert engine is not None or not by_ai
    if sample and engine:
        drawn = [(p.comparison, constitution.principle(j.principle_id)) for p in sample for j in p.judgements]
        known = _known(drawn, config, constitution, seed, logbook, purpose)
        for name in _asked(config):
            changed = _changed(name, drawn)
            log, opposed = f"{purpose}-{name}", name == "words"
            again = label_drawn(changed, engine, config, constitution, seed, logbook, log, known, opposed)
            turned[name] = _compared(sample, again, mirrored=name == "order")
    if num_probed and by_ai and LABELLERS[config.kind].asks_both_orders:
        turned["order"] = _in_one_order(by_ai)
    given = {who: sum(p.labeller == who for p in labelled) for who in (CONSTITUTION, POOL, COUNTERFACTUAL)}
    if not given[COUNTERFACTUAL]:
        del given[COUNTERFACTUAL]
    made = MadeOf(
        num_labels_by={AI: len(by_ai), **given},
        num_labels_undecided=len(by_ai) - len(decided),
        num_labels_probed=len(sample),
        labels_that_turn={name: turned[name] for name in CHANGES if name in turned},
    )
    if distributed.is_main():
        say(f"labels: {said(made)}")
    return made


def _known(
    drawn: Drawn, config: LabellerConfig, constitution: Constitution, seed: int, logbook: Logbook, purpose: str
) -> Known:
    """The answers from which the labels of ``drawn`` came."""
    labeller, known = LABELLERS[config.kind](config, constitution, seed), Known()
    thoughts, answers = (logbook.log(f"{purpose}-{what}") for what in ("thoughts", "answers"))
    requests = [request for pair in drawn for request in labeller.reasoning(*pair)]
    written = {
        r.id: Completion(**thoughts[r.id]) if r.id in thoughts else Completion.unanswered(r.id) for r in requests
    }
    for request in requests:
        if request.id in thoughts:
            known.add(request, written[request.id])
    for query in (query for pair in drawn for query in labeller.queries(*pair, written)):
        if query.id in answers:
            known.add(query, Answer(**answers[query.id]))
    return known


def _compared(before: Sequence[Preference], after: Sequence[Preference], mirrored: bool) -> Turned:
    """Compare labels that prefer one reply with those after a change.

    Args:
        mirrored: the replies of ``after`` have changed places.
    """
    found = {p.comparison.id: p.probability_a for p in after}
    pairs = [(p.probability_a, found[p.comparison.id]) for p in before if p.comparison.id in found]
    read = [(own, 1 - other if mirrored else other) for own, other in pairs if own is not None and other is not None]
    num_turned = sum((own - 0.5) * (other - 0.5) <= 0 for own, other in read)
    return Turned(
        share=wilson(num_turned, len(read)),
        num_undecided=sum(other == 0.5 for _, other in read),
        num_unreadable=len(pairs) - len(read),
        num_not_changed=len(before) - len(pairs),
    )


def _in_one_order(preferences: Sequence[Preference]) -> Turned:
    """How many labels the order would turn if it was not averaged out: the same letter wins in both orders."""
    flips = [[j.flipped for j in p.judgements if j.flipped is not None] for p in preferences]
    read = [flipped for flipped in flips if flipped]
    return Turned(
        share=wilson(sum(2 * sum(flipped) >= len(flipped) for flipped in read), len(read)),
        num_unreadable=len(flips) - len(read),
    )


def cost_of_changes(
    comparisons: Sequence[Comparison],
    engine: EngineConfig,
    config: LabellerConfig,
    constitution: Constitution,
    seed: int,
    purpose: str,
    tokens: int,
    num_probed: int,
) -> Cost:
    """What ``made_of`` asks at most; the replies of the comparisons may be placeholders.

    Args:
        tokens: of the replies in one call, beside the text that the comparisons have.
    """
    replies = {"reply_a": "One reply. It is the longer one.", "reply_b": "Another one."}  # so that one can be cut
    sample = [comparison.model_copy(update=replies) for comparison in comparisons[:num_probed]]
    labeller = LABELLERS[config.kind](config, constitution, seed)
    drawn = draw(sample, constitution, config, seed, purpose)
    known = Known()
    for ask in (ask for asks in placeholders(labeller, drawn) for ask in asks):
        known.add(ask, Answer.unanswered(ask.id))
    costs = []
    for name in _asked(config):
        labeller = LABELLERS[config.kind](config, constitution, seed)
        labeller.opposed = name == "words"
        requests, queries = placeholders(labeller, _changed(name, drawn))
        new = [r for r in requests if r not in known], [q for q in queries if q not in known]
        costs.append(cost_of_asks(*new, engine, tokens))
    return Cost.sum(costs)
