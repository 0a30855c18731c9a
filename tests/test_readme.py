"""The README's commands are run, shortened and on a tiny model; what it says of the project is true."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.constitution.files import load_constitution
from tests.conftest import tiny_groups
from tests.doc_commands import ROOT, commands_to_run, shortened


def test_every_command_works(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "constitutions").symlink_to(ROOT / "constitutions")
    groups = tiny_groups(tmp_path / "groups")
    monkeypatch.setattr("sys.stdin", io.StringIO("What is rice?\n"))  # said to `cai chat`
    commands = commands_to_run(ROOT / "README.md")
    assert len(commands) >= 10
    for words in commands:
        arguments = shortened(words, tiny_model, tmp_path, groups)
        assert main(arguments) in {0, 3}, " ".join(words)  # 3: a babbling model fails the guidelines
    assert "against 1" in capsys.readouterr().out


def test_links_lead_somewhere():
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/alignment.md",
        "constitutions/README.md",
        *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    ):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert ((ROOT / name).parent / target).exists(), f"{name} → {target}"


def test_the_example_constitution_is_well_formed(tmp_path: Path):
    text = (ROOT / "constitutions" / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "cook.yaml"
    path.write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1), encoding="utf-8")  # type: ignore[union-attr]
    assert load_constitution(path).name == "cook"


def test_promised_files_exist():
    for name in ("LICENSE", "NOTICE", "CHANGELOG.md", "CONTRIBUTING.md", "docs/log.md", "Makefile", ".ci/run"):
        assert (ROOT / name).exists()
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
