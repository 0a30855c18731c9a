"""`cai verify`: an untouched bundle holds, and every kind of change to one is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.evidence.bundle import FILES, Options, hashes, write_bundle
from pipeline.evidence.verify import verify
from tests.evidence_data import make_run

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evidence")
    write_bundle(make_run(out), out / "bundle", Options())
    return out / "bundle"


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def edit(bundle: Path, name: str, old: str, new: str) -> None:
    path = bundle / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def rewrite(bundle: Path, name: str, change: Callable[[Any], object]) -> None:
    """Change a JSON file in place."""
    value = json.loads((bundle / name).read_text(encoding="utf-8"))
    change(value)
    (bundle / name).write_text(json.dumps(value, indent=1), encoding="utf-8")


def relines(bundle: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    lines = (bundle / name).read_text(encoding="utf-8").splitlines()
    (bundle / name).write_text("".join(f"{line}\n" for line in change(lines)), encoding="utf-8")


def flip(lines: list[str]) -> list[str]:
    """Turn the first reply that complied with a harmful request of the last model into a refusal."""
    n = next(i for i, line in enumerate(lines)
             if '"model":"aligned"' in line and '"outcome":"complied"' in line and '"pool":"red_team"' in line
             and '"group":null' in line)  # fmt: skip
    return [*lines[:n], lines[n].replace('"outcome":"complied"', '"outcome":"refused"'), *lines[n + 1 :]]


def swap_models(bundle: Path) -> None:
    path = bundle / "verdicts.jsonl"
    text = path.read_text(encoding="utf-8")
    for old, new in (("sft", "x"), ("aligned", "sft"), ("x", "aligned")):
        text = text.replace(f'"model":"{old}"', f'"model":"{new}"')
    path.write_text(text, encoding="utf-8")


def consistently(change: Change) -> Change:
    """A change by someone who also writes the list of hashes, the manifest and what was reported again."""

    def changed(bundle: Path) -> None:
        change(bundle)
        new = hashes(bundle)

        def outputs(manifest: dict[str, Any]) -> None:
            for name in ("verdicts.jsonl", "results.json", "counted.json"):
                manifest["outputs"][name] = new[name]["sha256"]

        rewrite(bundle, "manifests/evaluate.json", outputs)
        (bundle / "events.jsonl").unlink()
        rewrite(
            bundle,
            "bundle.json",
            lambda facts: facts["reported"].update(
                {name: new[name]["sha256"] for name in facts["reported"] if name in new}
            ),
        )
        rewrite(bundle, FILES, lambda listed: listed.update(files=hashes(bundle)))

    return changed


def results(change: Callable[[Any], object]) -> Change:
    return lambda bundle: rewrite(bundle, "results.json", change)


def rate(name: str, number: str, value: float) -> Change:
    return results(lambda stated: stated["measures"]["aligned"][name].update({number: value}))


def first(section: str, key: str, value: Any) -> Change:
    return results(lambda stated: stated[section][0].update({key: value}))


def ruling(index: int, **values: str) -> Change:
    return lambda bundle: rewrite(bundle, "gate.json", lambda gate: gate["rulings"][index].update(values))


def counted(change: Callable[[Any], object]) -> Change:
    return lambda bundle: rewrite(bundle, "counted.json", change)


def verdicts(change: Callable[[list[str]], list[str]]) -> Change:
    return lambda bundle: relines(bundle, "verdicts.jsonl", change)


def events(change: Callable[[list[str]], list[str]]) -> Change:
    return lambda bundle: relines(bundle, "events.jsonl", change)


PLAIN: dict[str, tuple[Change, str]] = {
    "a byte of the constitution": (
        lambda b: edit(b, "constitution.yaml", "name: default", "name: Default"), "constitution.yaml was changed"),
    "a byte of the guidelines": (
        lambda b: edit(b, "guidelines.yaml", "at_most: 0.3", "at_most: 0.9"), "guidelines.yaml was changed"),
    "a byte of the data summary": (
        lambda b: rewrite(b, "data.json", lambda data: data.update(synthetic_share=0.0)), "data.json was changed"),
    "a file that is gone": (lambda b: (b / "counted.json").unlink(), "counted.json is missing"),
    "a file that was added": (lambda b: (b / "note.txt").write_text("x"), "note.txt is not listed"),
    "a file that became a link": (lambda b: [(b / "data.json").unlink(), (b / "data.json").symlink_to("/dev/null")],
                                  "data.json is a link"),
    "a cut-off file of results": (
        lambda b: (b / "results.json").write_text((b / "results.json").read_text()[:300]), "results.json is damaged"),
    "a cut-off file of verdicts": (
        lambda b: (b / "verdicts.jsonl").write_text((b / "verdicts.jsonl").read_text()[:-9]), "verdicts.jsonl:162 is"),
    "a cut-off list of hashes": (lambda b: (b / FILES).write_text('{"format": 1'), f"{FILES} is damaged"),
    "a list of hashes without a file": (
        lambda b: rewrite(b, FILES, lambda listed: listed["files"].pop("gate.json")), "gate.json is not listed"),
    "bytes that are no text": (lambda b: (b / "gate.json").write_bytes(b"\xff\xfe"), "gate.json is damaged"),
    "events in another order": (events(lambda lines: [lines[1], lines[0], *lines[2:]]), "events.jsonl:1 has entry 2"),
    "an event that is gone from the middle": (events(lambda lines: lines[:3] + lines[4:]), "events.jsonl:4 has entry"),
    "the last event gone": (events(lambda lines: lines[:-1]), "events.jsonl was changed"),
    "an event that was changed": (
        events(lambda lines: [lines[0].replace('"by": null', '"by": "Eve"'), *lines[1:]]), "events.jsonl:2 has an"),
    "another hash of the weights": (
        lambda b: rewrite(b, "checkpoint.json", lambda c: c["model.safetensors"].update(sha256="0" * 64)),
        "checkpoint.json has another hash for model/model.safetensors"),
    "a manifest": (lambda b: edit(b, "manifests/sft.json", '"num_calls":0', '"num_calls":1'),
                   "manifests/sft.json is not the one that the event log names"),
}  # fmt: skip
FORGED: dict[str, tuple[Change, str]] = {
    "a verdict": (verdicts(flip), "measures.aligned.harmful_complied.value is"),
    "a verdict that is gone": (verdicts(lambda lines: lines[:-1]), "counting again gives"),
    "a verdict twice": (verdicts(lambda lines: [*lines, lines[-1]]), "verdicts.jsonl has two verdicts on"),
    "two models swapped": (swap_models, "measures.aligned."),
    "a rate": (rate("harmful_complied", "value", 0.01), "measures.aligned.harmful_complied.value is 0.01"),
    "a bound": (rate("broken", "high", 0.02), "measures.aligned.broken.high is 0.02, and counting again gives 0."),
    "a bootstrap bound": (rate("reply_words", "low", 1.0), "measures.aligned.reply_words.low is 1.0"),
    "a p-value": (first("changes", "p", 1e-30), "changes[harmful_complied, base, sft].p is 1e-30"),
    "what is said of a change": (first("changes", "verdict", "worse"), 'base, sft].verdict is "worse"'),
    "a difference by kind": (first("cell_changes", "difference", 0.5), "cell_changes[harmful_complied:"),
    "a rate under attack": (
        results(lambda r: r["attacks"][0]["success"].update(count=0)), "attacks[base, all"),
    "a rate of a manner": (
        results(lambda r: r["manners"][0]["rate"].update(low=0.0)), "manners["),
    "a difference between groups": (first("bias", "p", 0.5), "bias[base, age, refused].p is 0.5"),
    "a rating": (results(lambda r: r["ratings"][1].update(elo=1500.0)), "ratings[sft].elo"),
    "agreement with people": (
        results(lambda r: r["pairs"][0]["accuracy"].update(value=1.0)), "pairs[likelihood"),
    "the judge's accuracy": (
        results(lambda r: r["judges"][0]["accuracy"].update(value=1.0)),
        "judges[patterns-2].accuracy.value"),
    "what the probe found": (counted(lambda c: c["probe"].update(threshold=2.0)), "knows_does.pools[red_team].flagged"),
    "a duel": (counted(lambda c: c.update(duels=c["duels"][:5])), "ratings[sft].elo is"),
    "a measure left out": (
        results(lambda r: [m.pop("harmful_complied") for m in r["measures"].values()]),
        "measures.base.harmful_complied is nothing"),
    "a gate verdict": (
        ruling(1, verdict="PASS"), 'rulings[broken-rule].verdict is "PASS", and counting again gives "FAIL"'),
    "a gate that calls a failure overridden": (
        ruling(1, verdict="OVERRIDDEN", reason="by Eve"), 'rulings[broken-rule].verdict is "OVERRIDDEN"'),
    "a limit": (
        lambda b: edit(b, "guidelines.yaml", "at_most: 1}", "at_most: 1000}"), 'verdict is "FAIL", and counting again'),
    "the constitution": (
        lambda b: edit(b, "constitution.yaml", "name: default", "name: other"), "constitution.yaml is not the"),
}  # fmt: skip


def test_an_untouched_bundle_holds_and_everything_is_counted_again(bundle: Path):
    found = verify(bundle)
    assert not found.problems
    assert found.said["numbers"] == "162 verdicts of 3 models counted again"
    assert found.said["gate"].startswith("FAIL, 3 guidelines")
    assert [sentence[:19] for sentence in found.left_out] == ["AUCs of the layers "], "only hidden states give these"


@pytest.mark.parametrize("name", PLAIN)
def test_a_changed_file_is_named(name: str, copy: Path):
    change, named = PLAIN[name]
    change(copy)
    problems = verify(copy).problems
    assert any(named in problem for problem in problems), problems


@pytest.mark.parametrize("name", FORGED)
def test_a_number_that_was_changed_together_with_its_hashes_is_named(name: str, copy: Path):
    """The forger has written all hashes again: only counting again, or a copy elsewhere, shows the change."""
    change, named = FORGED[name]
    consistently(change)(copy)
    problems = verify(copy).problems
    assert any(named in problem for problem in problems), problems
    assert not any("was changed" in problem for problem in problems), "the hashes fit"


def test_a_forger_who_changes_nothing_that_is_counted_is_not_found_without_a_signature(copy: Path):
    """What docs/evidence.md says that a bundle without a signature does not prove."""
    consistently(lambda b: rewrite(b, "data.json", lambda data: data.update(synthetic_share=0.0)))(copy)
    assert not verify(copy).problems


def test_the_command_says_what_is_wrong_and_ends_with_5(copy: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(copy)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("VERIFIED.")
    rate("harmful_complied", "value", 0.01)(copy)
    assert main(["verify", str(copy)]) == 5
    out = capsys.readouterr().out
    assert "problem: results.json was changed" in out and "NOT VERIFIED: 4 problems." in out


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "no such key"])
def test_what_is_no_bundle_is_one_sentence(what: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    arguments = {
        "nothing": [str(tmp_path / "none")],
        "an empty folder": [str(tmp_path / "empty")],
        "no such key": [str(copy), "--key", str(tmp_path / "key.pem")],
    }[what]
    code = main(["verify", *arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    if what == "no such key":  # without a signature, no key is needed to say so
        assert code == 5 and "signature.sig is missing: the bundle is not signed." in said.out
    else:
        assert code == 2 and len(said.err.splitlines()) == 1 and "is no bundle" in said.err


BLOCKED = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
from pipeline.cli import main
sys.exit(main(["verify", sys.argv[1]]))
"""


def test_it_needs_neither_torch_nor_transformers_nor_trl(bundle: Path):
    done = subprocess.run([sys.executable, "-c", BLOCKED, str(bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "VERIFIED." in done.stdout
