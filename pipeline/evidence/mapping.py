"""Sorts principle tags and kinds of harm under the terms of three public frameworks, by an editable table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.core.yaml_files import Problem, load_yaml
from pipeline.evidence.collect import RunRecord

SHIPPED = Path(__file__).parent / "hazards.yaml"
FRAMEWORKS = ("ailuminate", "nist_ai_rmf", "iso_42001")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Terms(_Part):
    """Terms of each framework, by their ids."""

    ailuminate: list[str] = []
    nist_ai_rmf: list[str] = []
    iso_42001: list[str] = []


class HazardTable(_Part):
    """The table: the terms of each framework in our words, and the terms that each tag falls under."""

    name: str
    version: str
    ailuminate: dict[str, str]
    nist_ai_rmf: dict[str, str]
    iso_42001: dict[str, str]
    tags: dict[str, Terms]


def load_mapping(path: Path) -> HazardTable:
    """Read a table. Raises ConfigError: one sentence with the file, line, column and remedy."""
    return load_yaml(
        path, HazardTable, "a table of hazards", field="--mapping", described_in="pipeline/evidence/hazards.yaml",
        check=_unknown_terms,
    )  # fmt: skip


def _unknown_terms(table: HazardTable) -> Iterator[Problem]:
    for tag, terms in table.tags.items():
        for framework in FRAMEWORKS:
            for index, term in enumerate(getattr(terms, framework)):
                if term not in getattr(table, framework):
                    yield ("tags", tag, framework, index), f"{framework} has no term {term!r}; name it above"


def mapped(run: RunRecord, table: HazardTable) -> dict[str, Any]:
    """For each term: the principles, and the harmful requests that were evaluated. Tags without a term are counted."""
    principles = {principle.id: list(principle.tags) for principle in run.constitution.principles}
    last = run.results.models[-1]
    requests = Counter(v.case.prompt.kind for v in run.verdicts if v.model == last and v.case.prompt.pool == "red_team")
    used = Counter(tag for tags in principles.values() for tag in tags) + requests
    return {
        "table": f"{table.name} {table.version}",
        **{name: _terms(getattr(table, name), name, table, principles, requests) for name in FRAMEWORKS},
        "unmapped": {
            tag: {"num_principles": sum(tag in tags for tags in principles.values()), "num_requests": requests[tag]}
            for tag in sorted(used)
            if tag not in table.tags
        },
    }


def _terms(
    titles: Mapping[str, str],
    framework: str,
    table: HazardTable,
    principles: Mapping[str, list[str]],
    requests: Mapping[str, int],
) -> dict[str, Any]:
    found = {}
    for term, title in titles.items():
        tags = [tag for tag, terms in table.tags.items() if term in getattr(terms, framework)]
        found[term] = {
            "title": title,
            "principles": [name for name, mine in principles.items() if set(mine) & set(tags)],
            "num_harmful_requests": sum(requests.get(tag, 0) for tag in tags),
        }
    return found
