"""Which principle did the work: planted records, of which each oddity is found and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pipeline.constitution.schema import Constitution, Principle
from pipeline.core.errors import NotMeasuredError
from pipeline.evals.made_of import CONSTITUTION, POOL
from pipeline.explain.asked import Explanation
from pipeline.explain.base import Material
from pipeline.explain.principle_counts import differ, labelled, pairs, revised, steps, word_edits
from pipeline.explain.principles import Principles, PrinciplesConfig, PrinciplesFindings
from pipeline.labellers.base import soft_label
from pipeline.labellers.choice import ABLabeller, CoTLabeller
from pipeline.records import Comparison, Exchange, Judgement, Message, Preference, Prompt, Revision
from pipeline.report.explained.principles import section
from pipeline.report.render import render
from pipeline.report.wording import written
from tests.report_data import make_report

ANSWER = "Start by opening it. Then take out what you find in there."
REFUSAL = "I won't help with that, because it would hurt somebody."


def prompt(number: int) -> Prompt:
    messages = [Message(role="user", content=f"How do I do thing {number}?")]
    return Prompt(id=f"p{number}", pool="red_team", kind="theft", split="train", messages=messages)


def preference(number: int, logits: dict[str, float | None], labeller: str = "ab:fake") -> Preference:
    comparison = Comparison(id=f"c{number}", prompt=prompt(number), reply_a=ANSWER, reply_b=REFUSAL, seed_a=1, seed_b=2)
    judgements = [Judgement(principle_id=name, logit=logit) for name, logit in logits.items()]
    label = soft_label(list(logits.values())) if logits else 1.0
    return Preference(
        comparison=comparison, judgements=judgements, probability_a=label, labeller=labeller, template="t"
    )


def exchange(number: int, *revisions: tuple[str, str], reply: str = ANSWER) -> Exchange:
    made = [
        Revision(round=n, principle_id=name, critique="c", revision=text, critique_seed=0, revision_seed=0)
        for n, (name, text) in enumerate(revisions, 1)
    ]
    return Exchange(
        prompt=prompt(number), reply=reply, reply_seed=0, revisions=made, policy="p", critic="c", template="t"
    )


def constitution(*names: str, **weights: float) -> Constitution:
    asks: dict[str, Any] = {"critique_request": "c", "revision_request": "r", "preference_question": "q"}
    rules = [Principle(id=name, title=f"Title of {name}", weight=weights.get(name, 1.0), **asks) for name in names]
    return Constitution(name="c", version="1", description="d", provenance="p", preamble="p", principles=rules)


class FakeContext:
    """What the question reads of a context."""

    def __init__(self, rules: Constitution, labeller: Any) -> None:
        self.constitution, self.labeller = rules, labeller


def answer(
    rules: Constitution,
    exchanges: Sequence[Exchange] = (),
    preferences: Sequence[Preference] = (),
    labeller: Any = None,
    **options: Any,
) -> PrinciplesFindings:
    context: Any = FakeContext(rules, labeller or ABLabeller.Config())
    material = Material(context, models={"base": "b", "aligned": "a"}, confidence=0.95, split="test")
    vars(material).update(exchanges=list(exchanges), preferences=list(preferences))  # in place of files
    return Principles().answer(PrinciplesConfig(**options), material)


# --- Revisions -----------------------------------------------------------------------------------------------------


def brute_force(a: Sequence[str], b: Sequence[str]) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(brute_force(a[1:], b) + 1, brute_force(a, b[1:]) + 1, brute_force(a[1:], b[1:]) + (a[0] != b[0]))


def test_word_edits_are_the_levenshtein_distance():
    assert word_edits("Open the door.", "open the big DOOR!") == 1
    assert word_edits("", "two words") == word_edits("two words", "") == 2
    assert word_edits("", "") == 0
    rng = random.Random(0)
    for _ in range(40):
        a, b = ([rng.choice("xyz") for _ in range(rng.randrange(6))] for _ in range(2))
        assert word_edits(" ".join(a), " ".join(b)) == brute_force(a, b), (a, b)


def test_each_revision_is_compared_with_the_text_before_it():
    second = "I won't help with that, because it could hurt somebody."  # one word of REFUSAL is another
    made = steps([exchange(1, ("one", REFUSAL), ("two", second)), exchange(2, ("two", ANSWER))])
    one, two = (revised(made[name], 0.95) for name in ("one", "two"))
    assert (one.num_revisions, two.num_revisions) == (1, 2)
    assert one.turned_to_refusal.count == one.turned_to_refusal.total == 1
    # The first revision under "two" begins with a refusal, which no revision can turn into one.
    assert (two.turned_to_refusal.count, two.turned_to_refusal.total) == (0, 1)
    assert two.words_edited.value == 0.5
    assert two.share_edited.value == pytest.approx((1 / 10 + 0) / 2)
    assert two.words_edited.low is None, "two revisions are too few for an interval"


def test_critiques_are_ranked_only_if_they_differ():
    """Ten revisions under each of two principles: of one word and of all, or all of one word."""
    little, much = ANSWER.replace("opening", "closing"), "Nothing of this."
    differing = [exchange(n, ("one", little) if n % 2 else ("two", much)) for n in range(20)]
    same = [exchange(n, ("one" if n % 2 else "two", little if n % 4 < 2 else much)) for n in range(20)]
    rules = constitution("one", "two")
    said = section(answer(rules, differing), ["base", "aligned"]).said
    assert "under “Title of two” changed the replies most (100" in said and "under “Title of one” least (8" in said
    assert "no evidence that critiques under one principle change more" in section(answer(rules, same), ["base"]).said
    assert differ([[0.2, 0.2], [0.2]]) is None and differ([[0.2, 0.4]]) is None


# --- Labels --------------------------------------------------------------------------------------------------------


def test_a_label_turns_without_the_principle_whose_logit_decided_it():
    labels = [
        preference(1, {"x": 3.0, "y": -1.0}),  # +1: turns without x, not without y
        preference(2, {"x": 1.0, "y": 2.0}),  # turns without neither
        preference(3, {"x": -2.0, "y": 0.5, "z": 0.5}),  # −1/3: turns without x
        preference(4, {"x": 4.0}),  # by x alone
        preference(5, {"x": None, "y": 1.0}),
        preference(6, {"x": 1.0, "y": -1.0}),  # prefers neither
        preference(7, {"y": 1.0, "z": -1.0, "x": 1.0}),  # +1/3: without x it prefers neither, and the same without y
    ]
    x, y = (labelled(name, labels, (0.0, 1.0), 0.95) for name in "xy")
    assert (x.num_labels, x.num_unreadable, x.num_alone) == (7, 1, 1)
    assert (x.turned.count, x.turned.total) == (3, 4)
    assert (y.num_labels, y.num_unreadable, y.num_alone) == (6, 0, 1)
    assert (y.turned.count, y.turned.total) == (1, 4)
    assert x.mean_logit.value == pytest.approx((3 + 1 - 2 + 4 + 1 + 1) / 6)
    assert (x.prefers_a.count, x.prefers_a.total) == (5, 6)
    # Against the sum of the others: −1, +2, +1, −1; the fifth sum is 0.
    assert (x.with_others.count, x.with_others.total) == (1, 4)


def test_labels_are_combined_as_the_labeller_combines_them():
    """Within its clamp, and a clamp at one half prefers neither."""
    labels = [preference(1, {"x": 3.0, "y": 1.0})]
    assert labelled("x", labels, (0.4, 0.6), 0.95).turned.count == 0
    assert labelled("x", labels, (0.4, 0.5), 0.95).turned.count == 1
    assert CoTLabeller.Config().clamp == (0.4, 0.6)


def test_pairs_that_never_met_are_left_out_and_p_is_corrected():
    judged = [{"x": 1.0, "y": -1.0}] * 10 + [{"x": 1.0, "z": 1.0}] * 3 + [{"x": 0.0, "z": 1.0}]
    xy, xz = pairs(judged, ["x", "y", "z"], 0.95)
    assert (xy.first, xy.second, xy.agreement.count, xy.agreement.total) == ("x", "y", 0, 10)
    assert (xz.first, xz.second, xz.agreement.count, xz.agreement.total) == ("x", "z", 3, 3)
    assert xy.p_corrected == pytest.approx(2 * 2 * 0.5**10)
    assert xz.p_corrected == pytest.approx(2 * 0.5**3)


def noisy(rng: random.Random, truth: float, size: float, right: float = 0.8) -> float:
    return (truth if rng.random() < right else -truth) * size * rng.uniform(0.9, 1.1)


def planted(num_labels: int = 400) -> list[Preference]:
    """Four principles follow the truth with errors; ``again`` repeats one of them, ``coin`` follows nothing, and
    ``faint`` follows the truth with a logit that never decides. ``this`` and ``that`` judge other pairs, and mostly say
    the opposite of each other."""
    rng, labels = random.Random(2), []
    for number in range(num_labels):
        truth = rng.choice([-1.0, 1.0])
        logits: dict[str, float | None] = {name: noisy(rng, truth, 1.0) for name in ("one", "two", "three", "four")}
        logits["again"] = (logits["one"] or 0) * (1.3 if rng.random() < 0.99 else -1.3)
        logits |= {"coin": noisy(rng, 1.0, 1.0, right=0.5), "faint": 1e-6 * noisy(rng, truth, 1.0)}
        labels.append(preference(number, logits))
        side = noisy(rng, truth, 1.0, right=0.5)
        labels.append(preference(number + num_labels, {"this": side, "that": noisy(rng, -side, 1.0, right=0.9)}))
    return labels


PLANTED = ("one", "two", "three", "four", "again", "coin", "faint", "this", "that")


def test_each_planted_oddity_is_found_and_nothing_else():
    found = answer(constitution(*PLANTED, "idle", "off", off=0.0), preferences=planted())
    assert found.at_random == ["coin"]
    assert found.contradictions == [("this", "that")]
    assert found.near_duplicates == [("one", "again")]
    assert found.never_decisive == ["faint"]
    assert found.never_drawn == ["idle"], "a principle of weight 0 is not missed"
    assert found.num_labels == 800 and len(found.pairs) == 21 + 1


def test_few_labels_accuse_no_principle():
    labels = planted(15)
    found = answer(constitution(*PLANTED), preferences=labels)
    assert not (found.at_random or found.near_duplicates or found.never_decisive)
    found = answer(constitution(*PLANTED), preferences=labels, min_labels=15)
    assert found.near_duplicates == [("one", "again")] and "faint" in found.never_decisive


def test_one_principle_for_each_label_turns_nothing_and_agrees_with_nothing():
    found = answer(constitution("x", "y"), preferences=[preference(n, {"xy"[n % 2]: 1.0}) for n in range(60)])
    assert not found.pairs and not found.at_random and not found.never_decisive
    assert [rule.labels.num_alone for rule in found.principles if rule.labels] == [30, 30]
    assert "one principle" in section(found, ["base", "aligned"]).said


def test_labels_of_the_pools_are_no_principles_work():
    labels = [preference(n, {}, POOL) for n in range(5)] + [preference(9, {}, CONSTITUTION)]
    found = answer(constitution("one", "two"), [exchange(1, ("one", REFUSAL))], labels)
    assert (found.num_labels, found.num_labels_by_pool, found.num_labels_by_constitution) == (0, 5, 1)
    assert found.never_drawn == ["two"]
    said = section(found, ["base", "aligned"]).said
    assert (
        said.startswith("No principle labelled a pair of replies: 5 follow from the file")
        and "Never used: “Title of two”" in said
    )
    with pytest.raises(NotMeasuredError, match="no critique and no label of this run names a principle"):
        answer(constitution("one"), [exchange(1)], labels)


def test_a_principle_that_left_the_constitution_is_counted_by_its_id():
    found = answer(constitution("one"), [exchange(1, ("gone", REFUSAL))])
    assert [rule.title for rule in found.principles] == ["Title of one", "gone"]


@pytest.mark.parametrize(
    ("labels", "words", "is_warning"),
    [
        (planted, ("“Title of coin” labels no better than a coin", "contradict each other: “Title of this” and"), True),
        (lambda: [preference(n, {"one": 2.0, "two": 1.0}) for n in range(30)], ("nearly always agree",), False),
    ],
)
def test_the_section_says_what_stands_out(
    labels: Callable[[], list[Preference]], words: tuple[str, ...], is_warning: bool
):
    made = labels()
    names = list(dict.fromkeys(judgement.principle_id for label in made for judgement in label.judgements))
    shown = section(answer(constitution(*names), preferences=made), ["base", "aligned"])
    assert all(part in shown.said for part in words), shown.said
    assert shown.is_warning is is_warning
    assert len(shown.tables["principles"]) == len(names)


def test_the_page_shows_bars_and_the_table_of_agreement():
    found = answer(constitution(*PLANTED), [exchange(1, ("one", REFUSAL))], planted(40))
    told = Explanation(models=["base", "aligned"], confidence=0.95, principles=found)
    report = replace(make_report(num_cases=24, num_exchanges=2), explanation=told)
    page, text = render("report.html.j2", report), render("report.md.j2", report)
    for heading in ("Labels that turn without the principle", "What critiques under the principle did",
                    "How often two principles prefer the same reply"):  # fmt: skip
        assert heading in page
    [pair] = [pair for pair in found.pairs if (pair.first, pair.second) == ("this", "that")]
    assert f'title="Title of this, Title of that: {written(pair.agreement)}"' in page
    assert "| Title of this | Title of that |" in text


def test_no_principle_is_said_to_decide_from_one_label_or_from_none_that_turns():
    usual = [preference(n, {"one": 2.0, "two": -1.0}) for n in range(30)]
    once = section(answer(constitution("one", "two", "rare"), preferences=[
        *usual, preference(30, {"rare": 3.0, "two": -1.0})]), ["aligned"])  # fmt: skip
    assert "that of “Title of one”" in once.said and "Title of rare" not in once.said
    alike = section(answer(constitution("one", "two"), preferences=[
        preference(n, {"one": 2.0, "two": 1.0}) for n in range(30)]), ["aligned"])  # fmt: skip
    assert "None of them would prefer another reply without any one of the principles" in alike.said
    few = section(answer(constitution("one", "two"), preferences=usual[:3]), ["aligned"])
    assert "No principle shares 20 of them with others" in few.said


def test_a_refusal_that_was_revised_is_no_answer_that_became_one():
    shown = section(answer(constitution("one"), [exchange(1, ("one", REFUSAL), reply=REFUSAL)]), ["aligned"])
    assert "no reply was an answer before it was revised." in shown.said and "no evidence" not in shown.said
