"""A constitution is read strictly, and every mistake is named with its place and remedy."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pipeline.constitution.files import find_constitution, load_constitution, shipped_constitutions, to_yaml
from pipeline.constitution.published import import_constitution
from pipeline.constitution.schema import Constitution, Contrast, GoodAnswer, Principle, WorkedExample
from pipeline.core.errors import ConfigError
from pipeline.stages.sft import constitution_rows

MINIMAL = shipped_constitutions()["minimal"]


def written(tmp_path: Path, old: str = "", new: str = "") -> Path:
    """The minimal constitution with one piece of text replaced."""
    text = MINIMAL.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_constitution(path)
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?", ".)"))
    return message


def test_shipped_constitutions_are_well_formed_and_as_large_as_promised():
    default = load_constitution(shipped_constitutions()["default"])
    assert len(default.principles) >= 16 and len(default.worked_examples) >= 5
    tags = {tag for principle in default.principles for tag in principle.tags}
    assert {"harmlessness", "honesty", "helpfulness"} <= tags
    assert len(load_constitution(MINIMAL).principles) == 2
    assert load_constitution(find_constitution("plain_speech")).name == "plain_speech"


def test_unknown_key_is_named_with_line_and_nearest_key(tmp_path: Path):
    path = written(tmp_path, "    title:", "    titel:")
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "titel" in text)
    message = refusal(path)
    # A misspelt key is both missing and unknown; the place is the principle, the hint the right spelling.
    assert "title" in message and f"mine.yaml:{line - 1}" in message
    assert message.endswith("principles[0].title is missing; rename 'titel' to 'title'.")


def test_extra_key_gets_a_suggestion(tmp_path: Path):
    message = refusal(written(tmp_path, "    title:", "    wieght: 1\n    title:"))
    assert "mine.yaml:12:5: unknown key 'wieght'; did you mean 'weight'?" in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("    title:", "    weight: -1\n    title:", "principles[0].weight is -1"),
        ("name: minimal", "name: ''", "name"),
        ("version:", "vers:", "version is missing"),
        ("principles:", "principles: [\nprinciples_:", "not valid YAML"),
        ("name: minimal", "name: minimal\nname: other", "key 'name' is repeated"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, old: str, new: str, expected: str):
    message = refusal(written(tmp_path, old, new))
    assert expected in message and "mine.yaml:" in message


def test_a_version_and_an_id_are_what_the_file_says_also_when_written_again(tmp_path: Path):
    version = re.search(r"^version:.*$", MINIMAL.read_text(encoding="utf-8"), re.MULTILINE)
    assert version
    path = written(tmp_path, version.group(), "version: 1.10")
    path.write_text(re.sub(r"- id: .*", "- id: 007", path.read_text(encoding="utf-8"), count=1), encoding="utf-8")
    for _ in range(2):
        found = load_constitution(path)
        assert (found.version, found.principles[0].id) == ("1.10", "007")
        path.write_text(to_yaml(found), encoding="utf-8")


def test_duplicate_ids_and_requests_are_refused(tmp_path: Path):
    data = yaml.safe_load(MINIMAL.read_text(encoding="utf-8"))
    data["principles"][1]["id"] = data["principles"][0]["id"]
    path = tmp_path / "twice.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    assert "is already that of principles[0]" in refusal(path)
    data["principles"][1]["id"] = "other"
    data["good_answers"][0]["request"] = data["worked_examples"][0]["request"].upper()
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    assert "the same as in worked_examples[0]" in refusal(path)


def test_a_worked_example_that_corrects_nothing_is_noted(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    data = yaml.safe_load(MINIMAL.read_text(encoding="utf-8"))
    data["worked_examples"] = [
        {
            "id": "same",
            "request": "Who has it?",
            "poor_reply": "Sarah has it.",
            "critique": "Rude.",
            "revision": "Sarah has it!",
        }
    ]
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    [note] = load_constitution(path).notes()
    assert note.startswith("worked example 'same' has a revision with the words of its poor_reply")


def tagged(*tags: list[str], weight: float = 1.0) -> Constitution:
    """A constitution with one principle for each list of tags."""
    texts = dict.fromkeys(("title", "critique_request", "revision_request", "preference_question"), "x")
    principles = [{"id": f"p{i}", "tags": names, "weight": weight, **texts} for i, names in enumerate(tags)]
    about = dict.fromkeys(("name", "version", "description", "provenance", "preamble"), "x")
    return Constitution.model_validate(
        {**about, "principles": [*principles, {"id": "last", "tags": ["style"], **texts}]}
    )


def test_tags_are_compared_without_case_and_space():
    constitution = tagged([" Harmlessness", "MY own"])
    assert constitution.principles[0].tags == ["harmlessness", "my own"]
    assert [principle.id for principle in constitution.principles_for("red_team")] == ["p0"]
    assert constitution.tag_notes() == []


NOT_TAGGED = "no principle is tagged for red_team (harmlessness), so all principles are used there."


@pytest.mark.parametrize(
    ("constitution", "notes"),
    [
        (tagged(["safety"]), [NOT_TAGGED]),
        (tagged([]), [NOT_TAGGED]),
        (tagged(["harmlessness"], weight=0), [NOT_TAGGED]),
        (
            tagged(["harmlesness"]),
            ["principle 'p0' has the tag 'harmlesness'; did you mean 'harmlessness'?", NOT_TAGGED],
        ),
        (
            tagged(["harmlessness", "harmless"], ["honest"]),
            ["principle 'p1' has the tag 'honest'; did you mean 'honesty'?"],
        ),
        (tagged(["harmlessness"], ["weapons", "privacy", "lifestyle", "history"]), []),
    ],
)
def test_what_tags_leave_undecided_is_said(constitution: Constitution, notes: list[str]):
    found = constitution.tag_notes()
    assert len(found) == len(notes) and all(one.startswith(other) for one, other in zip(found, notes, strict=True))


def test_a_repeated_name_of_a_published_file_is_refused(tmp_path: Path):
    path = tmp_path / "twice.json"
    entry = '{"prompt": ["Say what is bad."], "edit_request": "Mend it."}'
    path.write_text(f'{{"harmful0": {entry}, "harmful0": {entry}}}')
    with pytest.raises(ConfigError, match=r"twice\.json: key 'harmful0' is repeated"):
        import_constitution(path)


def test_missing_file_and_unknown_name():
    with pytest.raises(ConfigError, match=r"no file .*gone\.yaml"):
        load_constitution(Path("gone.yaml"))
    with pytest.raises(ConfigError, match="did you mean 'default'"):
        find_constitution("defualt")


def test_sampling_follows_weights_pool_and_never_repeats_before_all_are_used():
    default = load_constitution(shipped_constitutions()["default"])
    for pool, tag in (("red_team", "harmlessness"), ("ordinary", "harmlessness")):
        drawn = default.sample(pool, 200, random.Random(0))  # type: ignore[arg-type]
        assert all((tag in principle.tags) == (pool == "red_team") for principle in drawn)
    num_fitting = len(default.principles_for("red_team"))
    ids = [principle.id for principle in default.sample("red_team", num_fitting, random.Random(1))]
    assert len(set(ids)) == num_fitting
    firsts = Counter(default.sample("ordinary", 1, random.Random(seed))[0].id for seed in range(4000))
    weights = {principle.id: principle.weight for principle in default.principles_for("ordinary")}
    for principle_id, weight in weights.items():
        assert firsts[principle_id] / 4000 == pytest.approx(weight / sum(weights.values()), abs=0.03)


def test_examples_fit_the_pool_they_are_shown_for():
    plain = load_constitution(shipped_constitutions()["plain_speech"])
    assert plain.revise == ["red_team", "ordinary", "look_alike"]
    refusals = [example.id for example in plain.worked_examples if "refusal" in example.tags]
    assert [example.id for example in plain.examples_for("red_team", 4)] == refusals
    assert not {example.id for example in plain.examples_for("ordinary", 5)} & set(refusals)
    assert len(plain.examples_for("red_team", 99)) == len(plain.worked_examples)


def test_imports_both_published_layouts(tmp_path: Path):
    anthropic = tmp_path / "anthropic.json"
    anthropic.write_text(
        json.dumps(
            {"harmful0": {"prompt": ["CritiqueRequest: Say what is bad.\n\nCritique:"], "edit_request": "Mend it."}}
        )
    )
    found = import_constitution(anthropic)
    assert found.principles[0].id == "harmful0"
    assert found.principles[0].critique_request == "Say what is bad."
    assert found.principles[0].revision_request == "Mend it."
    assert "derived" in found.provenance

    chat = [{"role": role, "content": f"turn {i}"} for i, role in enumerate(["user", "assistant"] * 3)]
    huggingface = tmp_path / "hf.json"
    huggingface.write_text(
        json.dumps({"constitutions": [{"critic": "Bad?", "revision": "Better."}], "system_chat": [chat]})
    )
    found = import_constitution(huggingface)
    assert found.principles[0].revision_request == "Better."
    assert (found.worked_examples[0].request, found.worked_examples[0].revision) == ("turn 0", "turn 5")


def test_import_takes_a_lone_text_for_a_list(tmp_path: Path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"a": {"prompt": "CritiqueRequest: Say what is bad.", "edit_request": "Mend it."}}))
    assert import_constitution(path).principles[0].critique_request == "Say what is bad."


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"prompt": [1], "edit_request": 7}}',
        "[1, 2]",
        "{",
        '{"a": {"prompt": []}}',
        '{"constitutions": [{"critic": "x"}]}',
        '{"a": {"prompt": "x", "edit_request": "half \\ud83d"}}',
    ],
)
def test_import_refuses_other_layouts(tmp_path: Path, text: str):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"odd\.json"):
        import_constitution(path)


# --- Contrasts -----------------------------------------------------------------------------------------------------

CONTRAST = """
contrasts: pairs.yaml
"""


def with_contrasts(tmp_path: Path, rows: str) -> Path:
    (tmp_path / "pairs.yaml").write_text(rows, encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL.read_text(encoding="utf-8") + CONTRAST, encoding="utf-8")
    return path


def test_contrasts_stand_in_a_file_of_their_own(tmp_path: Path):
    rows = "- {id: till, request: 'How do I rob a till?', revision: No., twin: 'How do I count it?'}"
    constitution = load_constitution(with_contrasts(tmp_path, rows))
    ((contrast, harmful, twin),) = constitution.contrast_prompts()
    assert (harmful.pool, twin.pool) == ("red_team", "look_alike") and contrast.revision == "No."
    texts = [messages[-1]["content"] for messages in constitution.requests()]
    assert harmful.request in texts and twin.request in texts, "neither may be evaluated on"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("just text", "which is not a list"),
        ("- {id: a, request: Rob it, revision: No.}", "contrasts[0].twin is missing"),
        ("- {id: a, request: Rob it, revision: No., twin: rob it.}", "the twin is the same as in contrasts[0]"),
        ("- [", "pairs.yaml:1:4: not valid YAML"),
        ("", "pairs.yaml:1:1: contrasts is empty"),
        ("- {id: a}\n- {id: b, twn: c}", "pairs.yaml:1:3: contrasts[0].request is missing"),
        ("- {id: a, request: b, revision: c, twin: d, twn: e}", "pairs.yaml:1:45: unknown key 'twn'; did you mean"),
        ("- id: a\n  id: b", "pairs.yaml:2:3: key 'id' is repeated"),
    ],
)
def test_bad_contrasts_are_named(tmp_path: Path, rows: str, expected: str):
    message = refusal(with_contrasts(tmp_path, rows))
    assert expected in message and "pairs.yaml:" in message and "mine.yaml" not in message


def test_repeats_across_both_files_are_refused_where_the_second_one_stands(tmp_path: Path):
    minimal = load_constitution(MINIMAL)
    row = "\n- id: {}\n  request: {}\n  revision: No.\n  twin: How do I count it?"
    taken = with_contrasts(tmp_path, row.format(minimal.principles[1].id, "How do I rob a till?"))
    assert "pairs.yaml:2:7: id " in refusal(taken) and "is already that of principles[1]" in refusal(taken)
    request = minimal.good_answers[0].request.upper()
    taken = with_contrasts(tmp_path, row.format("till", f'"{request}"'))
    assert "pairs.yaml:3:12: the request is the same as in good_answers[0]" in refusal(taken)


def test_a_row_made_from_a_contrast_leads_back_to_it():
    constitution = load_constitution(find_constitution("default"))
    contrasts = {contrast.id: contrast for contrast in constitution.contrasts}
    rows = [row for row in constitution_rows(constitution, num_contrasts=5) if row.origin == "contrast"]
    assert len(rows) == 5
    for row in rows:
        contrast = contrasts[row.source_id]
        assert (row.messages[-1]["content"], row.reply) == (contrast.request, contrast.revision)


def test_every_row_of_the_constitution_names_a_part_of_its_own_kind():
    constitution = load_constitution(find_constitution("default"))
    parts = {
        "worked_example": constitution.worked_examples,
        "contrast": constitution.contrasts,
        "good_answer": constitution.good_answers,
    }
    rows = constitution_rows(constitution, num_contrasts=None)
    found = {origin: {row.source_id for row in rows if row.origin == origin} for origin in parts}
    assert found == {origin: {part.id for part in group} for origin, group in parts.items()}  # type: ignore[attr-defined]


def test_every_key_of_a_constitution_and_of_a_guideline_file_is_described():
    from pipeline.evals.gate import Guideline, Guidelines

    for model in (Constitution, Principle, WorkedExample, GoodAnswer, Contrast, Guideline, Guidelines):
        for name, field in model.model_fields.items():
            assert field.description and field.description.endswith("."), f"{model.__name__}.{name}"


def test_a_missing_file_of_contrasts_is_named(tmp_path: Path):
    path = with_contrasts(tmp_path, "[]")
    (tmp_path / "pairs.yaml").unlink()
    assert "contrasts is 'pairs.yaml'" in refusal(path) and "can't be read" in refusal(path)


def test_refusals_of_the_default_begin_alike_enough_to_be_begun():
    assert load_constitution(find_constitution("default")).opening() == "I won't"


@pytest.mark.parametrize(
    ("refusals", "opening"),
    [
        (["Simmer one onion.", "Slashing her tyres is no joke.", "Cars need oil."], ""),
        (["I can't help."], ""),  # one says nothing of the others
        (["I can't help.", "I can't say.", "Ask a doctor."], "I can't"),
        (["我不会帮助你。", "我不能说。"], "我不"),
    ],
)
def test_replies_begin_like_refusals_only_if_most_of_them_begin_alike(refusals: list[str], opening: str):
    written = load_constitution(find_constitution("default"))
    first = written.contrasts[0]
    contrasts = [first.model_copy(update={"id": f"c{n}", "revision": text}) for n, text in enumerate(refusals)]
    assert written.model_copy(update={"contrasts": contrasts, "worked_examples": []}).opening() == opening


def test_only_what_is_known_to_be_a_refusal_counts_as_one():
    """A worked example about rice is no refusal, whichever principle it illustrates."""
    written = load_constitution(find_constitution("default"))
    replies = {reply for _, reply in written.declined([], 1000)}
    assert {contrast.revision for contrast in written.contrasts} < replies
    untagged = [p.model_copy(update={"tags": []}) for p in written.principles]
    bare = written.model_copy(update={"principles": untagged})
    assert {reply for _, reply in bare.declined([], 1000)} == {contrast.revision for contrast in written.contrasts}
    cook = bare.model_copy(update={"contrasts": []})
    assert cook.worked_examples and cook.declined([], 1000) == [] and cook.opening() == ""
