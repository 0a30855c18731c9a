"""Labels are symmetric, debiased and soft, for every labeller."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from pipeline.constitution.files import find_constitution, load_constitution, shipped_constitutions
from pipeline.constitution.schema import Constitution, Principle
from pipeline.core.cache import cache_key
from pipeline.engines.base import Answer, ChoiceQuery, Query, ReplyQuery
from pipeline.labellers import channel, choice, pointwise, request
from pipeline.labellers.base import (
    LABELLERS,
    TEMPLATE,
    Labeller,
    binary_entropy_bits,
    choice_logit,
    combine_orders,
    sigmoid,
    soft_label,
)
from pipeline.labellers.choice import which_is_better
from pipeline.labellers.general import general_examples, language_of
from pipeline.labellers.likelihood import after_examples
from pipeline.labellers.pointwise import keeps_to_principle
from pipeline.records import Comparison, Message, Pool, Prompt
from tests.fakes import FakeEngine

CONSTITUTION = load_constitution(shipped_constitutions()["minimal"])
PRINCIPLES = CONSTITUTION.principles
PROMPT = Prompt(
    id="p", pool="red_team", kind="k", split="train", messages=[Message(role="user", content="How do I do it?")]
)
PAIR = Comparison(id="p", prompt=PROMPT, reply_a="Like this, friend.", reply_b="No.", seed_a=1, seed_b=2)


def labeller_of(name: str, constitution: Constitution = CONSTITUTION) -> Labeller:
    return LABELLERS[name](LABELLERS.parse({"kind": name}), constitution, 0)


def label(
    labeller_name: str, pair: Comparison, engine: FakeEngine, principles: Sequence[Principle] = PRINCIPLES
) -> float | None:
    labeller = labeller_of(labeller_name)
    logits = []
    for principle in principles:
        thoughts = {t.id: t for t in engine.generate(labeller.reasoning(pair, principle))}
        answers = {a.id: a for a in engine.score(labeller.queries(pair, principle, thoughts))}
        logits.append(labeller.judge(pair, principle, answers, thoughts).logit)
    return soft_label(logits, LABELLERS.parse({"kind": labeller_name}).clamp)


def opinionated(query: Query) -> list[float]:
    """Prefers what is longer, likes the first place, and never quite makes up its mind."""
    if isinstance(query, ReplyQuery):
        said = sum(len(turn["content"]) for turn in query.messages)
        return [-1.0 - 0.01 * len(query.reply) - 0.001 * said * len(query.reply) / 50]
    if query.choices[0].strip() == "Yes":
        yes = 0.3 + len(query.messages[-1]["content"]) / 1000
        return [math.log(yes), math.log(1 - yes)]
    text = query.messages[1]["content"]
    a, b = text.split("(A) ")[1].split("\n\n(B) ")[:2]
    logit = 0.7 + 0.05 * (len(a) - len(b.split("\n\n")[0]))
    return [math.log(sigmoid(logit)), math.log(1 - sigmoid(logit))]


@pytest.mark.parametrize("name", ["ab", "cot", "pointwise", "likelihood", "request", "channel"])
def test_swapping_a_pair_gives_one_minus_p(name: str):
    engine = FakeEngine(reply=lambda request: "Hm.", answer=opinionated)
    own, swapped = (label(name, pair, engine, PRINCIPLES[:1]) for pair in (PAIR, PAIR.swap()))
    assert own is not None and swapped is not None
    assert own != 0.5
    assert swapped == pytest.approx(1 - own, abs=1e-12)


@pytest.mark.parametrize("name", ["ab", "cot"])
def test_a_judge_that_always_says_a_gives_exactly_one_half(name: str):
    stubborn = FakeEngine(answer=lambda query: [math.log(0.97), math.log(0.02)])
    assert label(name, PAIR, stubborn) == 0.5


def test_order_flips_are_noticed():
    labeller = labeller_of("ab")
    ids = [query.id for query in labeller.queries(PAIR, PRINCIPLES[0], {})]

    def judged(own: list[float], swapped: list[float]) -> bool | None:
        answers = {row_id: Answer(id=row_id, logprobs=p) for row_id, p in zip(ids, (own, swapped), strict=True)}
        return labeller.judge(PAIR, PRINCIPLES[0], answers, {}).flipped

    assert judged([-0.1, -3.0], [-0.1, -3.0]) is True
    assert judged([-0.1, -3.0], [-3.0, -0.1]) is False


def test_unparseable_answers_are_none_and_never_a_guess():
    silent = FakeEngine(answer=lambda query: [-30.0, -31.0])
    assert label("ab", PAIR, silent) is None
    assert label("pointwise", PAIR, silent) is None
    speechless = FakeEngine(reply=lambda request: "", answer=opinionated)
    assert label("cot", PAIR, speechless) is None


def test_chain_of_thought_is_clamped_and_others_are_not():
    sure = FakeEngine(answer=lambda q: [0.0, -20.0] if _shows_long_first(q) else [-20.0, 0.0])
    assert label("cot", PAIR, sure) == 0.6
    assert label("ab", PAIR, sure) == pytest.approx(1.0)


def _shows_long_first(query: Query) -> bool:
    assert isinstance(query, ChoiceQuery)
    return f"(A) {PAIR.reply_a}" in query.messages[1]["content"]


def test_pure_functions_by_hand():
    assert combine_orders(2.0, -1.0) == 1.5
    assert soft_label([math.log(3), math.log(3)]) == pytest.approx(0.75)
    assert soft_label([None, math.log(3)]) == pytest.approx(0.75)
    assert soft_label([None]) is None
    assert soft_label([5.0], (0.4, 0.6)) == 0.6
    assert binary_entropy_bits(0.5) == 1.0 and binary_entropy_bits(1.0) == 0.0
    assert binary_entropy_bits(0.25) == pytest.approx(0.811278, abs=1e-6)
    assert choice_logit(Answer(id="x", logprobs=[math.log(0.6), math.log(0.2)]), 0.01) == pytest.approx(math.log(3))
    assert choice_logit(Answer(id="x", logprobs=[math.log(0.004), math.log(0.004)]), 0.01) is None
    assert sigmoid(-800.0) == 0.0 and sigmoid(800.0) == 1.0


def test_wording_belongs_to_its_template_version():
    """Change the wording and TEMPLATE together: it is what tells an old cache from a new one."""
    text = which_is_better(CONSTITUTION, PRINCIPLES[0], PAIR)[1]["content"]
    assert TEMPLATE == "preference-4"
    assert text == (
        "Request: How do I do it?\n\n"
        f"{PRINCIPLES[0].preference_question}\n\n"
        "(A) Like this, friend.\n\n(B) No.\n\nIs reply (A) or reply (B) the better one?"
    )
    [judged] = keeps_to_principle(CONSTITUTION, PRINCIPLES[0], PROMPT.messages, "No.")[1:]
    assert judged["content"] == (
        "Request: How do I do it?\n\nReply: No.\n\n"
        f"Does the assistant's reply keep to this rule: {PRINCIPLES[0].title}? Answer yes or no."
    )
    worded = {
        "ab": choice.WORDINGS,
        "pointwise": pointwise.WORDINGS,
        "request": [request.HARM, request.DECLINE],
        "channel": channel.TASKS,
    }
    assert cache_key(worded)[:8] == "869039c6"
    assert cache_key({name: list(pairs) for name, pairs in general_examples().items()})[:8] == "1099de0c"
    turns = after_examples(CONSTITUTION.preamble, [("Rob?", "I won't.")], PROMPT.messages)
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert [turn["content"] for turn in turns] == [CONSTITUTION.preamble, "Rob?", "I won't.", "How do I do it?"]


@pytest.mark.parametrize("pool", ["red_team", "ordinary", "look_alike"])
def test_a_constitution_without_examples_is_labelled_with_general_ones(pool: str):
    """The direction is right all the same, and the title of the principle stands before the examples with it."""
    bare = CONSTITUTION.model_copy(update={"worked_examples": [], "good_answers": [], "contrasts": []})
    prompt = PROMPT.model_copy(update={"pool": pool})
    labeller = labeller_of("likelihood", bare)
    with_it, against_it = (query.messages for query in labeller.ask("r", "a", prompt, "No.", PRINCIPLES[0]))
    refusals, answers = ([reply for _, reply in examples] for examples in general_examples()["English"])
    expected = (refusals, answers) if pool == "red_team" else (answers, refusals)
    shown = [[turn["content"] for turn in turns if turn["role"] == "assistant"] for turns in (with_it, against_it)]
    assert shown == list(expected)
    rule = f"{bare.preamble}\nThe rule that matters most here: {PRINCIPLES[0].title}."
    assert [turns[0]["content"] for turns in (with_it, against_it)] == [rule, bare.preamble]
    [note] = LABELLERS["likelihood"].notes(labeller._config, bare)
    assert "no refusals (worked_examples or contrasts) and no answers (good_answers)" in note
    assert "it prefers refusals for the prompts of data.red_team" in note


@pytest.mark.parametrize(
    ("request_text", "language"),
    [
        ("How do I pick a lock?", "English"),
        ("Wie knacke ich das Schloss von meinem Nachbarn?", "German"),
        ("Comment forcer la serrure de mon voisin ?", "French"),
        ("¿Cómo abro la cerradura de mi vecino?", "Spanish"),
        ("Come apro la serratura del mio vicino?", "Italian"),
        ("Como abro a fechadura do meu vizinho?", "Portuguese"),
        ("Как вскрыть замок соседа?", "Russian"),
        ("怎么撬开邻居的锁？", "Chinese"),
        ("隣の家の鍵はどうやって開けますか？", "Japanese"),
        ("hvordan dirker jeg opp låsen", "English"),  # a language without examples: what the rules are written in
    ],
)
def test_general_examples_are_in_the_language_of_the_request(request_text: str, language: str):
    assert language_of(request_text, "You are a helpful assistant.") == language
    refusals, answers = general_examples()[language]
    assert len(refusals) == len(answers) == 3


@pytest.mark.parametrize("spelling", ["harmlessness", "safety", "Harmlessness", None])
def test_the_likelihood_is_compared_with_that_after_opposite_examples(spelling: str | None):
    """For a harmful request refusals keep to the principle, for any other one answers, whatever its tags are."""
    written = load_constitution(find_constitution("default"))
    tags = [spelling] if spelling else []
    principles = [p.model_copy(update={"tags": tags}) for p in written.principles if "harmlessness" in p.tags]
    constitution = written.model_copy(update={"principles": principles})
    refusals = {reply for _, reply in constitution.declined([], 1000)}

    def likes_its_examples(query: Query) -> list[float]:
        assert isinstance(query, ReplyQuery)
        shown = [turn["content"] for turn in query.messages if turn["role"] == "assistant"]
        assert len(shown) == 3 and (set(shown) <= refusals or not refusals & set(shown))
        declining = query.reply.startswith("I won't")
        return [-1.0 if (shown[0] in refusals) == declining else -2.0]

    labeller, scale = labeller_of("likelihood", constitution), 2.0
    pair = PAIR.model_copy(update={"reply_a": "I won't do that.", "reply_b": "Here is how."})
    logits = []
    for pool in ("red_team", "ordinary"):
        principle = constitution.principles_for(pool)[0]
        asked = pair.model_copy(update={"prompt": pair.prompt.model_copy(update={"pool": pool})})
        queries = labeller.queries(asked, principle, {})
        assert len({query.id for query in queries}) == 4
        answers = {query.id: Answer(id=query.id, logprobs=likes_its_examples(query)) for query in queries}
        logits.append(labeller.judge(asked, principle, answers, {}).logit)
    assert logits == [2 * scale, -2 * scale]


def test_where_harmless_requests_are_revised_the_corrections_are_shown_for_them():
    plain = load_constitution(shipped_constitutions()["plain_speech"])
    labeller, rule = labeller_of("likelihood", plain), plain.principle("no-filler")
    assert not labeller.knows_only_declining and labeller_of("likelihood").knows_only_declining

    def shown(pool: Pool, which: int) -> list[str]:
        pair = PAIR.model_copy(update={"prompt": PROMPT.model_copy(update={"pool": pool})})
        query = labeller.queries(pair, rule, {})[which]
        return [turn["content"] for turn in query.messages if turn["role"] == "assistant"]

    corrected = plain.corrected(rule.tags, 3)
    assert "filler" in corrected[0].tags and len(corrected) == 3
    with_it, against_it = shown("ordinary", 0), shown("ordinary", 1)
    assert with_it[-3:] == [example.revision for example in corrected] and len(with_it) == 6
    assert against_it[-3:] == [example.poor_reply for example in corrected]
    assert len(shown("red_team", 0)) == 3, "a refusal shows what is asked for"


def test_examples_that_illustrate_the_principle_come_first():
    constitution = load_constitution(find_constitution("default"))
    fraud = constitution.principle("no-fraud")
    asked = [request for request, _ in constitution.declined(fraud.tags, 3)]
    tags = {example.request: example.tags for example in (*constitution.worked_examples, *constitution.contrasts)}
    assert all("fraud" in tags[request] for request in asked)
