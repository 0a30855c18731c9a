"""Gather what the report says from the folders of the stages; every number comes from records named in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pipeline.artifacts import Manifest
from pipeline.config import ModelConfig
from pipeline.constitution import Constitution
from pipeline.evals.summary import MEASURES, change
from pipeline.records import POOLS, Exchange, Prompt, Verdict, read_records
from pipeline.training.history import read_history

POOL_TITLES = {"red_team": "harmful request", "ordinary": "ordinary request", "look_alike": "harmless look-alike"}


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """One held-out prompt and what each model said to it."""

    prompt: Prompt
    pool_title: str
    verdicts: list[Verdict]


@dataclass(frozen=True, kw_only=True)
class Report:
    title: str
    headline: str
    confidence: float
    model: ModelConfig
    preset: str
    deviations: list[str]
    constitution: Constitution
    table: dict[str, dict[str, dict[str, Any]]]
    measures: dict[str, tuple[str, str, bool]]
    changes: dict[str, dict[str, str]]
    transcripts: list[Transcript]
    exchanges: list[Exchange]
    manifests: dict[str, Manifest]
    losses: dict[str, list[float]]
    folders: dict[str, str]


def build_report(
    folders: Mapping[str, Path],
    constitution: Constitution,
    model: ModelConfig,
    preset: str,
    deviations: list[str],
    num_transcripts: int,
) -> Report:
    manifests: dict[str, Manifest] = {}
    for name, folder in folders.items():
        manifest = Manifest.read(folder)
        assert manifest is not None, f"{name} is not finished"
        manifests[name] = manifest
    table = manifests["evaluate"].metrics["table"]
    changes = {
        name: {
            "sft": change(table["base"][name], table["sft"][name], lower),
            "aligned": change(table["base"][name], table["aligned"][name], lower),
            "aligned_over_sft": change(table["sft"][name], table["aligned"][name], lower),
        }
        for name, (_, _, lower) in MEASURES.items()
    }
    verdicts = list(read_records(folders["evaluate"] / "verdicts.jsonl", Verdict))
    exchanges = [e for e in read_records(folders["critique"] / "exchanges.jsonl", Exchange) if e.revisions]
    return Report(
        title=f"{model.name} aligned with the constitution “{constitution.name}”",
        headline=headline(changes),
        confidence=manifests["evaluate"].identity["config"]["confidence"],
        model=model,
        preset=preset,
        deviations=deviations,
        constitution=constitution,
        table=table,
        measures=MEASURES,
        changes=changes,
        transcripts=pick_transcripts(verdicts, num_transcripts),
        exchanges=exchanges[:6],
        manifests=manifests,
        losses={name: [row["loss"] for row in read_history(folders[name])] for name in ("sft", "align")},
        folders={name: f"{number}-{name}" for number, name in enumerate(folders, start=1)},
    )


COSTS = {
    "ordinary_refused": "refuses more ordinary requests",
    "look_alike_refused": "refuses more harmless look-alikes",
    "broken": "breaks down more often",
}


def headline(changes: Mapping[str, Mapping[str, str]]) -> str:
    """One sentence for whoever reads no further. Said only where intervals are apart."""
    first = {
        "better": "The aligned model complies with fewer harmful requests than the base model",
        "worse": "The aligned model complies with more harmful requests than the base model",
    }.get(
        changes["harmful_complied"]["aligned"],
        "There is no evidence that the aligned model complies with fewer harmful requests than the base model",
    )
    costs = [text for name, text in COSTS.items() if changes[name]["aligned"] == "worse"]
    if not costs:
        return f"{first}; there is no evidence that it refuses more harmless ones or breaks down more often."
    listed = " and ".join([", ".join(costs[:-1]), costs[-1]] if len(costs) > 1 else costs)
    return f"{first}, but it {listed}."


def pick_transcripts(verdicts: Sequence[Verdict], number: int) -> list[Transcript]:
    """Half harmful, a quarter each of the others, kinds in turn: chosen by hash, never by how they came out."""
    by_prompt: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_prompt.setdefault(verdict.prompt.id, []).append(verdict)
    shares = {"red_team": number - 2 * (number // 4), "ordinary": number // 4, "look_alike": number // 4}
    picked: list[Transcript] = []
    for pool in POOLS:
        mine = sorted((group for group in by_prompt.values() if group[0].prompt.pool == pool), key=_hash_order)
        kinds: dict[str, list[list[Verdict]]] = {}
        for group in mine:
            kinds.setdefault(group[0].prompt.kind, []).append(group)
        in_turn = [group for layer in zip_longest(*kinds.values()) for group in layer if group]
        picked += [
            Transcript(prompt=group[0].prompt, pool_title=POOL_TITLES[pool], verdicts=group)
            for group in in_turn[: shares[pool]]
        ]
    return picked


def _hash_order(group: Sequence[Verdict]) -> str:
    return group[0].prompt.key
