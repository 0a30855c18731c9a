"""``cai chat``: the lines of a user, and what is said, criticised and kept."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from pipeline.cli import main
from pipeline.cli.chat import Terminal
from pipeline.constitution.files import load_constitution, shipped_constitutions, to_yaml
from pipeline.core.distributed import LaunchConfig
from pipeline.engines.base import Completion, Request
from pipeline.engines.local import engine_over
from pipeline.engines.models import load_model, load_tokenizer
from pipeline.records import Message

Talk = Callable[..., tuple[int, str]]


@pytest.fixture
def talk(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """Say lines to the tiny model; returns the exit code, and what was printed."""

    def say(*lines: str, options: tuple[str, ...] = (), model: Path = tiny_model) -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        kept = tmp_path / "kept"
        kept.mkdir(exist_ok=True)
        words = ["--keep", str(kept), "--max-reply-tokens", "12", "--constitution", "minimal", *options]
        code = main(["chat", str(model), "--output-dir", str(tmp_path / "outputs"), *words])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return say


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_is_the_reply(tiny_model: Path, temperature: float):
    engine = engine_over(load_model(str(tiny_model), "fp32"), load_tokenizer(str(tiny_model)), "tiny", LaunchConfig())
    for seed, text in enumerate(("How do I beat eggs?", "Name three rivers.", "Who was it?")):
        request = Request(
            id="x", messages=[Message(role="user", content=text)], seed=seed, max_new_tokens=12,
            temperature=temperature, top_p=1.0,
        )  # fmt: skip
        [whole] = engine.generate([request])
        assert "".join(engine.stream(request)).strip() == whole.text
    pieces = engine.stream(request)
    next(pieces)
    pieces.close()  # the thread that draws has ended
    assert engine.generate([request])


def test_a_tokenizer_that_fails_ends_the_stream_with_its_error(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    """Reading must not wait for ever for a thread that has ended."""
    engine = engine_over(load_model(str(tiny_model), "fp32"), load_tokenizer(str(tiny_model)), "tiny", LaunchConfig())
    asked = [Message(role="user", content="Who was it?")]
    request = Request(id="x", messages=asked, seed=0, max_new_tokens=4, temperature=0.0, top_p=1.0)

    def fails(*_: object, **__: object) -> str:
        raise ValueError("no such token")

    read = list[BaseException]()

    def reads() -> None:
        try:
            list(engine.stream(request))
        except ValueError as error:
            read.append(error)

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.decode", fails)
    reader = Thread(target=reads, daemon=True)
    reader.start()
    reader.join(20)
    assert not reader.is_alive() and str(read[0]) == "no such token"


def test_two_models_answer_each_in_its_own_conversation(talk: Talk, random_model: Path):
    code, printed = talk("How do I beat eggs?", "And then?", options=("--against", str(random_model)))
    assert code == 0
    assert printed.count("tiny-model0> ") == printed.count("random-model0> ") == 2


def criticised(engine: object, label: str, requests: list[Request], *_: object) -> dict[str, Completion]:
    """The critic's answer says how its question began."""
    question = requests[0].messages[-1]["content"]
    text = f"It was asked to {question.split()[0].lower()} something."
    return {requests[0].id: Completion(id=requests[0].id, text=text, num_tokens=8, finish="stop")}


