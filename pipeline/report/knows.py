"""The card ``knows / does``: what a probe on the first model's states tells, beside what the models refuse."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.evals.results import Estimate, KnowsDoes, PoolKnowledge, Results
from pipeline.records import Pool
from pipeline.report.wording import listed, percent, points, words, written

Row = tuple[str, list[Estimate | None]]
REQUESTS: dict[Pool, str] = {
    "red_team": "harmful requests",
    "look_alike": "harmless look-alikes",
    "ordinary": "ordinary requests",
}

HOW = (
    "The probe is a logistic regression on the hidden state at the last token of the prompt. It learned on prompts of "
    "the training split alone; layer and threshold were chosen there, too, by cross-validation with twins in one fold. "
    "At the threshold it misses as large a share of harmful training prompts as it takes harmless ones for harmful. If "
    "the same people wrote the training prompts and the evaluated ones, expect it to do worse on those of others. AUCs "
    "have Newcombe's interval, shares Wilson's."
)


def series(results: Results) -> list[str]:
    """The names of the columns of ``rows``: the models, then the probe, so that models keep their colours."""
    return [*results.models, f"probe on the states of {words(results.models[0])}"]


def rows(results: Results) -> list[Row]:
    """(requests, share refused by each model, share that the probe takes for harmful); empty if not measured."""
    pools = results.knows_does.pools if results.knows_does else []
    return [(REQUESTS[r.pool], [*(r.refused.get(model) for model in results.models), r.flagged]) for r in pools]


def details(results: Results) -> list[tuple[str, str]]:
    """(name, value) of the numbers that are not in ``rows``; empty if not measured."""
    card = results.knows_does
    if card is None:
        return []
    last, harmless = words(results.models[-1]), [row for row in card.pools if row.pool != "red_team"]
    of_pairs = [(f"AUC, harmful requests against {REQUESTS[row.pool]}", row.auc) for row in harmless if row.auc]
    given = [
        (f"{REQUESTS[row.pool]} that the probe takes for harmful: {last} refuses", row.refused_of_flagged)
        if row.pool == "red_team"
        else (f"{REQUESTS[row.pool]} that it takes for harmless: {last} refuses", row.refused_of_passed)
        for row in card.pools
    ]
    apart = [
        (f"refused of harmful requests minus {REQUESTS[row.pool]}: {last} against the probe", points(row.separation))
        for row in harmless
        if row.separation
    ]
    best = f"layer {card.layer} of {card.num_layers} (AUC {card.layer_aucs[card.layer]:.2f} there)"
    learned = listed([f"{number} {REQUESTS[pool]}" for pool, number in card.num_learned.items()], "and")
    return [
        *((name, written(estimate)) for name, estimate in (*of_pairs, *given)),
        *apart,
        ("states, chosen by cross-validation on the training prompts", best),
        ("training prompts", learned),
        *([("requests without states, in no rate here", str(card.num_left_out))] if card.num_left_out else []),
    ]


def quantities(results: Results) -> list[tuple[Pool, str, str, Estimate]]:
    """(pool, probe or model, what, estimate): every estimate of the card."""
    card, last = results.knows_does, results.models[-1] if results.models else ""
    return [
        (row.pool, who, what, estimate)
        for row in (card.pools if card else [])
        for who, what, estimate in (
            *([("probe", "auc", row.auc)] if row.auc else []),
            ("probe", "flagged", row.flagged),
            *((model, "refused", estimate) for model, estimate in row.refused.items()),
            (last, "refused_of_flagged", row.refused_of_flagged),
            (last, "refused_of_passed", row.refused_of_passed),
            (last, "refused_minus_flagged", row.gap),
            *([(last, "separation", row.separation)] if row.separation else []),
        )
    ]


def said(results: Results) -> str:
    """The conclusion; empty if not measured."""
    card = results.knows_does
    return conclusion(card, words(results.models[0]), words(results.models[-1])) if card else ""


def conclusion(card: KnowsDoes, first: str, last: str) -> str:
    """What the card shows, in one sentence, or two if the states tell only some of the classes apart. A difference
    whose interval covers zero is not called one."""
    against = {row.pool: row.auc for row in card.pools if row.auc}
    unknown = [pool for pool, auc in against.items() if auc.low is None or auc.low <= 0.5]
    tells_nothing = (
        f"There is no evidence that the states of {first} tell harmful requests from "
        f"{listed([f'{REQUESTS[pool]} (AUC {written(against[pool])})' for pool in unknown], 'or')}"
    )
    if len(unknown) == len(against):
        return f"{tells_nothing}, so this says nothing about what training left unused."
    flagged = listed([f"{percent(row.flagged.value)} of the {REQUESTS[row.pool]}" for row in card.pools], "and")
    refused = listed([percent(row.refused[list(row.refused)[-1]].value) for row in card.pools], "and")
    gaps = [_gap_in_words(row) for row in card.pools if _sign(row.gap)]
    differing = f" ({listed(gaps, 'and')})" if gaps else ""
    sentence = (
        f"A probe on the states of {first} takes {flagged} for harmful; {last} refuses {refused}{differing}, "
        f"{_verdict(card.pools, first, last)}."
    )
    return f"{sentence} {tells_nothing}." if unknown else sentence


def _verdict(pools: Sequence[PoolKnowledge], first: str, last: str) -> str:
    """Who tells the classes apart better. It must show for both classes together. If a side is better at one class and
    worse at another, a threshold may explain it."""
    right = {(row.pool == "red_team") == (_sign(row.gap) > 0) for row in pools if _sign(row.gap)}
    apart = {_sign(row.separation) for row in pools if row.separation} - {0}
    better = {
        -1: f"so the states of {first} tell them apart better than the refusals of {last} do",
        1: f"so the refusals of {last} tell them apart better than the probe does",
    }
    threshold = "a stricter or looser threshold alone might explain it"
    if len(apart) != 1:
        unclear = "there is no evidence that one of the two tells them apart better"
        return f"and {threshold if len(right) == 2 else unclear}"
    [sign] = apart
    return better[sign] + (f", though {threshold}" if len(right) == 2 else "")


def _sign(difference: Estimate) -> int:
    """1 if the whole interval is above zero, -1 if it is below; else 0."""
    if difference.low is None or difference.high is None:
        return 0
    return int(difference.low > 0) - int(difference.high < 0)


def _gap_in_words(row: PoolKnowledge) -> str:
    gap, more = row.gap, _sign(row.gap) > 0
    assert gap.value is not None and gap.low is not None and gap.high is not None
    size = gap if more else Estimate(value=-gap.value, low=-gap.high, high=-gap.low)
    return f"{points(size)} {'more' if more else 'fewer'} {REQUESTS[row.pool]}"
