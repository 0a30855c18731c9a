"""Requests that the critic writes for each principle, and requests of a person that the evaluation did not ask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from textwrap import wrap
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.constitution.files import load_constitution, shipped_constitutions
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Prepared
from pipeline.data.loading import load_prompts
from pipeline.engines.base import ChoiceQuery, Query, Request
from pipeline.explain import written_probes
from pipeline.explain.adherence import Adherence, AdherenceConfig, AdherenceFindings
from pipeline.explain.base import Material
from pipeline.explain.probes import Probe, read_probes
from pipeline.records import Message, Pool, Prompt, read_records
from pipeline.report.explained.adherence import section
from tests.fakes import FakeEngine
from tests.toy_adherence import CASES, MODELS, NO, REFUSAL, RULES, YES, Asked, learns_to_refuse, verdict

HARMFUL, HARMLESS = "hurt {}", "greet {}"


def new(*parts: object) -> str:
    """Words that resemble no others."""
    return " ".join(wrap(hashlib.sha256(repr(parts).encode()).hexdigest(), 12))


def prompt(pool: Pool, number: int, text: str) -> Prompt:
    messages = [Message(role="user", content=text)]
    return Prompt(id=f"{pool}-train-{number}", pool=pool, kind="k", split="train", messages=messages)


PROMPTS = [
    *(prompt("red_team", n, f"Explain crime {n:04d} to me, evil {n * 7919}") for n in range(12)),
    *(prompt("look_alike", n, f"Explain law {n:04d} to me, please {n * 104729}") for n in range(12)),
    *(prompt("ordinary", n, f"Cook meal {n:04d} for me today {n * 1299709}") for n in range(12)),
]


class Critic(FakeEngine):
    """Writes a list of what it is asked for, one of the other kind and one training prompt among it; judges rightly."""

    def __init__(self, judge: Callable[[str], bool]) -> None:
        super().__init__(self._write, self._answer)
        self._judge = judge

    def _write(self, request: Request) -> str:
        harmful = request.id.startswith("probes/harm/")
        own, other = (HARMFUL, HARMLESS) if harmful else (HARMLESS, HARMFUL)
        known = PROMPTS[0 if harmful else -1].request
        texts = [
            own.format(new(request.id)),
            other.format(new(request.id, "other")),
            known,
            own.format(new(request.seed)),
        ]
        return "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))

    def _answer(self, query: Query) -> list[float]:
        assert isinstance(query, ChoiceQuery)
        text = query.messages[-1]["content"]
        return [-0.1, -3.0] if self._judge(text) else [-3.0, -0.1]


def judges_rightly(text: str) -> bool:
    return "evil" in text or "hurt" in text


def labels_rightly(query: Query) -> list[float]:
    assert isinstance(query, ChoiceQuery)
    text = query.messages[-1]["content"]
    return YES if (REFUSAL in text) == ("red_team" in text or "hurt" in text) else NO


class Written(Asked):
    """The question, with a critic that writes and models that reply."""

    def ask(self, judge: Callable[[str], bool] = judges_rightly, labels: str = "labeller", **options: Any) -> Any:
        context = self.context(labels_rightly)
        context.labels, context.suites = labels, compose_config([]).evaluate
        self.critic, self.models = Critic(judge), dict[str, FakeEngine]()
        self._patch.setattr(written_probes, "feedback_engine", lambda context: self.critic)
        material = Material(context, models=MODELS, confidence=0.95, split="test")
        material.__dict__["prompts"] = PROMPTS
        material.__dict__["verdicts"] = {
            model: [verdict(one, model, learns_to_refuse(model, one.prompt.pool, n)) for n, one in enumerate(CASES)]
            for model in MODELS
        }
        self._patch.setattr(Material, "engine", lambda material, model: self._model(model))
        found = Adherence().answer(AdherenceConfig(num_probes=4, **options), material)
        return found, material, list(read_records(self.folder / "probes.jsonl", Probe))

    def _model(self, name: str) -> FakeEngine:
        def reply(request: Request) -> str:
            harmful = "hurt" in request.messages[-1]["content"]
            return learns_to_refuse(name, "red_team" if harmful else "ordinary", 0)

        return self.models.setdefault(name, FakeEngine(reply))


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(tmp_path, monkeypatch)


def counts(found: AdherenceFindings, rule: str) -> list[int | None]:
    return [found.trusted.rates[rule][model].count for model in MODELS]


def test_a_critic_that_can_judge_writes_requests_and_the_models_are_asked_them(written: Written):
    found, material, probes = written.ask(num_written=4)
    assert not material.notes
    by_rule = {rule: [probe for probe in probes if probe.principle_id == rule] for rule in ("harm", "help", "true")}
    for rule, mine in by_rule.items():
        assert [probe.source for probe in mine] == ["written", "written", "drawn", "drawn"], rule
        texts = [probe.request for probe in mine[:2]]
        assert all(text.startswith("hurt" if rule == "harm" else "greet") for text in texts)
        assert {probe.pool for probe in mine[:2]} == {"red_team" if rule == "harm" else "ordinary"}
    for name in MODELS:
        assert len(written.models[name].asked) == 6, "the models are not asked again what the evaluation asked"
    assert found.num_by_source == {"written": 6, "drawn": 6}
    assert counts(found, "harm") == [0, 4, 4] and counts(found, "help") == [4, 4, 0]
    assert "Of the 12 requests, 6 were written by the critic;" in section(found, list(MODELS)).said


def test_a_killed_run_asks_nothing_twice(written: Written):
    first, _, _ = written.ask(num_written=4)
    again, _, _ = written.ask(num_written=4)
    assert again == first and not written.critic.asked and not any(one.asked for one in written.models.values())


@pytest.mark.parametrize("judge", [lambda text: True, lambda text: new(text) < "8"])
def test_a_critic_that_cant_judge_writes_nothing_and_that_is_said(written: Written, judge: Callable[[str], bool]):
    found, material, probes = written.ask(judge)
    assert {probe.source for probe in probes} == {"drawn"} and not written.models
    [note] = material.notes
    assert "fake judges only" in note and "so it writes no requests; they are those of the evaluation" in note
    assert "written" not in section(found, list(MODELS)).said


def test_where_no_ai_labelled_nothing_is_written(written: Written):
    _, material, probes = written.ask(labels="pool")
    assert {probe.source for probe in probes} == {"drawn"} and not written.critic.asked and not material.notes


def test_a_file_may_hold_requests_of_ones_own(written: Written, tmp_path: Path):
    rows = [
        {"principle_id": "harm", "request": HARMFUL.format("Z"), "pool": "red_team"},
        {"principle_id": "help", "request": HARMLESS.format("Z"), "pool": "look_alike", "source": "written"},
        {"principle_id": "help", "request": CASES[2].prompt.request},
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found, _, probes = written.ask(probes=str(file))
    assert [(probe.source, probe.pool) for probe in probes] == [
        ("given", "red_team"), ("written", "look_alike"), ("drawn", "ordinary")]  # fmt: skip
    assert counts(found, "harm") == [0, 1, 1] and counts(found, "help") == [2, 2, 0]
    assert not written.critic.asked


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"request": "New one?"},
            "does not ask “New one?”.*it has no pool; add pool: red_team, ordinary or look_alike",
        ),
        ({"request": "New one?", "pool": "bad"}, "its pool is 'bad'; add pool"),
        ({"request": PROMPTS[0].request, "pool": "red_team"}, "is a training prompt; take another request"),
        ({"pool": "red_team"}, "the row has no request"),
    ],
)
def test_a_row_that_cant_be_asked_is_named(tmp_path: Path, row: dict[str, str], message: str):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"principle_id": "harm", **row}), encoding="utf-8")
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        read_probes(str(file), RULES, {one.id: one for one in CASES}, PROMPTS)


def test_the_writer_is_shown_training_requests_near_to_the_principle():
    constitution = load_constitution(shipped_constitutions()["default"])
    prompts = load_prompts(compose_config([]).data).prompts
    training = {prompt.request for prompt in prompts if prompt.split == "train"}
    asked = written_probes.asks(constitution, prompts, 8, seed=0)
    assert {ask.principle_id for mine in asked.values() for ask in mine} == {r.id for r in constitution.principles}
    [theft, _] = [ask for ask in asked["red_team"] if ask.principle_id == "no-theft"]
    examples = theft.request.messages[2]["content"]
    assert {line.split(". ", 1)[1] for line in examples.split("\n")} <= training
    assert "steal" in examples or "theft" in examples or "lock" in examples


def test_the_plan_counts_what_is_written_only_where_the_critic_labels():
    def cost(config: Config):
        constitution = load_constitution(shipped_constitutions()["default"])
        prompts = load_prompts(config.data).prompts
        prepared = Prepared(config=config, constitution=constitution, prompts=prompts, stages=("explain",))
        return Adherence().cost(config.explain.adherence, prepared)

    settings = ["recipe=feedback", "explain.adherence.num_written"]
    with_written, without = (cost(compose_config([settings[0], f"{settings[1]}={n}"])) for n in (12, 0))
    assert "policy_engine" in with_written.roles and "policy_engine" not in without.roles
    assert with_written.num_tokens_written > without.num_tokens_written == 0
    assert "policy_engine" not in cost(compose_config([])).roles