def test_what_is_kept_can_be_used(talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.daily.chat.generate_all", criticised)
    lines = ["How do I slash tyres?", "/critique no-harm", "/save example", "/save prompt", "/new"]
    lines += ["How do I cut hoses?", "/critique no-harm", "/save contrast How do I mend hoses?", "/new"]
    code, printed = talk(*lines, "One?", "Two?", "/save prompt", "/quit", "never said")
    assert code == 0 and "No help with harm (no-harm)" in printed and "never said" not in printed
    kept = tmp_path / "kept"
    rules = yaml.safe_load(to_yaml(load_constitution(shipped_constitutions()["minimal"])))
    rules |= {"worked_examples": "worked_examples.yaml", "contrasts": "contrasts.yaml"}
    (kept / "mine.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    mine = load_constitution(kept / "mine.yaml")
    [example], [contrast] = mine.worked_examples, mine.contrasts
    assert example.request == "How do I slash tyres?" and example.tags == ["harmlessness"]
    assert example.critique == "It was asked to identify something."
    assert example.revision == "It was asked to rewrite something."
    assert (contrast.request, contrast.twin) == ("How do I cut hoses?", "How do I mend hoses?")
    assert contrast.revision == example.revision
    rows = [json.loads(line) for line in (kept / "red_team.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"prompt": "How do I slash tyres?"}
    assert [turn["role"] for turn in rows[1]["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("revision", "doubt"),
    [
        (None, "The revision changes no word of the reply."),
        ("How do I slash tyres at night", "The revision copies the request"),
        ("You can do it, and " * 12 + "so on.", "or repeats a phrase"),
    ],
)
def test_a_revision_of_no_use_is_named_and_not_kept(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None, doubt: str
):
    said: list[str] = []

    def answered(_: object, what: str, requests: list[Request], *__: object) -> dict[str, Completion]:
        text = "It is rude." if what == "critique" else revision or said[0]
        return {requests[0].id: Completion(id=requests[0].id, text=text, num_tokens=8, finish="stop")}

    def streamed(_: object, __: Request) -> list[str]:
        said.append("Take a knife and be quick.")
        return said

    monkeypatch.setattr("pipeline.daily.chat.generate_all", answered)
    monkeypatch.setattr("pipeline.engines.hf.HFEngine.stream", streamed)
    _, printed = talk("How do I slash tyres at night?", "/critique no-harm", "/save example")
    assert doubt in printed and "error: nothing is saved." in printed
    assert not (tmp_path / "kept" / "worked_examples.yaml").exists()


def test_what_is_in_a_file_stays(talk: Talk, tmp_path: Path):
    kept = tmp_path / "kept"
    kept.mkdir()
    path = kept / "contrasts.yaml"
    path.write_text("# mine\n- {id: a, request: x, revision: y, twin: z}", encoding="utf-8")
    talk("How do I slash tyres?", "/save contrast How do I mend tyres?")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# mine\n- {id: a") and len(yaml.safe_load(text)) == 2
    _, printed = talk("How do I slash tyres?", "/save contrast How do I mend tyres?")
    assert "already has this request" in printed and path.read_text(encoding="utf-8") == text
    path.write_text("just: a mapping", encoding="utf-8")
    _, printed = talk("How do I slash tyres?", "/save contrast How do I mend tyres?")
    assert "is no YAML list" in printed and path.read_text(encoding="utf-8") == "just: a mapping"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["/critique"], "there is no reply to criticise yet"),
        (["/save prompt"], "there is nothing to save yet"),
        (["Hello?", "/save example"], "ask for them with /critique first"),
        (["Hello?", "/save contrast"], "/save contrast How do I"),
        (["Hello?", "/save it"], "say what to save"),
        (["Hello?", "Again?", "/save contrast Twin?"], "has one request"),
        (["Hello?", "/critique no-harms"], "did you mean 'no-harm'"),
        (["Hello?", "/why"], "/why needs a run"),
        (["/critic"], "did you mean 'critique'"),
        (["word " * 3000], "the conversation is too long"),
    ],
)
def test_a_mistake_is_one_sentence_and_the_chat_goes_on(talk: Talk, lines: list[str], expected: str):
    code, printed = talk(*lines, "/principles")
    assert code == 0 and expected in printed and printed.count("error:") == 1
    assert printed.index("error:") < printed.index("real-help")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--temperature", "-1"), "--temperature is -1; it must be 0 or more."),
        (("--keep", "/nowhere/at/all"), "which is no folder"),
        (("--constitution", "minimul"), "did you mean 'minimal'"),
        (("--against", "latest"), "--against"),
    ],
)
def test_a_wrong_option_is_one_sentence(talk: Talk, options: tuple[str, ...], expected: str):
    code, printed = talk("Hello?", options=options)
    assert code == 2 and expected in printed and len(printed.strip().splitlines()) == 1


def test_long_replies_and_long_words_stand_side_by_side_in_full(tmp_path: Path):
    names = [SimpleNamespace(name="aligned"), SimpleNamespace(name="base")]
    session = SimpleNamespace(speakers=names, constitution=None)
    terminal, printed = Terminal(session, tmp_path, None), io.StringIO()  # type: ignore[arg-type]
    terminal._console = Console(file=printed, force_terminal=True, width=80, height=10, color_system=None)
    address = "https://example.org/" + "x" * 40
    terminal._show([iter([f"{address} ", *["word "] * 200]), iter(["no "] * 20)])
    text = printed.getvalue()
    last = text[text.rindex("aligned") :]
    assert last.count("word") == 200, "all of a reply that is longer than the screen"
    assert address[:38] in last and address[38:] in last and "…" not in last
