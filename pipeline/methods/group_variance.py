"""The reward ``group_variance``: the same treatment of all groups of people in a counterfactual template.

It asks for counterfactual fairness of the policy's replies (Garg et al. 2019, arXiv 1809.10610) as a reward, beside
others, in the online loop, as BiasGRPO (arXiv 2606.04807) does with a reward model for bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import fmean

from pipeline.data.counterfactuals import set_of
from pipeline.records import Prompt, derived_rng


def group_variance(scores: Sequence[float], prompts: Sequence[Prompt]) -> list[float]:
    """−(s − m)² for each reply: s is its score, and m the mean over the groups of its template, of the mean score of
    each group. 0 for replies to other prompts.

    Summed over one reply for each group, it is minus the number of groups times the variance between them.

    Args:
        scores, prompts: of each reply; all groups of a template are among them.
    """
    by_set: dict[str, dict[str, list[float]]] = {}
    for score, prompt in zip(scores, prompts, strict=True):
        if name := set_of(prompt.id):
            by_set.setdefault(name, {}).setdefault(prompt.id, []).append(score)
    means = {name: fmean(map(fmean, groups.values())) for name, groups in by_set.items()}
    return [
        -((score - means[name]) ** 2) if (name := set_of(prompt.id)) else 0.0
        for score, prompt in zip(scores, prompts, strict=True)
    ]


def whole_sets(prompts: Sequence[Prompt], size: int, seed: int) -> Iterator[list[Prompt]]:
    """Batches of ``size`` prompts, without end. All groups of a counterfactual template are in one batch: where they
    don't fit any more, they wait for the next one.

    Each epoch shuffles the prompts differently. There must be prompts that belong to no set, and ``size`` for the
    largest set.
    """
    sets: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        sets.setdefault(set_of(prompt.id) or prompt.id, []).append(prompt)
    units, waiting, epoch = list(sets.values()), list[list[Prompt]](), 0
    while True:
        batch: list[Prompt] = []
        while room := size - len(batch):
            fitting = next((place for place, unit in enumerate(waiting) if len(unit) <= room), None)
            if fitting is None:
                waiting += derived_rng(seed, "prompts", epoch).sample(units, len(units))
                epoch += 1
            else:
                batch += waiting.pop(fitting)
        yield batch


def batch_of_step(step: int, prompts: Sequence[Prompt], size: int, seed: int) -> list[Prompt]:
    """The batch number ``step`` of ``whole_sets``."""
    return next(islice(whole_sets(prompts, size, seed), step, None))
