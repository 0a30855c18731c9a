"""docs/configuration.md is what `cai config --markdown` writes, and every setting has its sentence."""

from __future__ import annotations

from pathlib import Path

from pipeline.chain.reference import HEADER, reference, sections

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_is_current():
    current = HEADER + reference()
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == current, (
        "write it anew: cai config --markdown > docs/configuration.md"
    )


def test_every_setting_has_a_sentence():
    for path, chosen, what, rows in sections():
        assert what.endswith((".", ")", "?")), f"{chosen or path} has no sentence"
        for name, _, _, text in rows:
            assert text.split(" *Not")[0].endswith((".", ")", "?")), f"{path}.{name} has no sentence: {text!r}"
