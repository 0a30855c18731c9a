"""preferences: two samples from the SFT model for each prompt, and an AI labeller's soft opinion of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from pipeline.chain.config import PreferencesConfig
from pipeline.constitution.critique import tidy
from pipeline.constitution.schema import Contrast, Principle
from pipeline.core import distributed
from pipeline.data.drawing import take
from pipeline.engines.base import Engine, Request, generate_all, score_all
from pipeline.engines.models import feedback_engine, local_engine
from pipeline.labellers.preference import TEMPLATE, binary_entropy_bits, label_clamp, make_labeller, soft_label
from pipeline.records import Comparison, Preference, Prompt, derive_seed, derived_rng, read_records, write_records
from pipeline.stages.base import Inputs, Metrics

VERSION = 2


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

    sampler = _Sampler(cfg, inputs, out)
    contrasts = inputs.constitution.contrast_prompts(cfg.num_contrasts)
    if cfg.pairs == "contrast" and inputs.constitution.opening():
        comparisons = sampler.contrast_pairs(chosen)
    else:
        comparisons = sampler.sampled_pairs(chosen)
    worked = sampler.worked_pairs(contrasts)
    labeller = feedback_engine(inputs.engine, inputs.model, inputs.launch, policy=None)
    preferences = _label(comparisons, labeller, cfg, inputs, out) + [_written(comparison) for comparison in worked]
    if distributed.is_main():
        write_records(out / "preferences.jsonl", preferences)
        _show(preferences, inputs)
    return {
        "num_prompts": len(chosen),
        "num_written_labels": len(worked),
        "num_empty_dropped": sampler.num_empty,
        "num_identical_dropped": sampler.num_identical,
        **label_statistics(preferences),
    }


class _Sampler:
    """Draws the two replies of each pair, and counts what was of no use."""

    def __init__(self, cfg: PreferencesConfig, inputs: Inputs, out: Path) -> None:
        self._cfg, self._inputs, self._out = cfg, inputs, out
        self.num_empty = self.num_identical = 0

    def sampled_pairs(self, prompts: Sequence[Prompt]) -> list[Comparison]:
        """Two samples of the SFT model (Bai et al. 2022, section 4.1)."""
        a, b = (self._replies("sft", prompts, side) for side in ("a", "b"))
        return self._pairs(prompts, a, b)

    def contrast_pairs(self, prompts: Sequence[Prompt]) -> list[Comparison]:
        """The SFT model made to decline, beside what the base model would have said: the two ways to go wrong, one on
        harmful requests and the other on harmless ones."""
        declining = self._replies("sft", prompts, "a", begun=self._inputs.constitution.opening())
        return self._pairs(prompts, declining, self._replies("base", prompts, "b"))

    def worked_pairs(self, contrasts: Sequence[tuple[Contrast, Prompt, Prompt]]) -> list[Comparison]:
        """The constitution's contrasts: its own refusal beside the base model's reply, to the harmful request and,
        with the same refusal, to the harmless twin."""
        prompts = [prompt for _, harmful, twin in contrasts for prompt in (harmful, twin)]
        if not prompts:
            return []
        refusals = {prompt.id: contrast.revision for contrast, *both in contrasts for prompt in both}
        return self._pairs(prompts, refusals, self._replies("base", prompts, "b"))

    def _replies(self, who: str, prompts: Sequence[Prompt], side: str, begun: str = "") -> dict[str, str]:
        model, config = self._inputs.model, self._cfg
        path = model.path if who == "base" else str(self._inputs.folders["sft"] / "model")
        requests = [
            Request(
                id=f"{prompt.id}/{side}",
                messages=prompt.messages,
                seed=self._seed(prompt, side),
                max_new_tokens=config.max_reply_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                prefix=begun,
            )
            for prompt in prompts
        ]
        engine = local_engine(path, model, self._inputs.launch, name=who)
        label = f"replies of {who}" + (" that decline" if begun else "")
        done = generate_all(engine, label, requests, self._inputs.log(self._out, "replies"), self._inputs.watch)
        kept = {request.id.rpartition("/")[0]: done[request.id] for request in requests}
        return {
            prompt_id: tidy(f"{begun} {reply.text}".strip(), cut_off=reply.finish == "length") if reply.text else ""
            for prompt_id, reply in kept.items()
        }

    def _seed(self, prompt: Prompt, side: str) -> int:
        return derive_seed(self._inputs.seed, prompt.key, "preference", side)

    def _pairs(self, prompts: Sequence[Prompt], a: dict[str, str], b: dict[str, str]) -> list[Comparison]:
        comparisons = []
        for prompt in prompts:
            reply_a, reply_b = a[prompt.id], b[prompt.id]
            if not reply_a or not reply_b:
                self.num_empty += 1
            elif reply_a == reply_b:
                self.num_identical += 1
            else:
                seed_a, seed_b = (self._seed(prompt, side) for side in ("a", "b"))
                comparisons.append(
                    Comparison(
                        id=prompt.id, prompt=prompt, reply_a=reply_a, reply_b=reply_b, seed_a=seed_a, seed_b=seed_b
                    )
                )
        return comparisons


def _written(comparison: Comparison) -> Preference:
    """What the constitution says of its own examples: decline what is harmful (reply A), answer its twin (reply B)."""
    return Preference(
        comparison=comparison,
        judgements=[],
        probability_a=1.0 if comparison.prompt.pool == "red_team" else 0.0,
        labeller="constitution",
        template=TEMPLATE,
    )


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
