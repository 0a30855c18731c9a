"""Requests that the critic writes for each principle, and requests of a person that the evaluation did not ask."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.constitution.files import load_constitution, shipped_constitutions
from pipeline.constitution.schema import Constitution
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Cost, Prepared
from pipeline.data.loading import load_prompts
from pipeline.engines.base import ChoiceQuery, Completion, Query, Request
from pipeline.explain import written_probes
from pipeline.explain.adherence import Adherence, AdherenceConfig, AdherenceFindings
from pipeline.explain.base import Material
from pipeline.explain.probes import Probe, nearly_trained, read_probes
from pipeline.records import Message, Pool, Prompt, read_records
from pipeline.report.explained.adherence import section
from tests.fakes import FakeEngine
from tests.toy_adherence import (
    CASES,
    MODELS,
    NO,
    REFUSAL,
    RULES,
    YES,
    Asked,
    constitution,
    learns_to_refuse,
    principle,
    verdict,
)

HARMFUL, HARMLESS = "hurt {}", "greet {}"


def new(*parts: object) -> str:
    """Words that resemble no others."""
    return " ".join(wrap(hashlib.sha256(repr(parts).encode()).hexdigest(), 12))


def prompt(pool: Pool, number: int, text: str) -> Prompt:
    messages = [Message(role="user", content=text)]
    return Prompt(id=f"{pool}-train-{number}", pool=pool, kind="k", split="train", messages=messages)


PROMPTS = [
    *(prompt("red_team", n, f"evil {new(n)}") for n in range(30)),
    *(prompt("look_alike", n, f"law {new(n, 'law')}") for n in range(15)),
    *(prompt("ordinary", n, f"cook {new(n, 'meal')}") for n in range(15)),
]


class Critic(FakeEngine):
    """Writes a list of what it is asked for, one of the other kind and one training prompt among it. Its requests name
    their principle, and it finds the principle that a request names."""

    def __init__(self, judge: Callable[[str], bool | None]) -> None:
        super().__init__(self._write, self._answer)
        self._judge = judge
        self.second_for = ""
        """The principle that the second request for each principle is about; empty: its own."""

    def _write(self, request: Request) -> str:
        rule = request.id.split("/")[1]
        harmful = rule == "harm"
        own, other = (HARMFUL, HARMLESS) if harmful else (HARMLESS, HARMFUL)
        known = PROMPTS[0 if harmful else -1].request
        texts = [
            own.format(f"{rule} {new(request.id)}"),
            other.format(f"{rule} {new(request.id, 'other')}"),
            known,
            own.format(f"{self.second_for or rule} {new(request.seed)}"),
        ]
        return "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))

    def _answer(self, query: Query) -> list[float]:
        assert isinstance(query, ChoiceQuery)
        text = query.messages[-1]["content"]
        if text.startswith("An AI assistant has this rule"):
            _, rule, request = re.split("Title of |Somebody asks it: ", text)
            return YES if f" {rule.split('.')[0]} " in request else NO
        return {True: [-0.1, -3.0], False: [-3.0, -0.1], None: [-50.0, -50.0]}[self._judge(text)]


def judges_rightly(text: str) -> bool:
    return "evil" in text or "hurt" in text


class Model(FakeEngine):
    """A model that is killed before a batch, if so many were answered."""

    def __init__(self, reply: Callable[[Request], str], asked: Written) -> None:
        super().__init__(reply)
        self._asked = asked

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        self._asked.batches_left -= 1
        if self._asked.batches_left < 0:
            raise KeyboardInterrupt
        return super().generate(batch)


def labels_rightly(query: Query) -> list[float]:
    assert isinstance(query, ChoiceQuery)
    text = query.messages[-1]["content"]
    return YES if (REFUSAL in text) == ("red_team" in text or "hurt" in text) else NO


class Written(Asked):
    """The question, with a critic that writes and models that reply."""

    def ask(
        self,
        judge: Callable[[str], bool | None] = judges_rightly,
        labels: str = "labeller",
        rules: Constitution = RULES,
        prompts: Sequence[Prompt] = PROMPTS,
        batches_until_killed: int = 999,
        second_for: str = "",
        **options: Any,
    ) -> Any:
        context = self.context(labels_rightly, rules)
        self.batches_left = batches_until_killed
        context.labels, context.suites = labels, compose_config([]).evaluate
        self.critic, self.models = Critic(judge), dict[str, FakeEngine]()
        self.critic.second_for = second_for
        self._patch.setattr(written_probes, "feedback_engine", lambda context: self.critic)
        material = Material(context, models=MODELS, confidence=0.95, split="test")
        material.__dict__["prompts"] = prompts
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

        return self.models.setdefault(name, Model(reply, self))


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
    assert "6 were written by the engine of the labeller;" in section(found, list(MODELS)).said


def test_a_request_that_tests_another_principle_is_left_out(written: Written):
    _, material, probes = written.ask(num_written=4, second_for="true")
    assert [probe.principle_id for probe in probes if probe.source == "written"] == [
        "harm",
        "harm",
        "help",
        "true",
        "true",
    ]
    [note] = material.notes
    assert "1 of 6 written requests are left out, because fake finds another principle more fitting." in note


def test_a_killed_run_asks_nothing_twice(written: Written):
    whole, _, _ = written.ask(num_written=4)
    for file in written.folder.iterdir():
        file.unlink()
    with pytest.raises(KeyboardInterrupt):
        written.ask(num_written=4, batches_until_killed=4)  # three batches of the first model, one of the second
    again, _, _ = written.ask(num_written=4)
    assert again == whole and not written.critic.asked
    assert {name: len(model.asked) for name, model in written.models.items()} == {"base": 0, "sft": 4, "aligned": 6}


def test_written_requests_dont_show_what_the_labeller_is_worth(written: Written):
    """Its engine has judged them before."""
    found, _, _ = written.ask(num_written=4)
    assert found.agreement.total == 2 * 2 * len(MODELS), "two drawn requests for each of two principles"


@pytest.mark.parametrize(
    ("judge", "why"),
    [
        (lambda text: True, "fake judges only"),
        (lambda text: new(text) < "8", "fake judges only"),
        (lambda text: None if "evil" in text else False, "fake gives no answer that can be read"),
    ],
)
def test_a_critic_that_cant_judge_writes_nothing_and_that_is_said(
    written: Written, judge: Callable[[str], bool | None], why: str
):
    found, material, probes = written.ask(judge)
    assert {probe.source for probe in probes} == {"drawn"} and not written.models
    [note] = material.notes
    assert why in note and note.endswith("they are those of the evaluation.")
    assert "written" not in section(found, list(MODELS)).said


def test_few_known_prompts_show_nothing_about_a_critic(written: Written):
    _, material, _ = written.ask(prompts=PROMPTS[11:])
    assert "there are not 20 known prompts of each class" in material.notes[0] and not written.critic.asked


def test_where_tags_dont_say_what_tests_a_principle_its_requests_are_drawn(written: Written):
    rules = constitution(principle("harm", "harmlessness", "style"), principle("help"), principle("true", "honesty"))
    _, _, probes = written.ask(rules=rules, num_written=4)
    assert {probe.principle_id for probe in probes if probe.source == "written"} == {"true"}


def test_where_no_ai_labelled_nothing_is_written(written: Written):
    _, material, probes = written.ask(labels="pool")
    assert {probe.source for probe in probes} == {"drawn"} and not written.critic.asked and not material.notes


def test_a_file_may_hold_requests_of_ones_own(written: Written, tmp_path: Path):
    rows = [
        {"principle_id": "harm", "request": HARMFUL.format("Z"), "pool": "red_team"},
        {
            "principle_id": "help",
            "request": HARMLESS.format("Z"),
            "pool": "look_alike",
            "source": "written",
            "case_id": "edited",
        },
        {"principle_id": "help", "request": CASES[2].prompt.request},
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found, _, probes = written.ask(probes=str(file))
    assert [(probe.source, probe.pool) for probe in probes] == [
        ("given", "red_team"), ("given", "look_alike"), ("drawn", "ordinary")]  # fmt: skip
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
        ({"request": PROMPTS[0].request, "pool": "red_team"}, "is trained on; take another request"),
        ({"request": "And then?", "pool": "red_team", "source": "drawn"}, "remove source from the row, and the models"),
        (
            {"request": CASES[0].prompt.request, "pool": "ordinary"},
            "is 'ordinary' here, and 'red_team' in the evaluation",
        ),
        ({"pool": "red_team"}, "the row has no request"),
    ],
)
def test_a_row_that_cant_be_asked_is_named(tmp_path: Path, row: dict[str, str], message: str):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"principle_id": "harm", **row}), encoding="utf-8")
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        read_probes(str(file), RULES, {one.id: one for one in CASES}, PROMPTS)


def test_a_probe_that_nearly_repeats_a_training_prompt_is_named():
    trained = next(prompt for prompt in PROMPTS if prompt.split == "train")
    own = Probe(principle_id="harm", case_id="p", request=f"{trained.request} now", pool="red_team", source="given")
    [note] = nearly_trained([own], RULES, PROMPTS)
    assert f"1 requests nearly repeat training prompts or examples of the constitution (“{own.request}”" in note
    assert nearly_trained([own.model_copy(update={"source": "drawn"})], RULES, PROMPTS) == []
    assert nearly_trained([own.model_copy(update={"request": "Something else?"})], RULES, PROMPTS) == []


def test_a_request_has_one_pool(tmp_path: Path):
    rows = [{"principle_id": rule, "request": "New?", "pool": pool} for rule, pool in
            (("harm", "red_team"), ("help", "ordinary"))]  # fmt: skip
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ConfigError, match="'ordinary' here, and 'red_team' in the evaluation or in an earlier row"):
        read_probes(str(file), RULES, {}, [])


def test_the_writer_is_shown_training_requests_near_to_the_principle():
    rules = load_constitution(shipped_constitutions()["default"])
    prompts = load_prompts(compose_config([]).data).prompts
    training = {prompt.request for prompt in prompts if prompt.split == "train"}
    asked = written_probes.asks(rules, prompts, 8, seed=0)
    assert {ask.principle_id for mine in asked.values() for ask in mine} == {rule.id for rule in rules.principles}
    [theft, _] = [ask for ask in asked["red_team"] if ask.principle_id == "no-theft"]
    examples = theft.request.messages[2]["content"]
    assert {line.split(". ", 1)[1] for line in examples.split("\n")} <= training
    assert "steal" in examples or "theft" in examples or "lock" in examples


def test_the_plan_counts_what_is_written_and_what_a_file_adds(tmp_path: Path):
    def cost(*settings: str) -> Cost:
        config = compose_config(list(settings))
        rules, prompts = load_constitution(shipped_constitutions()["default"]), load_prompts(config.data).prompts
        prepared = Prepared(config=config, constitution=rules, prompts=prompts, stages=("explain",))
        return Adherence().cost(config.explain.adherence, prepared)

    key = "explain.adherence.num_written"
    with_written, without = (cost("recipe=feedback", f"{key}={number}") for number in (6, 0))
    num_rules = 20
    assert with_written.roles["policy_engine"].num_calls == 3 * 6 * num_rules
    assert without.roles["policy_engine"].num_calls == without.num_tokens_written == 0 < with_written.num_tokens_written
    assert cost(f"{key}=6").roles["policy_engine"].num_calls == 0, "no AI labels the default run"
    file = tmp_path / "p.jsonl"
    file.write_text('{"principle_id": "no-fraud", "request": "New one?", "pool": "red_team"}', encoding="utf-8")
    assert cost(f"explain.adherence.probes={file}").roles["policy_engine"].num_calls == 3
