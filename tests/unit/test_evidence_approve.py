"""The event log, approvals and overrides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.chain.runs import report_anew
from pipeline.cli import main
from pipeline.cli.codes import exit_code
from pipeline.core.errors import ArtifactError
from pipeline.evals.gate import load_guidelines
from pipeline.evidence.approve import approval_of
from pipeline.evidence.bundle import Options, write_bundle
from pipeline.evidence.events import EVENTS, NO_ENTRY, append, hash_line, read_events
from pipeline.evidence.verify import verify
from tests.evidence_data import FAILING, PASSING, make_run

ASKING = PASSING.replace("guidelines:\n", "approval: required\nguidelines:\n", 1)


def approve(run: Path, *more: str, by: str = "A. Person", note: str = "read it") -> int:
    return main(["approve", str(run), "--by", by, "--note", note, "--output-dir", str(run.parents[1]), *more])


# --- The chain -----------------------------------------------------------------------------------------------------


def test_each_entry_names_the_line_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    append(tmp_path, "run started", {}, None)
    append(tmp_path, "approved", {"note": "ü\u2028"}, "A. Person")
    lines = (tmp_path / EVENTS).read_bytes().split(b"\n")
    assert [event.before for event in read_events(tmp_path)] == [NO_ENTRY, hash_line(lines[0])]
    assert [event.number for event in read_events(tmp_path)] == [1, 2]


def test_what_a_killed_process_left_of_a_line_is_cut_off(tmp_path: Path):
    append(tmp_path, "run started", {}, None)
    with (tmp_path / EVENTS).open("a") as file:
        file.write('{"number": 2, "ti')
    append(tmp_path, "run started", {}, None)
    assert [event.number for event in read_events(tmp_path)] == [1, 2]


@pytest.mark.parametrize("damage", ["changed", "cut short", "moved", "no JSON"])
def test_nothing_is_added_to_a_damaged_log(damage: str, tmp_path: Path):
    for _ in range(3):
        append(tmp_path, "run started", {"n": 1}, None)
    lines = (tmp_path / EVENTS).read_text().splitlines(keepends=True)
    broken = {
        "changed": [lines[0].replace('"n": 1', '"n": 2'), *lines[1:]],
        "cut short": [lines[0], lines[1][:-20] + "\n", lines[2]],
        "moved": [lines[1], lines[0], lines[2]],
        "no JSON": [*lines, "x\n"],
    }[damage]
    (tmp_path / EVENTS).write_text("".join(broken))
    with pytest.raises(ArtifactError, match=rf"^{EVENTS}:\d has|^{EVENTS}:\d is no entry") as caught:
        append(tmp_path, "run started", {}, None)
    assert "\n" not in str(caught.value)
    assert (tmp_path / EVENTS).read_text() == "".join(broken)


def test_no_name_is_written_that_nobody_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CAI_BY", raising=False)
    monkeypatch.setenv("USER", "login-name")
    run = make_run(tmp_path)
    assert "login-name" not in (run / EVENTS).read_text()
    monkeypatch.setenv("CAI_BY", " A. Person ")
    report_anew(str(tmp_path), str(run), None)
    assert read_events(run)[-1].by == "A. Person"


# --- Approvals -----------------------------------------------------------------------------------------------------


def test_a_run_awaits_approval_until_it_is_approved_and_again_when_its_report_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path, ASKING)
    report = ["report", str(run), "--output-dir", str(tmp_path)]
    assert load_guidelines(run / "guidelines.yaml").approval == "required"
    assert main(report) == 4
    assert "it awaits approval" in capsys.readouterr().err
    assert approve(run) == 0
    assert main(report) == 0
    assert "approval: approved by A. Person" in capsys.readouterr().err

    changed = tmp_path / "stricter.yaml"
    changed.write_text(ASKING.replace("at_most: 0.3", "at_most: 0.99"))
    assert main([*report, "--guidelines", str(changed)]) == 4
    said = capsys.readouterr().err
    assert "the approval by A. Person" in said and "is void: the report has changed since" in said
    assert main(report) == 0, "the approved report is back"

    write_bundle(run, tmp_path / "bundle", Options())
    assert verify(tmp_path / "bundle").said["approval"].startswith("approved by A. Person on ")


def test_a_failed_gate_is_not_approved(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path, FAILING)
    assert approve(run) == 2
    assert "override each failed guideline first" in capsys.readouterr().err
    assert not approval_of(run).valid


# --- Overrides -----------------------------------------------------------------------------------------------------


def test_an_overridden_guideline_is_shown_with_name_and_reason_and_is_never_a_pass(tmp_path: Path):
    run = make_run(tmp_path, FAILING)
    assert exit_code(report_anew(str(tmp_path), str(run), None)) == 3
    assert approve(run, "--override", "broken-rule", note="it is brief by design") == 0
    gate = json.loads((run / "gate.json").read_text())
    ruling = next(ruling for ruling in gate["rulings"] if ruling["id"] == "broken-rule")
    assert (gate["verdict"], ruling["verdict"]) == ("OVERRIDDEN", "OVERRIDDEN")
    for file in ("report.md", "report.html", "model_card.md", "gate.json"):
        text = (run / file).read_text()
        assert "overridden by A. Person" in text and "it is brief by design" in text, file
    assert report_anew(str(tmp_path), str(run), None).gate == "OVERRIDDEN", "it stays so"
    assert approve(run) == 0, "an overridden run may be approved"

    write_bundle(run, tmp_path / "bundle", Options())
    found = verify(tmp_path / "bundle")
    assert not found.problems
    assert "overridden by A. Person" in found.said["overridden: broken-rule"]


def test_an_override_says_nothing_about_another_limit(tmp_path: Path):
    run = make_run(tmp_path, FAILING)
    assert approve(run, "--override", "broken-rule") == 0
    stricter = tmp_path / "stricter.yaml"
    stricter.write_text(FAILING.replace("at_most: 1}", "at_most: 0.5}"))
    assert report_anew(str(tmp_path), str(run), str(stricter)).gate == "FAIL"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": " "}, "--by is empty; give the name of the person."),
        ({"note": ""}, "--note is empty; give the reason in words."),
        ({"guideline": "brokenrule"}, "--override: there is no guideline 'brokenrule'; did you mean 'broken-rule'?"),
        ({"guideline": "kept"}, "--override: the guideline 'kept' says PASS; only a FAIL is overridden."),
        ({"guideline": "open"}, "--override: the guideline 'open' says UNDECIDED; only a FAIL is overridden."),
    ],
)
def test_a_mistake_is_one_sentence(
    options: dict[str, str], message: str, failing: Path, capsys: pytest.CaptureFixture[str]
):
    before = (failing / EVENTS).read_bytes()
    more = ["--override", options["guideline"]] if "guideline" in options else []
    people = {name: text for name, text in options.items() if name != "guideline"}
    assert approve(failing, *more, **people) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert (failing / EVENTS).read_bytes() == before


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("failing"), FAILING)


@pytest.mark.parametrize("command", ["approve", "bundle"])
def test_no_such_run_is_one_sentence(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    more = ["--by", "A", "--note", "B"] if command == "approve" else []
    assert main([command, "none", *more, "--output-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: RUN: there is no run 'none' in ")


def test_a_run_without_a_report_is_one_sentence(failing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "runs" / "early"
    run.mkdir(parents=True)
    (run / "config.json").write_text((failing / "config.json").read_text())
    (run / "constitution.yaml").write_text((failing / "constitution.yaml").read_text())
    assert approve(run) == 2
    assert "has no report yet" in capsys.readouterr().err
    assert main(["bundle", str(run), "--output-dir", str(tmp_path)]) == 2
    assert "has no finished evaluate, so there is nothing to bundle" in capsys.readouterr().err


def test_a_run_that_is_going_on_is_neither_approved_nor_bundled(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Its report may be of an earlier checkpoint."""
    run = make_run(tmp_path, FAILING)
    capsys.readouterr()
    (run / "run.json").write_text(json.dumps({"stages": {}, "making": "evaluate-1"}))
    for arguments in ([], ["--override", "harm"]):
        assert approve(run, *arguments) == 2
        assert capsys.readouterr().err == f"error: run {run.name} is not finished; run its command again.\n"
    assert main(["bundle", str(run), "--output-dir", str(tmp_path)]) == 2
    assert "is not finished" in capsys.readouterr().err
    (run / "run.json").write_text(json.dumps({"stages": {}, "making": None}))
    assert approve(run) == 2 and "says FAIL" in capsys.readouterr().err
