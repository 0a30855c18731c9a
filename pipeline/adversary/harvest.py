"""From successes to training prompts: near-duplicates are refused, each gets a harmless twin, diversity is stated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.adversary.families import FAMILIES, family_of
from pipeline.adversary.records import Query
from pipeline.data.near_duplicates import NearIndex
from pipeline.records import Prompt, derived_rng, dialogue_text


@dataclass(frozen=True, kw_only=True)
class Harvest:
    """``prompts``: attacked harmful requests, and attacked look-alikes."""

    prompts: list[Prompt]
    kept: list[Query]
    num_successes: int

    def metrics(self) -> dict[str, Any]:
        return {
            "num_successes": self.num_successes,
            "num_near_duplicates": self.num_successes - len(self.kept),
            "num_attacked_look_alikes": len(self.prompts) - len(self.kept),
            **diversity(self.kept),
        }


def harvest(queries: Sequence[Query], look_alikes: Sequence[Prompt], max_similarity: float, seed: int) -> Harvest:
    """Successes as prompts to decline, and look-alikes under the same transforms as prompts to answer.

    So the manner of an attack says nothing about what is right: only the request does. A look-alike that is the twin of
    the attacked request comes first, then others, each at most once in a round; the request of a prompt that a model
    wrote has no transforms to copy, so it gets none.
    """
    successes = [query for query in queries if query.succeeded]
    kept = unlike(successes, max_similarity)
    free = sorted(look_alikes, key=lambda prompt: derived_rng(seed, "look-alike", prompt.key).random())
    prompts = []
    for query in kept:
        prompts.append(_attacked(query.verdict.case.prompt, query, query.verdict.case.messages))
        if all(_is_transform(step) for step in query.steps) and free:
            twins = [prompt for prompt in free if prompt.twin_of == query.verdict.case.prompt.id]
            chosen = (twins or free)[0]
            free.remove(chosen)
            prompts.append(_attacked(chosen, query, query.composition.apply(chosen.messages)))
    return Harvest(prompts=prompts, kept=kept, num_successes=len(successes))


def _is_transform(step: str) -> bool:
    family, _, name = step.partition(".")
    return name in FAMILIES.get(family, ())


def _attacked(prompt: Prompt, query: Query, messages: list[Any]) -> Prompt:
    return prompt.model_copy(update={"id": f"{prompt.id}/{query.attacker}-{query.number}", "messages": messages})


def unlike(queries: Sequence[Query], max_similarity: float) -> list[Query]:
    """Those whose conversation is less similar than this to all that were kept before."""
    index, kept = NearIndex({}, max_similarity), []
    for query in queries:
        text = dialogue_text(query.verdict.case.messages)
        if index.closest(text) is None:
            index.add(query.verdict.case.id, text)
            kept.append(query)
    return kept


def diversity(kept: Sequence[Query]) -> dict[str, Any]:
    """How many of each family, how many kinds of harm, the share of different compositions, and the mean similarity of
    two conversations (cosine of TF-IDF vectors of words; None for fewer than two)."""
    families = Counter(family for query in kept for family in set(map(family_of, query.steps)))
    distinct = {tuple(query.steps) for query in kept}
    return {
        "num_by_family": dict(sorted(families.items())),
        "num_kinds": len({query.verdict.case.prompt.kind for query in kept}),
        "share_of_different_compositions": len(distinct) / len(kept) if kept else None,
        "mean_similarity": mean_similarity([dialogue_text(query.verdict.case.messages) for query in kept]),
    }


def mean_similarity(texts: Sequence[str]) -> float | None:
    """Mean cosine of the TF-IDF vectors over all pairs of texts, from 0 (no word in common) to 1 (equal)."""
    if len(texts) < 2:
        return None
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b|\S").fit_transform(texts)  # texts of punctuation, too
    total = vectors.sum(axis=0)
    n = len(texts)
    # The vectors have length 1, so the sum over all ordered pairs is |Σv|² − n.
    return float(((total @ total.T)[0, 0] - n) / (n * (n - 1)))
