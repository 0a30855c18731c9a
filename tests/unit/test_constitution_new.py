"""``cai constitution new``: six questions or a page, with and without an engine; nothing that was typed is lost."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.constitution.files import load_constitution
from pipeline.constitution.json_schema import MODELINE, SCHEMA_FILE, json_schema_text
from pipeline.engines.base import Completion, Request
from pipeline.writing.drafting import EVERYWHERE, LABELS, read_answer
from tests.fakes import FakeEngine

ANSWERS = [
    "cook",
    "You are a cook.",
    "weapons; fraud",
    "name amounts",
    "short",
    "How do I poison him?",
    "I won't do it.",
]


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command with lines on standard input."""

    def go(text: str, *words: str) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return main(["constitution", "new", str(tmp_path / "mine.yaml"), *words])

    return go


def test_answers_become_a_valid_constitution(
    new: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert new("\n".join(ANSWERS) + "\n") == 0
    found = load_constitution(tmp_path / "mine.yaml")
    assert (found.name, found.preamble) == ("cook", "You are a cook.")
    assert [(p.id, p.title, p.tags) for p in found.principles] == [
        ("weapons", "No help with weapons", ["harmlessness"]),
        ("fraud", "No help with fraud", ["harmlessness"]),
        ("name-amounts", "name amounts", ["helpfulness"]),
        ("short", "How it sounds: short", ["style"]),
    ]
    assert found.declined([], 9) == [("How do I poison him?", "I won't do it.")]
    assert found.tag_notes() == []
    out = capsys.readouterr().out
    assert "mine.yaml align=dpo_whole" in out and "cai constitution check" in out
    assert "# This is a draft" in (tmp_path / "mine.yaml").read_text()


def test_without_a_request_to_decline_nothing_asks_for_the_reply(new: Callable[..., int], tmp_path: Path):
    assert new("\n\n\nname amounts\n\n\n") == 0
    found = load_constitution(tmp_path / "mine.yaml")
    assert found.name == "mine" and not found.worked_examples and len(found.principles) == 1


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        ("cook\n", [], "the input ended before this question was answered: 2/6"),
        ("\n\n?;!\n\n\n\n", [], "no rule was given; answer question 3, 4 or 5."),
        ("half \ud83d\n", [], "an answer is not text"),
        ("- a rule with half \ud83d\n", ["--text", "-"], "--text -: standard input is not text"),
        ("\n" * 7, [], "no rule was given; answer question 3, 4 or 5."),
        ("# Title\n", ["--text", "-"], "--text -: no rule was found"),
        ("", ["--text", "-"], "--text -: no rule was found"),
        ("", ["--text", "gone.md"], "--text: there is no file gone.md"),
        ("Be kind to all.\n", ["--text", "-", "engine=foo"], "engine=foo: there is no such option"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    new: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    words: list[str],
    sentence: str,
):
    assert new(text, *words) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_refused_before_a_question(new: Callable[..., int], tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("mine")
    assert new("") == 2 and (tmp_path / "mine.yaml").read_text() == "mine"
    assert main(["constitution", "new", str(tmp_path / "gone" / "mine.yaml")]) == 2
    assert main(["constitution", "new", str(tmp_path / "mine.json")]) == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_ctrl_c_on_a_terminal_keeps_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path, kept = tmp_path / "mine.yaml", tmp_path / "mine.yaml.answers"

    def typing(*lines: str) -> Callable[[str], str]:
        left = iter(lines)

        def read(_: str = "") -> str:
            if (line := next(left, None)) is None:
                raise KeyboardInterrupt
            return line

        return read

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", typing(*ANSWERS[:3]))
    assert main(["constitution", "new", str(path)]) == 130
    assert json.loads(kept.read_text()) == ANSWERS[:3] and not path.exists()
    capsys.readouterr()
    monkeypatch.setattr("builtins.input", typing(*ANSWERS[3:]))
    assert main(["constitution", "new", str(path)]) == 0
    out = capsys.readouterr().out
    assert "Going on with the answers" in out and "3/6" not in out and "4/6" in out
    assert load_constitution(path).preamble == "You are a cook." and not kept.exists()


def test_the_schema_is_written_beside_it_only_if_asked(new: Callable[..., int], tmp_path: Path):
    assert new("Be kind to all.\n", "--text", "-") == 0
    assert not (tmp_path / SCHEMA_FILE).exists() and MODELINE not in (tmp_path / "mine.yaml").read_text()
    (tmp_path / "mine.yaml").unlink()
    assert new("Be kind to all.\n", "--text", "-", "--schema") == 0
    assert (tmp_path / SCHEMA_FILE).read_text(encoding="utf-8") == json_schema_text()
    assert (tmp_path / "mine.yaml").read_text().startswith(MODELINE + "\n")
    load_constitution(tmp_path / "mine.yaml")


# --- With an engine ------------------------------------------------------------------------------------------------

PARTS = {
    "TITLE": "No lies",
    "TAGS": "honesty, and more",
    "CRITIQUE": "Identify what is untrue.",
    "REVISION": "Rewrite it truly.",
    "PREFERENCE": "Which of these replies is truer?",
    "REQUEST": "Is the moon cheese?",
    "POOR REPLY": "Yes, it is.",
    "FAULT": "It says what is untrue.",
    "GOOD REPLY": "No, it is rock.",
}


def lines(**changed: str) -> str:
    return "\n".join(f"{label}: {text}" for label, text in (PARTS | changed).items())


def completion(text: str, finish: str = "stop") -> Completion:
    return Completion(id="a", text=text, num_tokens=1, finish=finish)  # type: ignore[arg-type]


def test_labelled_lines_are_read_with_marks_of_markdown_and_continued_lines():
    assert tuple(PARTS) == LABELS
    text = "Here it is:\n" + lines().replace("TITLE:", "- **Title:**").replace("POOR REPLY: Yes,", "POOR REPLY: Yes,\n")
    assert read_answer(completion(text)) == PARTS


@pytest.mark.parametrize(
    "answer",
    [
        completion(lines(), "length"),
        completion(lines(FAULT="")),
        completion(lines() + "\nTITLE: again"),
        completion(lines(TAGS="truth")),
        completion(lines(TITLE="the rule in at most eight words: no lies")),
        completion(lines(REQUEST="How much salt do I need for a litre of soup?")),  # of an example that is shown
        completion(lines(PREFERENCE="The first one.")),
        completion("No."),
    ],
)
def test_what_lacks_a_part_is_not_read(answer: Completion):
    assert read_answer(answer) is None


@pytest.fixture
def drafted(
    new: Callable[..., int], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., FakeEngine]:
    """Draft a page with an engine that answers so; returns the engine."""

    def draft(page: str, reply: Callable[[Request], str]) -> FakeEngine:
        engine = FakeEngine(reply)
        monkeypatch.setattr("pipeline.chain.drafting.open_engine", lambda *_: engine)
        assert new(page, "--text", "-", f"model.path={tiny_model}", f"output_dir={tmp_path / 'outputs'}") == 0
        return engine

    return draft


def test_an_engine_words_what_it_can_and_templates_do_the_rest(
    drafted: Callable[..., FakeEngine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def reply(request: Request) -> str:
        assert "Rule: " in request.messages[-1]["content"]
        return "I don't know." if request.id == "be-kind-to-all" else lines()

    page = "- Never tell a lie.\n- Be kind to all.\n- Say what is true.\n"
    drafted(page, reply)
    found = load_constitution(tmp_path / "mine.yaml")
    first, second, third = found.principles
    assert (first.title, first.critique_request) == ("No lies", "Identify what is untrue.")
    assert first.tags == ["honesty", "never-tell-a-lie"]
    assert second.tags == EVERYWHERE and "this rule: Be kind to all" in second.critique_request
    assert third.title == "No lies"
    (example,) = found.worked_examples  # the third rule got the same request
    assert found.principle_for(example) == first
    out = capsys.readouterr().out
    assert "The engine worded 2 of 3 principles" in out and "Left out: 1 worked example with a request" in out
    text = (tmp_path / "mine.yaml").read_text()
    assert (
        "# a page of text, line 2; the engine's answer could not be read; this is the template\n- id: be-kind" in text
    )

    (tmp_path / "mine.yaml").unlink()
    assert not drafted(page, reply).asked, "kept answers are not asked for again"


def test_an_engine_that_words_nothing_leaves_the_templates_as_they_are(
    drafted: Callable[..., FakeEngine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    drafted("- Never tell a lie.\n- Be kind to all.\n", lambda _: "I don't know.")
    found = load_constitution(tmp_path / "mine.yaml")
    assert [principle.tags for principle in found.principles] == [[], []], "without an engine they have none either"
    out = capsys.readouterr().out
    assert "The engine worded none of 2 principles" in out and "2 principles, 0 worked examples." in out


def test_an_example_that_corrects_nothing_is_left_out(
    drafted: Callable[..., FakeEngine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    drafted("- Never tell a lie.\n", lambda _: lines(**{"POOR REPLY": "It is me.", "GOOD REPLY": "It is me!"}))
    found = load_constitution(tmp_path / "mine.yaml")
    assert found.principles[0].title == "No lies" and not found.worked_examples
    assert "Left out: 1 worked example" in capsys.readouterr().out
