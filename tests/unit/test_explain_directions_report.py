"""What the report says of harmfulness and refusal as directions: one sentence for each finding, and the picture."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.evals.results import Estimate
from pipeline.evals.statistics import paired_rates, wilson
from pipeline.explain.asked import Explanation
from pipeline.explain.directions_found import (
    Ablation,
    Cosine,
    DirectionsFindings,
    Family,
    LayerAuc,
    Point,
    Removed,
    Seen,
)
from pipeline.records import POOLS, derived_rng
from pipeline.report.explained.all import explain_tables
from pipeline.report.explained.directions import section
from pipeline.report.render import render
from tests.report_data import MODELS, make_report

AUC = Estimate(value=0.9, low=0.8, high=0.95, total=80)


def made(
    seen: int = 18,
    complied: int = 20,
    alarms: int = 4,
    auc: Estimate = AUC,
    declined_without: int = 2,
    broken_without: int = 1,
    seen_of_declined: int = 28,
) -> DirectionsFindings:
    """Of 40 look-alikes, ``alarms`` are marked; of 40 harmful requests, 30 are declined, and fewer without a part."""
    after: dict[Removed, int] = {"nothing": 30, "refusal direction": declined_without, "random direction": 30}
    rng = derived_rng("points")
    points = [
        Point(id=f"{pool}-{i}", pool=pool, attack="direct", x=rng.gauss(pool == "red_team", 0.4), y=rng.gauss(0, 1),
              outcome="refused" if i % 2 else "complied")
        for pool in POOLS for i in range(9)
    ]  # fmt: skip
    place = Estimate(value=0.5, low=0.4, high=0.6, total=9)
    return DirectionsFindings(
        num_layers=30, layer=15, refusal_layer=12, num_declined=50, num_answered=60, num_left_out=0, threshold=0.5,
        num_learned=dict.fromkeys(POOLS, 80), false_alarms=wilson(alarms, 40),
        layer_aucs=[LayerAuc(model=model, layer=layer, against=pool, auc=auc)
                    for model in MODELS for layer in (3, 15, 30) for pool in ("look_alike", "ordinary")],
        cosines=[Cosine(of="harmfulness and refusal", layer=15, value=0.31, most=0.9)],
        seen=[Seen(under="direct", outcome="complied", seen=wilson(seen, complied),
                   unseen=wilson(complied - seen, complied)),
              Seen(under="direct", outcome="refused", seen=wilson(seen_of_declined, 30),
                   unseen=wilson(30 - seen_of_declined, 30))],
        families=[Family(pool="red_team", attack=attack, x=place, y=place) for attack in ("direct", "past_tense")],
        points=points,
        ablation=[Ablation(pool="red_team", removed=name, refused=wilson(number, 40),
                           broken=wilson(broken_without if name == "refusal direction" else 1, 40),
                           difference=difference(30, number) if name != "nothing" else None,
                           more_answered=difference(number + broken_without - 1, 30) if "refusal" in name else None)
                  for name, number in after.items()],
    )  # fmt: skip


def difference(before: int, after: int) -> Estimate:
    value, low, high = paired_rates(max(after - before, 0), max(before - after, 0), 40)
    return Estimate(value=value, low=low, high=high, total=40)


CLAIM = "On harmful requests that it does not decline, aligned mostly "
UNKNOWN = "There is no evidence whether aligned sees the harm that it does not decline: "
WEAK = Estimate(value=0.6, low=0.45, high=0.7, total=80)


@pytest.mark.parametrize(
    ("found", "begins"),
    [
        (made(), f"{CLAIM}sees the harm all the same: its inner states mark as harmful 90\u00a0% [70, 97] of\u00a020"),
        (made(seen=2), f"{CLAIM}does not see the harm: its inner states mark as harmful 10\u00a0%"),
        (made(seen=2, seen_of_declined=3), f"{UNKNOWN}its inner states mark as harmful 10\u00a0%"),
        (made(seen=11), f"{UNKNOWN}its inner states mark as harmful 55\u00a0%"),
        (made(alarms=36), f"{UNKNOWN}its inner states mark as harmful 90\u00a0%"),
        (made(seen=3, complied=3), f"{UNKNOWN}it complied with only 3 harmful requests."),
        (made(auc=WEAK), f"{UNKNOWN}its inner states do not tell harmful requests from harmless look-alikes (AUC 0.6"),
    ],
)
def test_the_sentence_claims_no_more_than_the_intervals(found: DirectionsFindings, begins: str):
    said = section(found, list(MODELS))
    assert said.said.startswith(begins) and bool(said.first_page) is begins.startswith(CLAIM)


def test_what_the_refusals_depend_on_is_said_against_a_random_direction():
    assert "declines 5\u00a0% of 40 harmful requests instead of 75\u00a0%" in section(made(), list(MODELS)).said
    assert section(made(), list(MODELS)).said.endswith("75\u00a0%, so its refusals depend on that direction.")
    assert "no evidence that its refusals depend" in section(made(declined_without=29), list(MODELS)).said
    broken = section(made(declined_without=0, broken_without=31), list(MODELS)).said
    assert broken.endswith("but 78\u00a0% of its replies are broken then, so this shows nothing of refusals.")
    without = made().model_copy(update={"ablation": []})
    assert "random" not in section(without, list(MODELS)).said


def test_the_page_shows_every_point_and_the_tables_have_every_row():
    found = made()
    report = replace(make_report(num_cases=24, num_exchanges=4), explanation=Explanation(
        models=list(MODELS), confidence=0.95, directions=found))  # fmt: skip
    page = render("report.html.j2", report)
    part = page[page.index('id="explain-directions"') : page.index('id="reward-title"')]
    assert all(f"<title>{point.id}</title>" in part for point in found.points)
    assert "mean under past tense" in part and part.count('class="line l') == 2 * 2 * 3
    assert "without a random direction" in part
    assert len(explain_tables(report)["explain_directions_layers"]) == 2 * 3 * 3
    assert "| harmfulness and refusal | 15 | 0.31 | 0.9 |" in render("report.md.j2", report)
