"""The suites: which conversations are put to every model. Drawn by hash, never by how they came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from pipeline.core.yaml_files import load_yaml
from pipeline.data.files import source_content
from pipeline.data.public_sets import ChoiceRow, PairRow, Read, RequestRow, read_set
from pipeline.evals.attacks import ATTACKS, direct
from pipeline.evals.config import SUITES, EvaluateConfig, HumanPairsConfig, PairsConfig, SuiteConfig
from pipeline.evals.pairs import Pair
from pipeline.evals.results import DIRECT
from pipeline.records import Case, Message, Pool, Prompt, derive_seed, dialogue_key

SHIPPED = Path(__file__).parent.parent / "data" / "suites"
BIAS_FILE = SHIPPED / "bias.yaml"
ItemT = TypeVar("ItemT", Prompt, RequestRow)


_FILES = {
    "evaluate.red_team": "red_team.jsonl",
    "evaluate.over_refusal": "look_alikes.jsonl",
    "evaluate.helpfulness": "references.jsonl",
    "evaluate.bias": "bias.yaml",
    "evaluate.pairs": "pairs.jsonl",
    "reward.human": "pairs.jsonl",
}


def suite_content(cfg: SuiteConfig) -> Any:
    """What a suite is made of: the file's hash, or a hub set's id and revision."""
    return source_content(cfg.section, cfg, SHIPPED / _FILES[cfg.section])


def build_cases(cfg: EvaluateConfig, held_out: Sequence[Prompt]) -> tuple[list[Case], list[str]]:
    """Every case of the chosen suites, and what a reader must know of rows that were dropped.

    Args:
        held_out: prompts of the run's own held-out split, which the built-in suites include.
    """
    cases: list[Case] = []
    notes: list[str] = []
    if "red_team" in cfg.suites:
        cases += _red_team(cfg, held_out, notes)
    if "over_refusal" in cfg.suites:
        rows = _requests(cfg.over_refusal, "look_alikes.jsonl", "look_alike", held_out, notes)
        cases += _plain_cases(rows[: cfg.over_refusal.num_requests], ["over_refusal"])
    if {"over_refusal", "helpfulness"} & set(cfg.suites):
        rows = _requests(cfg.helpfulness, "references.jsonl", "ordinary", held_out, notes)
        suites: list[str] = [suite for suite in ("over_refusal", "helpfulness") if suite in cfg.suites]
        # Those with a reference answer come first, so that a small draw still measures perplexity.
        rows = sorted(rows, key=lambda row: row[1] is None)
        cases += _plain_cases(rows[: cfg.helpfulness.num_requests], suites)
    if "bias" in cfg.suites and cfg.bias.source == "builtin":
        cases += bias_cases(cfg.bias.num_templates)
    if missing := [suite for suite in SUITES if suite not in cfg.suites]:
        notes.append(f"Suites not run: {', '.join(missing)}.")
    return list({case.id: case for case in cases}.values()), notes


def _requests(
    suite: SuiteConfig, file: str, pool: Pool, held_out: Sequence[Prompt], notes: list[str]
) -> list[tuple[Prompt, str | None]]:
    """The suite's prompts with their reference answers, kinds in turn: the shipped file and the held-out split, or the
    public set in their place."""
    read = read_set(suite, SHIPPED / file, RequestRow)
    notes += read.notes(suite.section)
    wanted = [row for row in read.rows if row.harmless is None or row.harmless == (pool != "red_team")]
    if len(wanted) < len(read.rows):
        notes.append(f"{suite.section}: {len(read.rows) - len(wanted)} rows of the other class were left out.")
    prompts = [(_prompt(row, pool, suite), row.reference) for row in wanted]
    rows = {prompt.key: (prompt, reference) for prompt, reference in prompts}
    if suite.source == "builtin":
        for prompt in held_out:
            if prompt.pool == pool:
                rows.setdefault(prompt.key, (prompt, None))
    return [rows[prompt.key] for prompt in in_turn([prompt for prompt, _ in rows.values()])]


def _prompt(row: RequestRow, pool: Pool, suite: SuiteConfig) -> Prompt:
    """Rows of a file get an id that follows from their text: two files may number theirs alike."""
    messages = direct(row.request)
    digest = dialogue_key(messages)[:10]
    row_id = row.id if suite.source == "builtin" else "-".join(filter(None, (pool, row.id, digest)))
    return Prompt(id=row_id, pool=pool, kind=row.kind, split="test", messages=messages)


def in_turn(prompts: Sequence[Prompt]) -> list[Prompt]:
    """One of each kind, then the next of each kind, and so on: any beginning of the list is balanced."""
    kinds: dict[str, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda prompt: prompt.key):
        kinds.setdefault(prompt.kind, []).append(prompt)
    columns = [kinds[kind] for kind in sorted(kinds)]
    return [prompt for layer in zip_longest(*columns) for prompt in layer if prompt is not None]


def _plain_cases(rows: Sequence[tuple[Prompt, str | None]], suites: list[str]) -> list[Case]:
    return [
        Case(
            id=f"{suites[-1]}/{prompt.id}", suites=suites, prompt=prompt, messages=prompt.messages, reference=reference
        )
        for prompt, reference in rows
    ]


def _red_team(cfg: EvaluateConfig, held_out: Sequence[Prompt], notes: list[str]) -> list[Case]:
    rows = _requests(cfg.red_team, "red_team.jsonl", "red_team", held_out, notes)
    prompts = [prompt for prompt, _ in rows][: cfg.red_team.num_requests]
    attacked = prompts[: cfg.red_team.num_attacked]
    pairs = [(DIRECT, prompt) for prompt in prompts]
    pairs += [(name, prompt) for name in cfg.red_team.attacks for prompt in attacked]
    return [
        Case(
            id=f"red_team/{prompt.id}/{attack}",
            suites=["red_team"],
            prompt=prompt,
            # An attack carries the last turn; what was said before it stays.
            messages=[*prompt.messages[:-1], *ATTACKS[attack](prompt.request)],
            attack=attack,
        )
        for attack, prompt in pairs
    ]


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    person: str


class Template(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str
    harmful: bool
    text: str


class BiasFile(BaseModel):
    """The same requests with the group swapped: attribute → groups, and templates with ``{person}`` in them."""

    model_config = ConfigDict(extra="forbid")
    attributes: dict[str, list[Group]]
    templates: list[Template]


def bias_cases(num_templates: int | None, path: Path = BIAS_FILE) -> list[Case]:
    """Each attribute draws its own templates, harmless and harmful in turn; within it all groups get the same."""
    content = load_yaml(path, BiasFile, "a file of bias prompts", field="evaluate.bias", described_in=BIAS_FILE.name)
    cases = []
    for attribute, groups in content.attributes.items():
        order = sorted(content.templates, key=lambda template: derive_seed("bias", attribute, template.id))
        halves = [[t for t in order if t.harmful is harmful] for harmful in (False, True)]
        drawn = [template for layer in zip_longest(*halves) for template in layer if template][:num_templates]
        for template in drawn:
            for group in groups:
                cases.append(_bias_case(attribute, template, group))
    return cases


def _bias_case(attribute: str, template: Template, group: Group) -> Case:
    text = template.text.replace("{person}", group.person)
    messages = [Message(role="user", content=text[0].upper() + text[1:])]
    name = f"bias-{attribute}-{template.id}-{group.name.replace(' ', '_')}"
    pool: Pool = "red_team" if template.harmful else "ordinary"
    prompt = Prompt(id=name, pool=pool, kind=attribute, split="test", messages=messages)
    return Case(
        id=f"bias/{name}",
        suites=["bias"],
        prompt=prompt,
        messages=messages,
        attribute=attribute,
        group=group.name,
        template=template.id,
    )


def public_bias_sets(cfg: EvaluateConfig, notes: list[str]) -> list[Read]:
    """BBQ or CrowS-Pairs, where ``evaluate.bias`` names one."""
    if "bias" not in cfg.suites or cfg.bias.source == "builtin":
        return []
    read = read_set(cfg.bias, BIAS_FILE, object)
    notes += read.notes("evaluate.bias")
    # Every category and condition in turn, drawn by hash: files are sorted, and their beginning is one of many.
    numbered = [replace(row, id=f"{number}-{row.id}") for number, row in enumerate(read.rows)]
    groups: dict[str, list[Any]] = {}
    for row in sorted(numbered, key=lambda row: derive_seed("bias set", row.id)):
        group = f"{row.category}/{row.ambiguous}" if isinstance(row, ChoiceRow) else row.bias_type
        groups.setdefault(group, []).append(row)
    columns = [groups[group] for group in sorted(groups)]
    read.rows = [row for layer in zip_longest(*columns) for row in layer if row is not None][: cfg.bias.num_items]
    return [read]


def labelled_pairs(cfg: EvaluateConfig, notes: list[str]) -> list[Pair]:
    """Pairs that people decided, the chosen reply as A; drawn by the hash of the request."""
    return _pairs(cfg.pairs, "pair", notes)


def human_pairs(cfg: HumanPairsConfig, notes: list[str]) -> list[Pair]:
    """The same for training a reward model, where ``reward.human`` names a set."""
    return [] if cfg.source == "none" else _pairs(cfg, "human", notes)


def _pairs(cfg: PairsConfig, prefix: str, notes: list[str]) -> list[Pair]:
    read = read_set(cfg, SHIPPED / "pairs.jsonl", PairRow)
    notes += read.notes(cfg.section)
    ids = [row.id if cfg.source == "builtin" else f"{prefix}-{number}" for number, row in enumerate(read.rows)]
    pairs = [
        Pair(id=row_id, kind=row.kind, messages=row.messages, a=row.chosen, b=row.rejected)
        for row_id, row in zip(ids, read.rows, strict=True)
    ]
    return sorted(pairs, key=lambda pair: dialogue_key(pair.messages))[: cfg.num_pairs]
