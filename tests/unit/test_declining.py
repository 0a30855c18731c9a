"""``request`` and ``channel`` decide by the request and by which reply declines it, and never by the pool.
``ab`` and ``pointwise`` may show examples and ask in several wordings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.engines.base import Answer, ChoiceQuery, Query, ReplyQuery
from pipeline.labellers.base import LABELLERS, Labeller, sigmoid
from pipeline.labellers.label import draw
from pipeline.labellers.separation import separate
from pipeline.labellers.shown import worked
from pipeline.records import Comparison, Message, Prompt

CONSTITUTION = load_constitution(find_constitution("default"))
CONTRASTS = CONSTITUTION.contrast_prompts()
HARMFUL = {contrast.request for contrast, *_ in CONTRASTS}
REFUSAL, ANSWER = "I won't help with that, because it hurts people.", "Take a bowl and stir."
HELD = CONTRASTS[-1][0]  # neither shown nor used to calibrate


def pair(request: str, pool: str = "ordinary") -> Comparison:
    prompt = Prompt(id="p", pool=pool, kind="k", split="train", messages=[Message(role="user", content=request)])
    return Comparison(id="p", prompt=prompt, reply_a=REFUSAL, reply_b=ANSWER, seed_a=0, seed_b=0)


def labeller_of(name: str, **settings: Any) -> Labeller:
    return LABELLERS[name](LABELLERS.parse({"kind": name} | settings), CONSTITUTION, 0)


def logit(labeller: Labeller, comparison: Comparison, answer: Callable[[Query], float]) -> float:
    """The labeller's logit, from an engine that answers each query with the logit of its first choice."""
    rule = CONSTITUTION.principles[0]
    answers: Mapping[str, Answer] = {
        query.id: Answer(id=query.id, logprobs=_logprobs(query, answer(query)))
        for query in labeller.queries(comparison, rule, {})
    }
    found = labeller.judge(comparison, rule, answers, {}).logit
    assert found is not None
    return found


def _logprobs(query: Query, number: float) -> list[float]:
    if isinstance(query, ReplyQuery):
        return [number]
    return [math.log(sigmoid(number)), math.log(sigmoid(-number))]


def declines(text: str) -> bool:
    return "I won't" in text or "I can't" in text


def knowing(query: Query, bias: float = 0.0) -> float:
    """Knows harmful requests and refusals. It has no opinion about (A) and (B)."""
    if isinstance(query, ReplyQuery):  # likelier if the example just before it was of the same kind
        shown = [turn["content"] for turn in query.messages if turn["role"] == "assistant"]
        if query.messages[-1]["content"].startswith("Write a request"):
            return -1.0 if (query.reply in HARMFUL) == (shown[-1] in HARMFUL) else -2.0
        return -1.0 if declines(query.reply) == declines(shown[-1]) else -2.0
    if query.choices == ("A", "B"):
        return 0.0
    shown, _, _ = query.messages[-1]["content"].partition("\n\n")
    yes = declines(shown) if shown.startswith("Reply: ") else shown.removeprefix("Request: ") in HARMFUL
    return bias + (1.0 if yes else -1.0)


@pytest.mark.parametrize("name", ["request", "channel"])
@pytest.mark.parametrize("pool", ["red_team", "ordinary"])
def test_the_same_replies_are_labelled_by_the_request_and_never_by_the_pool(name: str, pool: str):
    labeller = labeller_of(name)
    assert logit(labeller, pair(HELD.request, pool), knowing) > 1
    assert logit(labeller, pair(HELD.twin, pool), knowing) < -1
    filed = [draw([pair(HELD.twin, pool)], CONSTITUTION, labeller._config, 0, "x") for pool in ("red_team", "ordinary")]
    assert [rule.id for _, rule in filed[0]] == [rule.id for _, rule in filed[1]]


@pytest.mark.parametrize("name", ["request", "channel"])
def test_between_openings_only_the_request_is_asked_about(name: str):
    labeller = labeller_of(name, **({"ab_weight": 0} if name == "request" else {}))
    openings = {"reply_a": "I won't", "reply_b": "Take a bowl", "opening": "I won't"}
    harmful, twin = (pair(text).model_copy(update=openings) for text in (HELD.request, HELD.twin))
    asked = labeller.queries(harmful, CONSTITUTION.principles[0], {})
    assert asked and all("harm/" in query.id for query in asked)
    h = logit(labeller, harmful, knowing)
    assert h > 1 and logit(labeller, harmful.swap(), knowing) == -h
    assert logit(labeller, twin, knowing) < -1


def test_examples_of_the_constitution_set_the_threshold():
    """An engine that says yes to everything, only less so to harmless requests, is right after calibration."""

    def yes_man(query: Query) -> float:
        return knowing(query, bias=3.0)

    assert logit(labeller_of("request", num_calibration=0), pair(HELD.twin), yes_man) > 0
    assert logit(labeller_of("request"), pair(HELD.twin), yes_man) < -1
    assert logit(labeller_of("request"), pair(HELD.request), yes_man) > 1


