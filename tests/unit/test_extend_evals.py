"""What CONTRIBUTING.md promises: a suite and a judge are each one class and one line, and run through an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml
from pydantic import Field

from pipeline.chain.checkpoints import with_checkpoints
from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chain.plan import plan
from pipeline.chain.preflight import preflight
from pipeline.chain.reference import reference
from pipeline.chain.runner import run
from pipeline.constitution.files import load_constitution, shipped_constitutions
from pipeline.core.errors import ConfigError
from pipeline.core.settings import Settings
from pipeline.core.stage import key_fields
from pipeline.evals.judges.base import JUDGES, Item, Judge, JudgeConfig, Judged
from pipeline.evals.results import Results
from pipeline.evals.scores import Measure
from pipeline.evals.suites.base import SUITES, Suite
from pipeline.records import Case, Message, Prompt, Verdict, read_records
from pipeline.stages.evaluate import Evaluate
from tests.conftest import TINY

# --- A suite: is a sum answered with a number? ----------------------------------------------------------------------


class Sums(Suite):
    """Additions."""

    name = "toy"
    templates = ("sums-1",)
    compares = True

    class Config(Settings):
        """Additions."""

        num_requests: int = Field(default=2, ge=1)
        """How many."""

    measures: ClassVar = {
        "toy_numbers": Measure(
            title="Sums answered with a number",
            how="a digit is in the reply",
            better="higher",
            score=lambda verdicts: {
                v.case.id: float(any(map(str.isdigit, v.reply))) for v in verdicts if "toy" in v.case.suites
            },
        )
    }

    def cases(self, held_out: Sequence[Prompt], notes: list[str]) -> list[Case]:
        cases = []
        for number in range(self.config.num_requests):
            messages = [Message(role="user", content=f"What is {number} plus {number}?")]
            prompt = Prompt(id=f"sum-{number}", pool="ordinary", kind="sum", split="test", messages=messages)
            cases.append(Case(id=prompt.id, suites=[self.name], prompt=prompt, messages=messages))
        return cases


# --- A judge: by length ---------------------------------------------------------------------------------------------


class Brevity(Judge):
    """Short replies refuse."""

    name, templates = "brevity", ("brevity-1",)
    question = "is the reply short?"
    who = "brevity"

    class Config(JudgeConfig):
        """Short replies refuse."""

        kind: Literal["brevity"] = "brevity"
        """The length of the reply."""
        num_chars: int = Field(default=10, ge=1)
        """A reply below this length refuses."""

    def __init__(self, num_chars: int) -> None:
        self._num_chars = num_chars

    @classmethod
    def open(cls, config, context, log):
        return cls(config.num_chars)

    def judge(self, items: Sequence[Item]) -> dict[str, Judged]:
        return {i.id: Judged(outcome="refused" if len(i.reply) < self._num_chars else "complied") for i in items}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    SUITES.add(Sums)
    JUDGES.add(Brevity)
    yield
    SUITES.remove("toy")
    JUDGES.remove("brevity")


TOYS = ["evaluate.suites=[toy]", "evaluate.toy.num_requests=3", "evaluate.judge.kind=brevity"]


def evaluation(checkpoint: Path, base: Path | None, out: Path, *overrides: str) -> Config:
    config = compose_config([*TINY, f"output_dir={out}", *overrides])
    return with_checkpoints(config, str(checkpoint), None if base is None else str(base))


def test_a_toy_suite_and_judge_run_through_an_evaluation(tiny_model: Path, random_model: Path, tmp_path: Path):
    limit = {"id": "sums", "title": "It adds", "why": "w", "measure": "toy_numbers", "at_least": 0.5}
    written = {"name": "mine", "version": "1.0.0", "description": "d", "guidelines": [limit]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    mine = f"evaluate.guidelines={tmp_path / 'mine.yaml'}"
    done = run(evaluation(random_model, tiny_model, tmp_path, *TOYS, "evaluate.judge.num_chars=1000", mine))
    folder = done.stages["evaluate"].folder
    verdicts = list(read_records(folder / "verdicts.jsonl", Verdict))
    assert {v.case.id for v in verdicts} == {f"toy/sum-{number}" for number in range(3)}
    assert {(v.outcome, v.judge) for v in verdicts} == {("refused", "brevity")}
    assert all(v.preferred is not None for v in verdicts)  # the suite compares replies
    results = Results.model_validate_json((folder / "results.json").read_text(encoding="utf-8"))
    assert results.suites == ["toy"] and results.judges[0].question == "is the reply short?"
    for model in results.models:
        expected = sum(any(map(str.isdigit, v.reply)) for v in verdicts if v.model == model)
        found = results.measures[model]["toy_numbers"]
        assert (found.count, found.total) == (expected, 3)
    assert "toy_numbers" in {change.measure for change in results.changes}
    title = "Sums answered with a number"
    for name in ("report.md", "report.html", "model_card.md", "tables/measures.csv", "gate.json"):
        assert title in (done.folder / name).read_text(encoding="utf-8"), name
    (row,) = [
        row
        for row in json.loads((done.folder / "tables" / "measures.json").read_text(encoding="utf-8"))
        if row["measure"] == "toy_numbers" and row["model"] == results.models[0]
    ]
    assert row["suite"] == "toy"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.toy.num_request=3", "evaluate.toy.num_request: unknown key; did you mean 'num_requests'?"),
        ("evaluate.toy.num_requests=0", "evaluate.toy.num_requests is 0; it must be at least 1"),
        ("evaluate.toi.num_requests=3", "evaluate.toi: unknown key; did you mean 'toy'?"),
        ("evaluate.toy=3", "evaluate.toy is 3, but it must be a section"),
        ("evaluate.suites=[toi]", "did you mean 'toy'?"),
        ("evaluate.judge.kind=brevty", "did you mean 'brevity'?"),
        ("evaluate.pair_judge.kind=brevity", "which is not one of patterns, model, endpoint"),
    ],
)
def test_mistakes_are_one_sentence(override: str, message: str):
    with pytest.raises(ConfigError) as caught:
        compose_config([override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_they_are_in_the_reference():
    assert "`evaluate.toy.num_requests`" in reference("evaluate")
    assert "evaluate.judge.kind=brevity" in reference("evaluate")


# --- Cache keys -----------------------------------------------------------------------------------------------------


def key(*overrides: str) -> dict[str, object]:
    constitution = load_constitution(shipped_constitutions()["default"])
    return key_fields(Evaluate(), compose_config([*overrides, "model.path=org/model"]), constitution, {})


def test_only_what_is_used_is_in_the_key(monkeypatch: pytest.MonkeyPatch):
    """The settings and wording of a suite or judge that is not used decide nothing."""
    plain = key("evaluate.suites=[red_team]")
    assert plain == key("evaluate.suites=[red_team]", "evaluate.toy.num_requests=7", "evaluate.bias.num_templates=1")
    assert key("evaluate.suites=[toy]") != key("evaluate.suites=[toy]", "evaluate.toy.num_requests=7")
    brief, toy = key("evaluate.judge.kind=brevity"), key("evaluate.suites=[toy]")
    monkeypatch.setattr(Brevity, "templates", ("brevity-2",))
    monkeypatch.setattr(Sums, "templates", ("sums-2",))
    assert plain == key("evaluate.suites=[red_team]")
    assert brief != key("evaluate.judge.kind=brevity") and toy != key("evaluate.suites=[toy]")


def test_the_requests_of_helpfulness_count_for_over_refusal_too():
    alone = ["evaluate.suites=[over_refusal]"]
    assert key(*alone) != key(*alone, "evaluate.helpfulness.num_requests=7")


def test_the_content_of_human_pairs_is_in_the_key(tmp_path: Path):
    pairs = tmp_path / "pairs.jsonl"

    def written(reply: str) -> object:
        pairs.write_text(json.dumps({"prompt": "Hi", "chosen": reply, "rejected": "no"}))
        return compose_config(["reward.human.source=path", f"reward.human.path={pairs}"]).reward.key()

    assert written("yes") == written("yes") != written("yes!")


# --- Cost -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "judges",
    [
        [],
        ["evaluate.judge.kind=model", "evaluate.pair_judge.kind=model"],
        ["evaluate.suites=[bias,pairs,toy]", "evaluate/bias=crows_pairs", "evaluate.bias.path={sentences}"],
    ],
    ids=["patterns", "model", "questions"],
)
def test_the_plan_bounds_a_counted_evaluation(judges: list[str], tiny_model: Path, random_model: Path, tmp_path: Path):
    sentences = tmp_path / "crows.csv"
    sentences.write_text("sent_more,sent_less,bias_type\nX are rude.,Y are rude.,age\nX are bad.,Y are bad.,race\n")
    overrides = [word.replace("{sentences}", str(sentences)) for word in judges]
    for judge in ("judge", "pair_judge"):
        if any(word.startswith(f"evaluate.{judge}.kind=") for word in judges):
            engine = f"{{kind: hf, path: {random_model}}}"
            overrides += [f"evaluate.{judge}.engine={engine}", f"evaluate.{judge}.trust={random_model.name}"]
    config = evaluation(tiny_model, random_model, tmp_path, *overrides, "until=evaluate")
    cost = next(step.cost for step in plan(preflight(config)) if step.stage == "evaluate")
    found = run(config).stages["evaluate"]
    verdicts = list(read_records(found.folder / "verdicts.jsonl", Verdict))
    num_dropped = sum(v.outcome == "broken" for v in verdicts)
    assert found.manifest.num_calls <= cost.num_calls
    assert cost.num_calls <= 1.1 * (found.manifest.num_calls + num_dropped)
    assert 0 < found.manifest.num_tokens_written <= cost.num_tokens_written
