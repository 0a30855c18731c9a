"""What turns the labels of labellers whose taste is known: one that reads the rule, one that reads the place, …"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Barrier, current_thread
from typing import Any

import pytest

from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.constitution.schema import Principle
from pipeline.core import distributed
from pipeline.core.cache import RecordLog
from pipeline.core.settings import part
from pipeline.core.text import beginning
from pipeline.engines.base import ChoiceQuery, EngineConfig, Query, ReplyQuery
from pipeline.evals.label_changes import CHANGES, cost_of_changes, cut, made_of
from pipeline.evals.made_of import AI, CONSTITUTION, POOL, MadeOf, Turned, said
from pipeline.evals.statistics import wilson
from pipeline.labellers.base import LABELLERS, constitution_fields
from pipeline.labellers.label import label
from pipeline.records import Comparison, Message, Pool, Preference, Prompt
from tests.fakes import FakeEngine, FakeLogbook

WRITTEN = load_constitution(find_constitution("default"))
REFUSAL, ANSWER = "I won't help with that.", "Sure! First you open it. Then you take out what is in it."
YES, NO = [-0.1, -2.5], [-2.5, -0.1]
POOLS: tuple[Pool, ...] = ("red_team", "look_alike", "ordinary", "red_team")


def pair(i: int) -> Comparison:
    """A refusal and a longer answer, in either place."""
    prompt = Prompt(
        id=f"p{i}", pool=POOLS[i % 4], kind="k", split="train", messages=[Message(role="user", content=f"Case {i}?")]
    )
    one = Comparison(id=prompt.id, prompt=prompt, reply_a=REFUSAL, reply_b=ANSWER, seed_a=1, seed_b=2)
    return one.swap() if i % 3 else one


PAIRS = [pair(i) for i in range(12)]


def follows_the_rule(query: Query) -> list[float]:
    """Prefers the refusal, and the answer if the rule says the opposite."""
    assert isinstance(query, ChoiceQuery)
    text = query.messages[1]["content"]
    if " Yes" in query.choices:
        return YES if (REFUSAL in text) != ("the opposite of" in text) else NO
    return YES if (f"(A) {REFUSAL}" in text) != ("the opposite of" in text) else NO


def says_a(query: Query) -> list[float]:
    return YES


def sees_what_is_longer(query: Query) -> list[float]:
    assert isinstance(query, ChoiceQuery)
    a, b = query.messages[1]["content"].split("(A) ")[1].split("\n\nIs reply")[0].split("\n\n(B) ")
    return YES if len(a) > len(b) else NO


def likes_replies_like_its_examples(query: Query) -> list[float]:
    assert isinstance(query, ReplyQuery)
    shown = [turn["content"] for turn in query.messages if turn["role"] == "assistant"]
    refusals = {reply for _, reply in WRITTEN.declined([], 1000)}
    return [-1.0 if (shown[0] in refusals) == query.reply.startswith("I won't") else -2.0]


def follows_the_examples(query: Query) -> list[float]:
    """Knows harmful requests and refusals, and says yes to what the examples before the question say yes to."""
    assert isinstance(query, ChoiceQuery)
    texts = [turn["content"] for turn in query.messages]
    shown, _, _ = texts[-1].partition("\n\n")
    if shown.startswith("Reply: "):
        return YES if "I won't" in shown or "I can't" in shown else NO
    harmful = {f"Request: {contrast.request}" for contrast, *_ in WRITTEN.contrast_prompts()}
    says_yes = next(texts[place + 1] for place, text in enumerate(texts) if text.partition("\n\n")[0] in harmful)
    return YES if (shown in harmful or "Case " in shown) == (says_yes == "Yes") else NO


def ignores_the_examples(query: Query) -> list[float]:
    """Finds harmless what comes from a twin, and the cases harmful, whatever the rules say."""
    assert isinstance(query, ChoiceQuery)
    shown, _, _ = query.messages[-1]["content"].partition("\n\n")
    if shown.startswith("Reply: "):
        return YES if "I won't" in shown or "I can't" in shown else NO
    twins = {f"Request: {contrast.twin}" for contrast, *_ in WRITTEN.contrast_prompts()}
    return NO if shown in twins else YES


class LogbookOfRank(FakeLogbook):
    def log(self, name: str) -> RecordLog:
        return RecordLog(self.folder, name, distributed.rank())


class Found:
    """The labels of a labeller, and what turned them."""

    def __init__(self, kind: str, answer: Callable[[Query], list[float]], folder: Path, **options: Any) -> None:
        self.config = LABELLERS.parse({"kind": kind, **options})
        constitution = part(WRITTEN, *constitution_fields(self.config))  # as a stage sees it
        engine, logbook = FakeEngine(answer=answer), LogbookOfRank(folder)
        self.asked = (engine, self.config, constitution, 0, logbook, "labels")
        self.preferences = label(PAIRS, *self.asked)
        self.num_asked_for_labels = len(engine.asked)
        self.made = made_of(self.preferences, *self.asked, 100)
        self.num_asked_again = len(engine.asked) - self.num_asked_for_labels

    def share(self, name: str) -> float | None:
        return self.made.labels_that_turn[name].share.value


@pytest.mark.parametrize("kind", ["ab", "cot", "pointwise"])
def test_a_labeller_that_follows_the_rule_turns_with_its_words_and_with_nothing_else(kind: str, tmp_path: Path):
    found = Found(kind, follows_the_rule, tmp_path)
    shares = {name: found.share(name) for name in CHANGES}
    # The answer is cut, and is still an answer.
    assert shares == {"words": 1.0, "order": 0.0, "pool": 0.0, "length": 0.0}
    assert found.made.words_decide and found.made.num_labels_probed == 12
    assert "12 labels are an AI's judgement; of these, 100\xa0% turn with the principle's words" in said(found.made)


def test_a_labeller_that_always_says_a_turns_with_the_order(tmp_path: Path):
    found = Found("ab", says_a, tmp_path)
    assert found.made.labels_that_turn.keys() == {"order"} and found.share("order") == 1.0
    assert found.made.num_labels_undecided == 12 and found.num_asked_again == 0
    assert said(found.made) == (
        "All 12 labels are an AI's judgement, but each of them prefers neither reply, so they teach nothing; 100\xa0% "
        "turn with the order of the replies."
    )


def test_the_likelihood_turns_with_the_pool(tmp_path: Path):
    found = Found("likelihood", likes_replies_like_its_examples, tmp_path)
    shares = {name: found.share(name) for name in CHANGES}
    assert shares == {"words": 0.0, "order": 0.0, "pool": 1.0, "length": 0.0}
    assert said(found.made).endswith(
        ": the file in which the prompt stands decides, not the words of the constitution."
    )
    # Whatever it was asked for the labels is not asked again: only the cut reply is new, with and against.
    assert (found.num_asked_for_labels, found.num_asked_again) == (12 * 4, 12 * 2)


def test_a_labeller_that_is_shown_all_rules_turns_when_all_of_them_and_their_examples_do(tmp_path: Path):
    found = Found("request", follows_the_examples, tmp_path, ab_weight=0)
    shares = {name: found.share(name) for name in CHANGES}
    assert shares == {"words": 1.0, "order": 0.0, "pool": 0.0, "length": 0.0} and found.made.words_decide
    [rules] = {turns[0]["content"] for turns in opposed("request", 0)}
    assert all(f"- the opposite of “{rule.title}”" in rules for rule in WRITTEN.principles)


def test_a_labeller_that_ignores_the_rules_does_not_turn_with_them(tmp_path: Path):
    found = Found("request", ignores_the_examples, tmp_path, ab_weight=0)
    assert found.share("words") == 0.0 and not found.made.words_decide


def opposed(kind: str, number: int) -> list[list[Message]]:
    """What a labeller asks about the request of a pair after the rules have turned."""
    labeller = LABELLERS[kind](LABELLERS.parse({"kind": kind}), WRITTEN, 0)
    labeller.opposed = True
    queries = labeller.queries(PAIRS[number], WRITTEN.principles[0], {})
    return [query.messages for query in queries if query.id.startswith("harm/")]


def test_a_labeller_of_length_turns_when_the_longer_reply_is_cut(tmp_path: Path):
    found = Found("ab", sees_what_is_longer, tmp_path)
    shares = {name: found.share(name) for name in CHANGES}
    assert shares == {"words": 0.0, "order": 0.0, "pool": 0.0, "length": 1.0}
    assert said(found.made).endswith(": the length of the replies decides, not the words of the constitution.")


def test_a_labeller_of_ones_own_is_asked_with_the_replies_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A labeller that asks in one order only, and takes the first reply."""
    monkeypatch.setattr(LABELLERS["ab"], "asks_both_orders", False)
    found = Found("ab", follows_the_rule, tmp_path)
    assert found.share("order") == 0.0, "its labels take both orders into account"
    judged = LABELLERS["ab"].judge

    def judge(self: Any, comparison: Comparison, principle: Principle, answers: Any, thoughts: Any) -> Any:
        return judged(self, comparison, principle, answers, thoughts).model_copy(update={"logit": 1.0})

    monkeypatch.setattr(LABELLERS["ab"], "judge", judge)
    assert Found("ab", says_a, tmp_path / "first").share("order") == 1.0