def test_an_engine_that_is_right_keeps_its_own_threshold():
    """Contrasts are easier than other requests, so the middle between them is no better than 0."""

    def unsure(query: Query) -> float:
        text = query.messages[-1]["content"]
        return -0.4 if HELD.twin in text else 3.0 if knowing(query) > 0 else -5.0  # the middle is at -1

    assert logit(labeller_of("request", ab_weight=0), pair(HELD.twin), unsure) < 0


def test_shown_examples_are_not_used_to_calibrate():
    queries = labeller_of("request").queries(pair(HELD.request), CONSTITUTION.principles[0], {})
    asked = {query.messages[-1]["content"] for query in queries if query.id.startswith("calibration/")}
    shown = {turn["content"] for query in queries for turn in query.messages[:-1] if turn["role"] == "user"}
    assert len(asked) == 64 and not asked & shown
    by_id = {query.id: query for query in queries}
    turns = by_id[f"harm/{pair(HELD.request).prompt.key}/1"].messages
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    assert sorted(answers) == ["No"] * 8 + ["Yes"] * 8


@pytest.mark.parametrize("name", ["request", "channel"])
def test_the_words_of_the_principles_are_in_the_question(name: str):
    queries = labeller_of(name).queries(pair(HELD.request), CONSTITUTION.principles[0], {})
    rules = next(query for query in queries if query.id.startswith("harm/")).messages[0]["content"]
    assert all(f"- {principle.title}" in rules for principle in CONSTITUTION.principles)


def test_where_both_replies_answer_the_question_a_or_b_decides():
    both = pair(HELD.request).model_copy(update={"reply_a": "Stir it.", "reply_b": "Beat it."})

    def likes_stirring(query: Query) -> float:
        if isinstance(query, ChoiceQuery) and query.choices == ("A", "B"):
            return 2.0 if "(A) Stir it." in query.messages[-1]["content"] else -2.0
        return knowing(query)

    assert logit(labeller_of("request", ab_weight=1.0), both, likes_stirring) == pytest.approx(2.0)
    assert logit(labeller_of("request", ab_weight=0.0), both, likes_stirring) == pytest.approx(0.0)


def test_separation_by_hand():
    found = separate([3.0, 5.0], [1.0, -1.0])
    assert (found.slope, found.middle) == (2.0, 2.0)
    assert found.log_odds(3.0) == 2.0 and found.log_odds(1e6) == 20.0
    assert separate([3.0, 5.0], [-1.0, -3.0], zero_divides=True).middle == 0.0  # the means are 4 and -2
    assert separate([3.0, 5.0], [1.0, -1.0], zero_divides=True) == found  # one mean is 0: an engine that says yes
    assert separate([0.0, 1.0], [1.0, 2.0]).log_odds(9.0) == 0.0  # the wrong way round: it knows nothing
    with pytest.raises(ValueError, match="two scores"):
        separate([1.0], [0.0, 0.0])


def test_examples_before_a_or_b_are_balanced_and_answered_rightly():
    query = labeller_of("ab", num_examples=8).queries(pair(HELD.request), CONSTITUTION.principles[0], {})[0]
    examples = worked(CONSTITUTION, 8)
    assert [declines(example.revision) for example in examples[:2]] == [True, False]
    letters = ""
    for number, example in enumerate(examples):
        asked, answered = (turn["content"] for turn in query.messages[1 + 2 * number : 3 + 2 * number])
        letters += answered.removeprefix("The better reply is (").removesuffix(").")
        assert f"({letters[-1]}) {example.revision}" in asked
        assert CONSTITUTION.principle_for(example).preference_question in asked
    assert letters == "ABBAABBA"
    assert query.messages[-1]["content"].endswith("Is reply (A) or reply (B) the better one?")


@pytest.mark.parametrize("name", ["ab", "pointwise"])
def test_wordings_are_averaged(name: str):
    """The replies are equally good in the first wording; the third prefers the refusal."""

    def answer(query: Query) -> float:
        text = query.messages[-1]["content"]
        if not text.startswith("A person wrote:"):
            return 0.0
        return 3.0 if f"(A) {REFUSAL}" in text or f"answered:\n{REFUSAL}" in text else -3.0

    alone = logit(labeller_of(name, wordings=[3]), pair(HELD.request), answer)
    assert alone > 0
    assert logit(labeller_of(name, wordings=[1]), pair(HELD.request), answer) == pytest.approx(0)
    assert logit(labeller_of(name, wordings=[1, 2, 3]), pair(HELD.request), answer) == pytest.approx(alone / 3)


def test_examples_before_yes_or_no_show_both_replies():
    query = labeller_of("pointwise", num_examples=2).queries(pair(HELD.request), CONSTITUTION.principles[0], {})[0]
    turns = [turn["content"] for turn in query.messages[1:-1]]
    assert turns[1::2] == ["Answer: Yes", "Answer: No"] * 2
    for number, example in enumerate(worked(CONSTITUTION, 2)):
        assert example.revision in turns[4 * number] and example.poor_reply in turns[4 * number + 2]
