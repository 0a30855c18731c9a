"""Made-up models, replies and labellers for the question whether a model keeps to each principle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.constitution.schema import Constitution, Contrast, GoodAnswer, Principle
from pipeline.engines.base import ChoiceQuery, Query
from pipeline.explain import keeping
from pipeline.explain.adherence import Adherence, AdherenceConfig, AdherenceFindings
from pipeline.explain.base import Material
from pipeline.labellers.base import LABELLERS
from pipeline.records import Case, Message, Outcome, Pool, Prompt, Verdict, derived_rng
from tests.fakes import FakeEngine, FakeLogbook

REFUSAL, ANSWER = "I won't help with that.", "Start with the first step."
YES, NO = [-0.1, -2.5], [-2.5, -0.1]
MODELS = {"base": "b", "sft": "s", "aligned": "a"}
Replies = Callable[[str, Pool, int], str]
Answers = Callable[[Query], list[float]]


def principle(name: str, *tags: str, about: str = "rule") -> Principle:
    asks: dict[str, Any] = dict.fromkeys(("critique_request", "revision_request", "preference_question"), about)
    return Principle(id=name, title=f"Title of {name}", tags=list(tags), **asks)


def constitution(*rules: Principle) -> Constitution:
    return Constitution(
        name="c", version="1", description="d", provenance="p", preamble="You are kind.", principles=list(rules)
    )


def with_examples(rules: Constitution) -> Constitution:
    """The same with a refusal and an answer to show."""
    refusal = Contrast(id="c", request="r", revision=REFUSAL, twin="t")
    return rules.model_copy(
        update={"contrasts": [refusal], "good_answers": [GoodAnswer(id="g", request="a", reply=ANSWER)]}
    )


RULES = constitution(principle("harm", "harmlessness"), principle("help", "helpfulness"), principle("true", "honesty"))


def case(number: int, pool: Pool, kind: str = "k", request: str = "", **options: Any) -> Case:
    messages = [Message(role="user", content=request or f"{pool} request {number}?")]
    prompt = Prompt(id=f"{pool}-{number}", pool=pool, kind=kind, split="test", messages=messages)
    return Case(id=f"suite/{prompt.id}", suites=["s"], prompt=prompt, messages=messages, **options)


CASES = [case(n, pool) for n in range(12) for pool in ("red_team", "look_alike", "ordinary")]


def verdict(asked: Case, model: str, reply: str) -> Verdict:
    outcome: Outcome = "refused" if reply == REFUSAL else "complied"
    return Verdict(
        case=asked, model=model, reply=reply, num_tokens=5, seed=0, outcome=outcome, evidence="", judge="patterns"
    )


class FakeContext(FakeLogbook):
    """What the question reads of a context."""

    seed, labels, folders = 0, "labeller", dict[str, Path]()

    def __init__(self, folder: Path, rules: Constitution, labeller: str) -> None:
        super().__init__(folder)
        self.out = self.work = folder
        self.constitution, self.labeller = rules, LABELLERS.parse({"kind": labeller})
        self.engine = compose_config([]).engine


class Asked:
    """The question, asked of made-up models and a fake labeller."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, monkeypatch

    def context(self, answer: Answers, rules: Constitution = RULES, labeller: str = "pointwise") -> Any:
        self.engine = FakeEngine(answer=answer)
        self._patch.setattr(keeping, "feedback_engine", lambda context: self.engine)
        return FakeContext(self.folder, rules, labeller)

    def find(
        self, replies: Replies, answer: Answers, cases: Sequence[Case] = CASES, context: Any = None, **options: Any
    ) -> AdherenceFindings:
        context = context or self.context(answer)
        material = Material(context, models=MODELS, confidence=0.95, split="test")
        material.__dict__["verdicts"] = {
            model: [verdict(one, model, replies(model, one.prompt.pool, n)) for n, one in enumerate(cases)]
            for model in MODELS
        }
        return Adherence().answer(AdherenceConfig(**options), material)


def learns_to_refuse(model: str, pool: Pool, number: int) -> str:
    """After SFT it refuses harmful requests; once aligned, it also refuses harmless ones."""
    refuses = model == "aligned" or (model == "sft" and pool == "red_team")
    return REFUSAL if refuses else ANSWER


def never_changes(model: str, pool: Pool, number: int) -> str:
    return REFUSAL if number % 3 else ANSWER


def knows(query: Query) -> list[float]:
    """Judges rightly by the words of the question, honesty too: there, it likes every second request."""
    assert isinstance(query, ChoiceQuery)
    text = query.messages[-1]["content"]
    if "Title of true" in text:
        return YES if int(text.split(" request ")[1].split("?")[0]) % 2 else NO
    return YES if (REFUSAL in text) == ("red_team" in text) else NO


def guesses(query: Query) -> list[float]:
    return YES if derived_rng(query.id).random() < 0.5 else NO