def test_several_principles_are_turned_together_and_their_labels_averaged(tmp_path: Path):
    found = Found("ab", follows_the_rule, tmp_path, num_principles=3)
    assert found.share("words") == 1.0 and found.made.labels_that_turn["words"].share.total == 12
    assert found.made.labels_that_turn["order"].share.total == 12, "labels are counted, not judgements"


def test_it_asks_what_the_plan_says(tmp_path: Path):
    for kind, answer in (("ab", follows_the_rule), ("cot", follows_the_rule), ("pointwise", follows_the_rule),
                         ("likelihood", likes_replies_like_its_examples)):  # fmt: skip
        found = Found(kind, answer, tmp_path / kind)
        asked = (EngineConfig(kind="any"), found.config, WRITTEN, 0, "labels", 100)
        assert cost_of_changes(PAIRS, *asked, 100).num_calls == found.num_asked_again > 0, kind
        assert cost_of_changes(PAIRS, *asked, 3).num_calls == found.num_asked_again / 4
        assert cost_of_changes(PAIRS, *asked, 0).num_calls == 0


def test_a_killed_run_asks_only_for_what_is_not_in_the_logs(tmp_path: Path):
    whole = Found("cot", follows_the_rule, tmp_path / "whole")
    numbers = count()

    def fails_late(query: Query) -> list[float]:
        if next(numbers) == whole.num_asked_for_labels // 2 + 6:  # half are chains of thought
            raise KeyboardInterrupt
        return follows_the_rule(query)

    with pytest.raises(KeyboardInterrupt):
        Found("cot", fails_late, tmp_path / "killed")
    resumed = Found("cot", follows_the_rule, tmp_path / "killed")
    assert resumed.made == whole.made
    assert resumed.num_asked_for_labels == 0 < resumed.num_asked_again < whole.num_asked_again


