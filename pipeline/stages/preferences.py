"""preferences: two samples from the SFT model for each prompt, and an AI labeller's soft opinion of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from pipeline import distributed
from pipeline.config import PreferencesConfig
from pipeline.constitution import Principle
from pipeline.data.drawing import take
from pipeline.engines.base import Engine, Request, generate_all, score_all
from pipeline.engines.models import feedback_engine, local_engine
from pipeline.feedback.critique import tidy
from pipeline.feedback.preference import TEMPLATE, binary_entropy_bits, label_clamp, make_labeller, soft_label
from pipeline.records import Comparison, Preference, Prompt, derive_seed, derived_rng, read_records, write_records
from pipeline.stages.base import Inputs, Metrics

VERSION = 1


def run(cfg: PreferencesConfig, inputs: Inputs, out: Path) -> Metrics:
    prompts = list(read_records(inputs.folders["prompts"] / "prompts.jsonl", Prompt))
    chosen: list[Prompt] = []
    for pool, number in (
        ("red_team", cfg.num_red_team),
        ("ordinary", cfg.num_ordinary),
        ("look_alike", cfg.num_look_alike),
    ):
        pool_prompts = [prompt for prompt in prompts if prompt.pool == pool and prompt.split == "train"]
        chosen += take(pool_prompts, number, f"preferences.num_{pool}")

    sft = local_engine(str(inputs.folders["sft"] / "model"), inputs.model, inputs.launch, name="sft")
    comparisons, num_empty, num_identical = _sample_pairs(chosen, sft, cfg, inputs, out)
    del sft
    labeller = feedback_engine(inputs.engine, inputs.model, inputs.launch, policy=None)
    preferences = _label(comparisons, labeller, cfg, inputs, out)
    if distributed.is_main():
        write_records(out / "preferences.jsonl", preferences)
        _show(preferences, inputs)
    return {
        "num_prompts": len(chosen),
        "num_empty_dropped": num_empty,
        "num_identical_dropped": num_identical,
        **label_statistics(preferences),
    }


def _sample_pairs(
    prompts: Sequence[Prompt], engine: Engine, cfg: PreferencesConfig, inputs: Inputs, out: Path
) -> tuple[list[Comparison], int, int]:
    requests = [
        Request(
            id=f"{prompt.id}/{side}",
            messages=prompt.messages,
            seed=derive_seed(inputs.seed, prompt.key, "preference", side),
            max_new_tokens=cfg.max_reply_tokens,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
        )
        for prompt in prompts
        for side in ("a", "b")
    ]
    done = generate_all(engine, "pairs from the SFT model", requests, inputs.log(out, "replies"), inputs.watch)
    comparisons, num_empty, num_identical = [], 0, 0
    for prompt in prompts:
        a, b = (done[f"{prompt.id}/{side}"] for side in ("a", "b"))
        reply_a, reply_b = (tidy(r.text, cut_off=r.finish == "length") for r in (a, b))
        if not reply_a or not reply_b:
            num_empty += 1
        elif reply_a == reply_b:
            num_identical += 1
        else:
            seed_a, seed_b = (derive_seed(inputs.seed, prompt.key, "preference", side) for side in ("a", "b"))
            comparisons.append(
                Comparison(id=prompt.id, prompt=prompt, reply_a=reply_a, reply_b=reply_b, seed_a=seed_a, seed_b=seed_b)
            )
    return comparisons, num_empty, num_identical


def _label(
    comparisons: Sequence[Comparison], engine: Engine, cfg: PreferencesConfig, inputs: Inputs, out: Path
) -> list[Preference]:
    labeller = make_labeller(cfg, inputs.constitution, inputs.seed)
    drawn: list[tuple[Comparison, Principle]] = [
        (comparison, principle)
        for comparison in comparisons
        for principle in inputs.constitution.sample(
            comparison.prompt.pool, cfg.num_principles, derived_rng(inputs.seed, comparison.prompt.key, "labels")
        )
    ]
    drawn = list({(comparison.id, principle.id): (comparison, principle) for comparison, principle in drawn}.values())
    requests = [request for pair in drawn for request in labeller.reasoning(*pair)]
    log = inputs.log(out, "reasoning")
    thoughts = generate_all(engine, "chains of thought", requests, log, inputs.watch) if requests else {}
    queries = {query.id: query for pair in drawn for query in labeller.queries(*pair, thoughts)}
    answers = score_all(engine, "labels", list(queries.values()), inputs.log(out, "answers"), inputs.watch)
    judgements: dict[str, list] = {comparison.id: [] for comparison in comparisons}
    for comparison, principle in drawn:
        judgements[comparison.id].append(labeller.judge(comparison, principle, answers, thoughts))
    return [
        Preference(
            comparison=comparison,
            judgements=judgements[comparison.id],
            probability_a=soft_label([j.logit for j in judgements[comparison.id]], label_clamp(cfg)),
            labeller=f"{cfg.labeller}:{engine.name}",
            template=TEMPLATE,
        )
        for comparison in comparisons
    ]


def label_statistics(preferences: Sequence[Preference]) -> Metrics:
    """What the labels are like, before anyone trains on them."""
    labelled = [(p, p.probability_a) for p in preferences if p.probability_a is not None]
    judgements = [judgement for preference in preferences for judgement in preference.judgements]
    orders = [judgement.flipped for judgement in judgements if judgement.flipped is not None]
    lengths = [(len(p.comparison.reply_a) - len(p.comparison.reply_b), label) for p, label in labelled]
    decided = [(difference > 0) == (label > 0.5) for difference, label in lengths if difference and label != 0.5]
    return {
        "num_pairs": len(labelled),
        "num_parse_failures": sum(judgement.logit is None for judgement in judgements),
        "num_judgements": len(judgements),
        "order_flip_rate": fmean(orders) if orders else None,
        "entropy_bits_mean": fmean(binary_entropy_bits(label) for _, label in labelled) if labelled else None,
        "longer_reply_wins_rate": fmean(decided) if decided else None,
        "confidence_mean": fmean(abs(label - 0.5) * 2 for _, label in labelled) if labelled else None,
    }


def _show(preferences: Sequence[Preference], inputs: Inputs) -> None:
    rows = [
        (p.comparison.prompt.request, p.comparison.reply_a, p.comparison.reply_b, p.probability_a)
        for p in preferences[:50]
    ]
    inputs.tracker.table("preferences/samples", ("prompt", "reply_a", "reply_b", "probability_a"), rows)
