"""``cai constitution stress``: kept, resumed after a kill, edited by hand, and one sentence for wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.cli import main
from tests.fakes import FakeEngine
from tests.unit.test_stress import Reader, planted, rules


@pytest.fixture
def command(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command on a planted constitution with a given engine."""
    path = tmp_path / "planted.yaml"
    path.write_text(yaml.safe_dump(rules("good", "evil", "again").model_dump(mode="json")))

    def go(engine: FakeEngine, *words: str) -> int:
        monkeypatch.setattr("pipeline.chain.stressing.open_engine", lambda *_: engine)
        where = [f"model.path={tiny_model}", f"output_dir={tmp_path / 'outputs'}"]
        return main(["constitution", "stress", str(path), *where, *words])

    return go


def test_a_killed_command_goes_on_where_it_was(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    killed = Reader(planted, batches_until_killed=12)
    assert command(killed) == 130
    assert "run the same command again to continue" in capsys.readouterr().err
    engine = Reader(planted)
    assert command(engine, "--json") == 0
    assert not set(killed.asked) & set(engine.asked), "what was answered is not asked again"
    out = json.loads(capsys.readouterr().out)
    assert out["found"]["contradictions"] == [["good", "evil"], ["evil", "again"]]
    assert out["num_requests"] == {"drawn": 90}, "its answers are no numbered requests"
    [folder] = (tmp_path / "outputs" / "stress").glob("planted-??????")
    assert json.loads((folder / "stress.json").read_text()) == out
    assert "good and again are near-duplicates" in (folder / "stress.md").read_text()

    rows = (folder / "requests.jsonl").read_text().splitlines()
    first = json.loads(rows[0])
    edited = [json.dumps({**first, "request": "Is this another one?"}), *rows[1:]]
    (folder / "requests.jsonl").write_text("\n".join(edited))
    again = Reader(planted)
    assert command(again) == 0
    replies = [row_id for row_id in again.asked if "~" not in row_id]
    assert len(replies) == 2 and len(again.asked) == 2 + 2 * 2 * 4, (
        "one request: two replies, both orders, all wordings"
    )
    text = capsys.readouterr().out
    assert "turn with the order" in text and "good and evil contradict each other" in text
    assert max(map(len, text.splitlines()[:-1])) <= 120


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["preferences=likelihood"], "'likelihood', which does not decide by the words of a principle"),
        (["preferences=request"], "use preferences=ab, cot or pointwise"),
        (["recipe=contrast"], "preferences.labels is 'pool', which does not read the principles"),
        (["engine=foo"], "engine=foo: there is no such option"),
        (["constitution.max_principles=1"], "planted has only one principle with a weight above 0"),
        (["--requests", "gone.jsonl"], "--requests: there is no file gone.jsonl"),
        (["--requests", "empty.jsonl"], "empty.jsonl holds no request"),
        (["--requests", "bad.jsonl"], "no principle has the id 'god'; did you mean 'good'?"),
        (["--requests", "half.jsonl"], "give two different replies, or none"),
        (["--requests", "short.jsonl"], "there is no column 'second'; each row needs first, second and request"),
        (["--requests", "one.jsonl"], "first and second are both 'good'"),
    ],
)
def test_wrong_input_is_one_sentence(
    command: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
):
    monkeypatch.chdir(tmp_path)
    row = {"first": "good", "second": "evil", "request": "Go?"}
    files = {
        "empty": "",
        "bad": json.dumps({**row, "first": "god"}),
        "half": json.dumps({**row, "reply_first": "Yes."}),
        "short": json.dumps({"first": "good", "request": "Go?"}),
        "one": json.dumps({**row, "second": "good"}),
    }
    for name, text in files.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    engine = Reader(planted)
    assert command(engine, *words) == 2 and not engine.asked
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_principle_without_partners_and_a_missing_file(capsys: pytest.CaptureFixture[str]):
    assert main(["constitution", "stress", "minimal"]) == 2
    assert "no two principles of minimal are used for the same prompts" in capsys.readouterr().err
    assert main(["constitution", "stress", "gone.yaml"]) == 2
    assert "there is no file gone.yaml" in capsys.readouterr().err