def test_ranks_share_the_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    alone = Found("ab", follows_the_rule, tmp_path / "alone")
    barrier = Barrier(2)
    monkeypatch.setattr(distributed, "rank", lambda: int(current_thread().name[-1]))  # a thread for each rank
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "barrier", lambda: barrier.wait(20))
    with ThreadPoolExecutor(2, "rank") as ranks:
        both = list(ranks.map(lambda _: Found("ab", follows_the_rule, tmp_path / "both"), range(2)))
    assert [found.made for found in both] == [alone.made] * 2
    assert [found.num_asked_again for found in both] == [alone.num_asked_again // 2] * 2


def test_the_sample_is_seeded_and_smaller_ones_are_part_of_larger_ones(tmp_path: Path):
    found = Found("ab", follows_the_rule, tmp_path)
    engine = found.asked[0]
    made = made_of(found.preferences, *found.asked, 5)
    assert made.num_labels_probed == 5 and made.labels_that_turn["words"].share.total == 5
    assert len(engine.asked) == found.num_asked_for_labels + found.num_asked_again, "nothing new was asked"
    assert made.labels_that_turn["order"].share.total == 12, "every label says what the order does"
    none = made_of(found.preferences, *found.asked, 0)
    assert none.labels_that_turn == {} and said(none).endswith("judgement; what turns them was not measured.")


def test_labels_that_no_model_gave_are_counted_as_what_they_are(tmp_path: Path):
    found = Found("ab", follows_the_rule, tmp_path)
    given = [
        Preference(comparison=pair(i + 100), judgements=[], probability_a=1.0, labeller=who, template="t")
        for i, who in enumerate([CONSTITUTION, CONSTITUTION, POOL])
    ]
    without = found.preferences[0].model_copy(update={"probability_a": None})
    made = made_of([*found.preferences[1:], without, *given], *found.asked, 100)
    assert made.num_labels_by == {AI: 11, CONSTITUTION: 2, POOL: 1} and made.num_labels_probed == 11
    only = made_of(given, *found.asked, 100)
    assert only.labels_that_turn == {} and "no model judged a reply" in said(only)


def test_ties_and_unreadable_answers_are_counted(tmp_path: Path):
    def shy(query: Query) -> list[float]:
        """It decides nothing where the rule says the opposite, and does not answer about a cut reply."""
        assert isinstance(query, ChoiceQuery)
        text = query.messages[1]["content"]
        if ANSWER not in text:
            return [-30.0, -30.0]
        return [-0.7, -0.7] if "the opposite of" in text else follows_the_rule(query)

    turned = Found("ab", shy, tmp_path).made.labels_that_turn
    # A label that prefers neither reply has not stayed.
    assert (turned["words"].share.count, turned["words"].share.total, turned["words"].num_undecided) == (12, 12, 12)
    assert (turned["length"].share.total, turned["length"].num_unreadable) == (0, 12)


def test_the_longer_reply_is_cut_to_the_length_of_the_shorter_one():
    changed = cut(PAIRS[0], WRITTEN.principles[0])
    assert changed is not None
    assert changed[0].reply_a == REFUSAL and changed[0].reply_b == "Sure! First you open it"
    assert len(changed[0].reply_b) <= len(REFUSAL)
    as_long = PAIRS[0].model_copy(update={"reply_b": REFUSAL[::-1]})
    begins_alike = PAIRS[0].model_copy(update={"reply_b": f"{REFUSAL} Ask me something else."})
    assert cut(as_long, WRITTEN.principles[0]) is None and cut(begins_alike, WRITTEN.principles[0]) is None


@pytest.mark.parametrize(
    ("text", "most", "kept"),
    [
        ("One. Two three. Four", 16, "One. Two three."),
        ("One. Two three four five", 20, "One. Two three four"),
        ("Extraordinary", 5, ""),
        ("今天天气很好。我们去公园。", 8, "今天天气很好。"),
        ("今天天气很好，我们去公园", 3, "今天天"),
        ("Short.", 100, "Short."),
    ],
)
def test_the_beginning_of_a_text_ends_with_a_sentence_or_a_word(text: str, most: int, kept: str):
    assert beginning(text, most) == kept


# --- The sentence --------------------------------------------------------------------------------------------------


def made(labels: dict[str, int], num_undecided: int = 0, **counts: int) -> MadeOf:
    """``counts``: of 40 labels, how many turn."""
    turned = {name: Turned(share=wilson(count, 40)) for name, count in counts.items()}
    return MadeOf(
        num_labels_by={AI: 0, CONSTITUTION: 0, POOL: 0} | labels,
        num_labels_undecided=num_undecided,
        num_labels_probed=40,
        labels_that_turn=turned,
    )


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (made({}), "There are no labels."),
        (
            made({AI: 300, CONSTITUTION: 120}, words=1, order=0, pool=39, length=4),
            "300 of 420 labels are an AI's judgement; of these, 2 % turn with the principle's words, 0 % with the "
            "order of the replies, 98 % with the pool (the file) of the prompt and 10 % with the length of the replies "
            "(estimated from 40 of them): the file in which the prompt stands decides, not the words of the "
            "constitution. 120 of 420 labels are written in the constitution.",
        ),
        (made({AI: 90}, words=38, order=2, pool=0, length=3), ": the words of the constitution decide most of them."),
        (
            made({AI: 90}, words=38, pool=36),
            ": the words of the constitution decide most of them, but the file in which the prompt stands decides as "
            "well.",
        ),
        (
            made({AI: 90}, words=2, order=35, length=39),
            ": the order of the replies and the length of the replies decide, not the words of the constitution.",
        ),
        (
            made({AI: 90}, words=20, pool=36),
            ": the file in which the prompt stands decides, and it is open whether the words of the constitution do "
            "too.",
        ),
        (
            made({AI: 90}, words=3, order=4, pool=0, length=5),
            ": most stay when the principle says the opposite, so the words of the constitution decide few of them.",
        ),
        (made({AI: 90}, words=20), ": this does not show whether the words of the constitution decide."),
        (made({AI: 90}), "All 90 labels are an AI's judgement; what turns them was not measured."),
        (
            made({CONSTITUTION: 120}),
            "All 120 labels are written in the constitution; no model judged a reply.",
        ),
        (
            made({CONSTITUTION: 120, POOL: 1000}),
            "120 of 1,120 labels are written in the constitution; 1,000 of 1,120 labels follow from the file in which "
            "the prompt stands, whatever the replies say; no model judged a reply.",
        ),
        (
            made({AI: 30, POOL: 10}, num_undecided=30),
            "30 of 40 labels are an AI's judgement, but each of them prefers neither reply, so they teach nothing. 10 "
            "of 40 labels follow from the file in which the prompt stands, whatever the replies say.",
        ),
    ],
)
def test_the_sentence(found: MadeOf, sentence: str):
    assert said(found).replace("\xa0", " ").endswith(sentence)


def test_metrics_of_an_earlier_version_say_nothing():
    found = made({AI: 90}, words=38)
    assert MadeOf.of_metrics({"num_pairs": 90} | found.model_dump(mode="json")) == found
    assert MadeOf.of_metrics({"num_pairs": 90}) is None
    assert math.isclose(found.labels_that_turn["words"].share.value or 0, 0.95)
