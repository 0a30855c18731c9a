"""evaluate: base, SFT and aligned model on prompts that nothing was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline import distributed
from pipeline.config import EvaluateConfig
from pipeline.data.splits import refuse_overlap
from pipeline.engines.base import Request, generate_all
from pipeline.engines.models import local_engine
from pipeline.evals import refusal
from pipeline.evals.summary import MODELS, Table, summarise
from pipeline.records import (
    Preference,
    Prompt,
    TrainingRow,
    Verdict,
    derive_seed,
    dialogue_key,
    read_records,
    write_records,
)
from pipeline.stages.base import Inputs, Metrics, take

VERSION = 1


def run(cfg: EvaluateConfig, inputs: Inputs, out: Path) -> Metrics:
    prompts = held_out(cfg, inputs)
    refuse_overlap(prompts, trained_keys(inputs))
    paths = {
        "base": inputs.model.path,
        "sft": str(inputs.folders["sft"] / "model"),
        "aligned": str(inputs.folders["align"] / "model"),
    }
    verdicts: list[Verdict] = []
    for name in MODELS:
        verdicts += _judge(name, paths[name], prompts, cfg, inputs, out)
    table = summarise(verdicts, cfg.confidence)
    if distributed.is_main():
        write_records(out / "verdicts.jsonl", verdicts)
        _show(verdicts, table, inputs)
    return {"judge": refusal.NAME, "split": cfg.split, "table": table}


def held_out(cfg: EvaluateConfig, inputs: Inputs) -> list[Prompt]:
    prompts = read_records(inputs.folders["prompts"] / "prompts.jsonl", Prompt)
    split = [prompt for prompt in prompts if prompt.split == cfg.split]
    chosen: list[Prompt] = []
    for pool, number in (
        ("red_team", cfg.num_red_team),
        ("ordinary", cfg.num_ordinary),
        ("look_alike", cfg.num_look_alike),
    ):
        chosen += take([prompt for prompt in split if prompt.pool == pool], number, f"evaluate.num_{pool}")
    return chosen


def trained_keys(inputs: Inputs) -> dict[str, str]:
    """Every request that anything was trained on or shown as an example, and where."""
    keys = {dialogue_key(messages): "the constitution" for messages in inputs.constitution.requests()}
    for row in read_records(inputs.folders["sft"] / "rows.jsonl", TrainingRow):
        keys[dialogue_key(row.messages)] = "the SFT rows"
    for preference in read_records(inputs.folders["preferences"] / "preferences.jsonl", Preference):
        keys[preference.comparison.prompt.key] = "the preferences"
    return keys


def _judge(
    name: str, path: str, prompts: Sequence[Prompt], cfg: EvaluateConfig, inputs: Inputs, out: Path
) -> list[Verdict]:
    engine = local_engine(path, inputs.model, inputs.launch, name=name)
    requests = [
        Request(
            id=prompt.id,
            messages=prompt.messages,
            seed=derive_seed(inputs.seed, prompt.key, "evaluate"),
            max_new_tokens=cfg.max_reply_tokens,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
        )
        for prompt in prompts
    ]
    done = generate_all(engine, f"replies of {name}", requests, inputs.log(out, f"replies-{name}"), inputs.watch)
    verdicts = []
    for prompt in prompts:
        reply = done[prompt.id]
        outcome, evidence = refusal.judge_reply(reply.text)
        verdicts.append(
            Verdict(
                prompt=prompt,
                model=name,
                reply=reply.text,
                num_tokens=reply.num_tokens,
                outcome=outcome,
                evidence=evidence,
                judge=refusal.NAME,
            )
        )
    return verdicts


def _show(verdicts: Sequence[Verdict], table: Table, inputs: Inputs) -> None:
    rows = [(v.model, v.prompt.pool, v.prompt.kind, v.prompt.request, v.reply, v.outcome) for v in verdicts]
    inputs.tracker.table("evaluate/replies", ("model", "pool", "kind", "prompt", "reply", "outcome"), rows)
    for model, rates in table.items():
        known = {name: rate["value"] for name, rate in rates.items() if rate["value"] is not None}
        inputs.tracker.log({f"evaluate/{model}/{name}": value for name, value in known.items()})
    names = list(next(iter(table.values())))
    measures = [(name, *(table[model][name]["text"] for model in table)) for name in names]
    inputs.tracker.table("evaluate/table", ("measure", *table), measures)
