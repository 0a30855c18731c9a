"""The data summary: what the training data came from, and which share of it a model wrote."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipeline.core.stage import stage_of
from pipeline.evidence.collect import RunRecord

SHIPPED = "Apache-2.0"  # of the prompts and constitutions that come with the project
NOT_STATED = "not stated in the run"
BY_A_MODEL = (
    "revision",
    "helpful_sample",
)  # origins of rows whose reply a model wrote; the others are the constitution's


def data_summary(run: RunRecord) -> dict[str, Any]:
    """Sources with their licences, rows by who wrote them, and the models that wrote."""
    files = _files(run)
    num_rows = sum(file["num_rows"] for file in files)
    num_written = sum(file["num_rows_written_by_a_model"] for file in files)
    return {
        "sources": [*_prompt_sources(run), _constitution_source(run)],
        "files": files,
        "num_rows": num_rows,
        "num_rows_written_by_a_model": num_written,
        "synthetic_share": num_written / num_rows if num_rows else None,
        "synthetic_share_means": "rows of training data in which a model wrote the reply, or one of two, divided by "
        "all rows",
        "generator_models": _generators(run),
        "evaluation_sets": {name: _source(run.config["evaluate"].get(name, {})) for name in run.results.suites},
        "num_evaluated_requests": len({verdict.case.id for verdict in run.verdicts}),
    }


def _prompt_sources(run: RunRecord) -> list[dict[str, Any]]:
    counts = Counter(row["pool"] for row in run.rows("prompts", "prompts.jsonl"))
    pools = {name: run.config["data"].get(name, {}) for name in counts}
    found: list[dict[str, Any]] = [
        {"name": f"prompts, {name}", "num_rows": counts[name], **_source(section)} for name, section in pools.items()
    ]
    num_written = run.manifests["prompts"].metrics.get("num_written", 0) if "prompts" in run.manifests else 0
    if num_written:
        written = {"source": "written by the critic model", "licence": NOT_STATED}
        found.append({"name": "prompts that a model wrote (counted above, too)", "num_rows": num_written, **written})
    return found


def _source(section: Any) -> dict[str, Any]:
    """Where rows come from, and the licence where it is known. A path is only named by its last part."""
    kind = section.get("source", "builtin") if isinstance(section, dict) else "builtin"
    if kind == "builtin":
        return {"source": "shipped with cai", "licence": SHIPPED}
    where = section.get("hub_name") or section.get("path") or ""
    return {"source": f"{kind}: {str(where).rstrip('/').rpartition('/')[2]}", "licence": NOT_STATED}


def _constitution_source(run: RunRecord) -> dict[str, Any]:
    constitution = run.constitution
    return {
        "name": f"constitution {constitution.name} {constitution.version}",
        "num_rows": len(constitution.worked_examples) + len(constitution.good_answers) + len(constitution.contrasts),
        "source": getattr(constitution, "provenance", "") or NOT_STATED,
        "licence": SHIPPED
        if run.config["constitution"]["path"] in ("default", "minimal", "plain_speech")
        else NOT_STATED,
    }


def _files(run: RunRecord) -> list[dict[str, Any]]:
    """The files that models were trained on."""
    files = []
    for task in run.manifests:
        stage = stage_of(task)
        name = {"sft": "rows.jsonl", "preferences": "preferences.jsonl"}.get(stage)
        if name is None or not (rows := run.rows(task, name)):
            continue
        if stage == "sft":
            by = Counter(row["origin"] for row in rows)
            num_written = sum(by[origin] for origin in BY_A_MODEL)
        else:
            by = Counter(row["labeller"] for row in rows)
            num_written = sum(bool(row["comparison"]["seed_a"] or row["comparison"]["seed_b"]) for row in rows)
        files.append(
            {
                "file": f"{task}/{name}",
                "sha256": run.manifests[task].outputs.get(name),
                "num_rows": len(rows),
                "num_rows_written_by_a_model": num_written,
                "rows_by" if stage == "sft" else "labels_by": dict(by),
            }
        )
    return files


def _generators(run: RunRecord) -> dict[str, list[str]]:
    """What they wrote → the models, as the records name them. ``base`` is the model before training."""
    exchanges = run.rows(run.newest("critique"), "exchanges.jsonl")
    written = run.rows(run.newest("write"), "written.jsonl")
    pairs = run.rows(run.newest("preferences"), "preferences.jsonl")
    found = {
        "replies": {row["policy"] for row in exchanges},
        "critiques and revisions": {row["critic"] for row in exchanges},
        "prompts": {row["writer"] for row in written},
        "labels": {row["labeller"] for row in pairs} - {"pool", "constitution"},
        "base": {run.base_model},
    }
    return {what: sorted(names) for what, names in found.items() if names}
