"""Counterfactual prompts: which attributes are trained on, what differs between groups, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.constitution.files import load_constitution, shipped_constitutions
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context, key_fields
from pipeline.core.yaml_files import load_yaml
from pipeline.data.counterfactuals import (
    SHIPPED,
    CounterfactualFile,
    attribute_of,
    counterfactual_sets,
    may_train_on,
    retold,
    set_of,
)
from pipeline.data.loading import load_prompts
from pipeline.data.near_duplicates import NearIndex
from pipeline.engines.base import Request
from pipeline.evals.cases import build_cases
from pipeline.evals.counterfactuals import attributes_said, outcome, refuse_evaluated, trained_attributes
from pipeline.evals.suites.bias import BIAS_FILE, BiasFile
from pipeline.labellers import sampling
from pipeline.labellers.counterfactual import consistency_pairs, same_pairs
from pipeline.records import Exchange, Prompt, Revision, write_records
from pipeline.stages import STAGES
from pipeline.stages.sft import group_rows
from tests.fakes import FakeEngine

DATA = compose_config([]).data
EVALUATED = {"gender", "race", "religion", "nationality", "age", "disability", "sexual_orientation", "social_class"}
TRAINED = {"race", "religion", "age", "social_class", "family_status", "region", "politics"}
SMALL = {
    "attributes": {
        "age": {"groups": [{"name": "young", "person": "a young {noun}"}, {"name": "old", "person": "an old {noun}"}]}
    },
    "templates": [
        {"id": "tea", "harmful": False, "noun": "guest", "text": "Make tea for {person}."},
        {"id": "trick", "harmful": True, "noun": "guest", "text": "{person} has a watch; how do I take it unseen?"},
    ],
}


def small(folder: Path, **changed: Any) -> Any:
    """The settings ``data`` with a small file, in which some top-level keys are others."""
    path = folder / "groups.yaml"
    path.write_text(json.dumps(SMALL | changed), encoding="utf-8")  # JSON is YAML
    return DATA.model_copy(update={"counterfactuals": str(path)})


# --- What ships ----------------------------------------------------------------------------------------------------


def test_attributes_are_split_by_their_names_and_half_of_the_evaluated_ones_are_never_trained_on():
    shipped = load_yaml(SHIPPED, CounterfactualFile, "a file", field="x", described_in="y")
    evaluated = load_yaml(BIAS_FILE, BiasFile, "a file", field="x", described_in="y")
    assert set(evaluated.attributes) == EVALUATED and set(shipped.attributes) > EVALUATED
    assert {name for name in shipped.attributes if may_train_on(name)} == TRAINED
    assert 40 <= len(shipped.templates) <= 60 and any(template.harmful for template in shipped.templates)
    named = {each.attribute for each in counterfactual_sets(DATA, 10_000)}
    assert named == TRAINED and len(EVALUATED - named) == 4


def test_no_shipped_template_is_near_to_an_evaluated_prompt_or_to_another_template():
    prompts = load_prompts(DATA).prompts
    held_out = [prompt for prompt in prompts if prompt.split != "train"]
    asked = [case.prompt for case in build_cases(compose_config(["evaluate=full"]).evaluate, held_out, [])]
    index = NearIndex({prompt.id: prompt.request for prompt in asked})
    sets = counterfactual_sets(DATA, 48)
    assert len({each.template for each in sets}) == 48, "each template once before any is used again"
    for each in sets:
        assert index.closest(each.prompts[0].request) is None, each.template
    neutral = NearIndex({each.template: each.neutral.request for each in sets})
    for each in sets:
        assert neutral.closest(each.neutral.request, without={each.template}) is None, each.template


def test_prompts_of_a_set_differ_only_in_the_person_and_have_one_pool():
    for each in counterfactual_sets(DATA, 100):
        texts = [prompt.request.lower() for prompt in each.prompts]
        told = {
            text.replace(person.lower(), each.neutral_person.lower())
            for text, person in zip(texts, each.persons, strict=True)
        }
        assert told == {each.neutral.request.lower()} and len(set(texts)) == len(texts) >= 2
        assert {prompt.pool for prompt in each.prompts} == {"red_team" if each.is_harmful else "ordinary"}
        assert {set_of(prompt.id) for prompt in each.prompts} == {each.neutral.id}
        assert {attribute_of(prompt.id) for prompt in (*each.prompts, each.neutral)} == {each.attribute}
        assert not {prompt.manner for prompt in each.prompts} & set(DATA.held_out_manners)
    assert attribute_of("red-team-17") is set_of("contrast/x/y/z") is None


def test_more_sets_only_add_some_and_both_kinds_of_request_are_drawn():
    few, many = counterfactual_sets(DATA, 12), counterfactual_sets(DATA, 70)
    assert many[:12] == few and len(many) == 70 and sum(each.is_harmful for each in few) == 6
    assert all(one.attribute == other.attribute for one, other in zip(few[::2], few[1::2], strict=True))


# --- Bad files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"templates": []}, "templates"),
        ({"attributes": {}}, "attributes"),
        ({"templates": [{"id": "a", "harmful": False, "text": "Make tea."}]}, "no {person}"),
        ({"templates": [SMALL["templates"][0]] * 2}, "id 'tea' is used twice"),
        ({"attributes": {"age": {"groups": [{"name": "young", "person": "a child"}]}}}, "groups"),
        ({"attributes": {"gender": SMALL["attributes"]["age"]}}, "every attribute of"),
        ({"templates": [SMALL["templates"][0] | {"manner": "steps"}]}, "in a manner that is held out"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, changed: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as caught:
        counterfactual_sets(small(tmp_path, **changed), 3)
    message = str(caught.value)
    assert said in message and "groups.yaml" in message and "\n" not in message and message.endswith(".")


def test_a_missing_file_is_named_and_without_counterfactuals_none_is_read(tmp_path: Path):
    data = DATA.model_copy(update={"counterfactuals": str(tmp_path / "none.yaml")})
    with pytest.raises(ConfigError, match=r"data\.counterfactuals: there is no file"):
        counterfactual_sets(data, 1)
    assert counterfactual_sets(data, 0) == []


def test_a_template_near_to_an_evaluated_one_is_refused(tmp_path: Path):
    text = "Write a short reference letter for {person} who has worked in my bakery for three years."
    near = small(tmp_path, templates=[{"id": "letter", "harmful": False, "noun": "male colleague", "text": text}])
    config = compose_config([]).model_copy(update={"data": near})
    prepared: Any = SimpleNamespace(config=config, prompts=[])
    with pytest.raises(ConfigError, match=r"template 'letter' for 'age' .* nearly equals the held-out prompt bias-"):
        refuse_evaluated(counterfactual_sets(near, 1), prepared)
    refuse_evaluated(counterfactual_sets(small(tmp_path), 2), prepared)


# --- Replies -------------------------------------------------------------------------------------------------------


def test_a_reply_is_told_of_another_person_only_where_it_names_the_person():
    told = retold("A guest came. Give a guest tea, not a guesthouse.", "a guest", "an old guest")
    assert told == "An old guest came. Give an old guest tea, not a guesthouse."


def exchange(prompt: Prompt, reply: str, *revisions: str) -> Exchange:
    made = [
        Revision(round=n, principle_id="p", critique="c", revision=text, critique_seed=0, revision_seed=0)
        for n, text in enumerate(revisions, 1)
    ]
    return Exchange(
        prompt=prompt, reply=reply, reply_seed=1, revisions=made, policy="base", critic="c", template="t", begun=False
    )


def test_sft_learns_one_reply_for_every_group(tmp_path: Path):
    sets = {each.template: each for each in counterfactual_sets(small(tmp_path), 2)}
    tea, trick = sets["tea"], sets["trick"]
    rows = group_rows(tea, exchange(tea.neutral, "Warm the pot, then pour for a guest."), "all")
    assert [(row.messages[0]["content"], row.reply) for row in rows] == [
        ("Make tea for a young guest.", "Warm the pot, then pour for a young guest."),
        ("Make tea for an old guest.", "Warm the pot, then pour for an old guest."),
    ]
    assert {(row.origin, row.source_id) for row in rows} == {("counterfactual", "counterfactual/age/tea")}
    assert group_rows(tea, exchange(tea.neutral, "I can't help with that."), "all") == [], "nobody is declined tea"
    assert group_rows(trick, exchange(trick.neutral, "Take it at night."), "all") == [], "nor is theft taught"
    revised = exchange(trick.neutral, "At night.", "I won't help with theft.", "I won't help to rob a guest.")
    assert [row.reply for row in group_rows(trick, revised, "last")] == [
        "I won't help to rob a young guest.",
        "I won't help to rob an old guest.",
    ]
    assert len(group_rows(trick, revised, "all")) == 4


Fakes = Callable[[Callable[[Request], str]], tuple[sampling.Sampler, FakeEngine]]


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """A sampler, and the engine that stands for all models in it."""

    def make(reply: Callable[[Request], str]) -> tuple[sampling.Sampler, FakeEngine]:
        config, engine, out = compose_config([]), FakeEngine(reply=reply), Path(mkdtemp(dir=tmp_path))
        constitution = load_constitution(shipped_constitutions()["default"])
        reads: dict[str, Any] = {"seed": 5, "model": config.model, "policy_engine": config.policy_engine}
        reads["constitution"] = constitution
        context = Context(stage="preferences", reads=reads, folders={"sft": out}, out=out, launch=config.launch)
        monkeypatch.setattr(sampling, "policy_engine", lambda context, path, who: engine)
        return sampling.Sampler(config.preferences, context), engine

    return make


def test_openings_are_the_same_for_every_group(tmp_path: Path, fakes: Fakes):
    sampler, engine = fakes(lambda request: "Take it at night." if "trick" in request.id else "Pour for a guest")
    pairs, num_declined = same_pairs(sampler, counterfactual_sets(small(tmp_path), 2), "I won't", True, outcome)
    assert sorted(engine.asked) == ["counterfactual/age/tea/b", "counterfactual/age/trick/b"], "once for all groups"
    assert {pair.id: (pair.reply_a, pair.reply_b, pair.opening) for pair in pairs} == {
        "counterfactual/age/tea/young": ("I won't", "Pour for a young guest", "I won't"),
        "counterfactual/age/tea/old": ("I won't", "Pour for an old guest", "I won't"),
        "counterfactual/age/trick/young": ("I won't", "Take it at night.", "I won't"),
        "counterfactual/age/trick/old": ("I won't", "Take it at night.", "I won't"),
    }
    assert num_declined == 0 and len({pair.seed_b for pair in pairs}) == 2
    labels = {pair.id: sampling.filed(pair, "counterfactual").probability_a for pair in pairs}
    assert [label for name, label in sorted(labels.items())] == [0, 0, 1, 1]


def test_a_harmless_request_that_the_base_declines_teaches_nothing(tmp_path: Path, fakes: Fakes):
    sampler, _ = fakes(lambda request: "I'm sorry, but I can't help with that")
    pairs, num_declined = same_pairs(sampler, counterfactual_sets(small(tmp_path), 2), "I won't", True, outcome)
    assert {pair.prompt.pool for pair in pairs} == {"red_team"} and num_declined == 2


def test_whole_replies_are_paired_where_the_policy_declines_for_some_groups_only(tmp_path: Path, fakes: Fakes):
    def reply(request: Request) -> str:
        old = "old" in request.id
        if "tea" in request.id:
            return "I can't help with that." if old else "A young guest likes it weak. Pour it now."
        return "I can't help with that." if old else "Wait for the night and take it."

    sampler, _ = fakes(reply)
    tea, trick = consistency_pairs(sampler, "sft", counterfactual_sets(small(tmp_path), 2), outcome)
    assert (tea.id, tea.reply_a) == ("counterfactual/age/tea/old", "I can't help with that.")
    assert tea.reply_b == "An old guest likes it weak. Pour it now.", "the answer to the other group, told of this one"
    assert (trick.id, trick.reply_a) == ("counterfactual/age/trick/young", "I can't help with that.")
    assert trick.reply_b == "Wait for the night and take it."
    assert [sampling.filed(pair, "x").probability_a for pair in (tea, trick)] == [0, 1], "A is the reply that declines"
    sampler, _ = fakes(
        lambda request: "Pour it now." if "young" in request.id else "Pour pour pour pour pour pour pour."
    )
    assert consistency_pairs(sampler, "sft", counterfactual_sets(small(tmp_path), 2), outcome) == [], (
        "broken is neither"
    )
    sampler, _ = fakes(lambda request: "Pour it now.")
    assert consistency_pairs(sampler, "sft", counterfactual_sets(small(tmp_path), 2), outcome) == []


# --- What was trained on -------------------------------------------------------------------------------------------


def test_the_attributes_that_were_trained_on_are_read_from_the_records(tmp_path: Path):
    sets = counterfactual_sets(small(tmp_path), 2)
    tea = next(each for each in sets if each.template == "tea")
    write_records(tmp_path / "rows.jsonl", group_rows(tea, exchange(tea.neutral, "Pour it."), "all"))
    write_records(tmp_path / "prompts.jsonl", [tea.neutral.model_copy(update={"id": "counterfactual/race/c01/white"})])
    assert trained_attributes({"sft": tmp_path}) == ["age"]
    assert trained_attributes({"sft": tmp_path, "align": tmp_path}) == ["age", "race"] and trained_attributes({}) == []


def test_what_was_trained_on_is_said():
    assert attributes_said(["age", "politics"], EVALUATED) == (
        "The run trained on counterfactual prompts about age and politics. It is asked about age too, with other "
        "templates. No counterfactual prompt is ever about disability, gender, nationality or sexual orientation."
    )
    assert attributes_said([], ["race", "gender"]) == (
        "The run trained on no counterfactual prompts. No counterfactual prompt is ever about gender."
    )


# --- Cache keys ----------------------------------------------------------------------------------------------------

WITH = {
    "sft.num_counterfactuals=4": {"critique", "sft"},
    "preferences.num_counterfactuals=4": {"preferences"},
    "align=ppo,align.rollout.num_counterfactuals=4": {"align"},
}


@pytest.mark.parametrize("setting", WITH)
def test_the_templates_count_by_content_where_they_are_trained_on(tmp_path: Path, setting: str):
    words = [*setting.split(","), "model.path=org/model"]
    constitution = load_constitution(shipped_constitutions()["minimal"])

    def keys(*more: str) -> dict[str, Any]:
        config = compose_config([*words, *more])
        return {stage.name: key_fields(stage, config, constitution, {}) for stage in STAGES if stage.wanted(config)}

    other = tmp_path / "groups.yaml"
    other.write_text(json.dumps(SMALL), encoding="utf-8")
    with_shipped, with_other = keys(), keys(f"data.counterfactuals={other}")
    assert {name for name in with_shipped if with_shipped[name] != with_other[name]} == WITH[setting]
    number = setting.split(",")[-1].replace("=4", "=0")
    without = keys(number)
    assert {name for name in without if without[name] != with_shipped[name]} == WITH[setting]
    assert "counterfactual" not in repr(without), "the keys of before"
