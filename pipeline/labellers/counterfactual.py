"""Pairs of replies to counterfactual prompts: the same label, and where possible the same replies, for every group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from pipeline.data.counterfactuals import CounterfactualSet, retold
from pipeline.engines.roles import BASE
from pipeline.labellers.sampling import Replies, Sampler
from pipeline.records import Comparison, Prompt

Judge = Callable[[str, str], str]
"""(reply, request) → ``refused``, ``complied`` or ``broken``."""


def same_pairs(
    sampler: Sampler, sets: Sequence[CounterfactualSet], opening: str, only_openings: bool, judge: Judge
) -> tuple[list[Comparison], int]:
    """A pair for each group: A is a refusal and B an answer. Both are replies to the prompt that names no group, so
    only the phrase for the person differs between the groups.

    Args:
        opening: of the constitution's refusals.
        only_openings: A is only this opening, and B the beginning of the base model's answer.

    Returns:
        the pairs, and how many harmless ones are left out because their answer declines.
    """
    neutral = [each.neutral for each in sets]
    if not neutral:
        return [], 0
    if only_openings:
        refusals: Replies = {prompt.id: (opening, True) for prompt in neutral}
        answers = sampler.beginnings(neutral)
    else:
        refusals, answers = sampler.refusals(neutral), sampler.whole(BASE, neutral, "b")
    prompts = [prompt for each in sets for prompt in each.prompts]
    seeds = {p.id: {side: sampler.seed(each.neutral, side) for side in "ab"} for each in sets for p in each.prompts}
    pairs = [
        pair.model_copy(
            update={
                "opening": opening if only_openings else "",
                **{f"seed_{side}": seed for side, seed in seeds[pair.prompt.id].items()},
            }
        )
        for pair in sampler.pairs(prompts, _for_groups(sets, refusals), _for_groups(sets, answers))
    ]
    kept = [p for p in pairs if p.prompt.pool == "red_team" or judge(p.reply_b, p.prompt.request) != "refused"]
    return kept, len(pairs) - len(kept)


def _for_groups(sets: Sequence[CounterfactualSet], replies: Replies) -> Replies:
    """Replies to the neutral prompts, told of each group."""
    return {
        prompt.id: (retold(replies[each.neutral.id][0], each.neutral_person, person), replies[each.neutral.id][1])
        for each in sets
        for prompt, person in zip(each.prompts, each.persons, strict=True)
    }


def consistency_pairs(sampler: Sampler, who: str, sets: Sequence[CounterfactualSet], judge: Judge) -> list[Comparison]:
    """Pairs of whole replies of the model ``who``, where it declines for some groups of a set only.

    Each wrong reply is compared with the first right one, told of the same group. A is the reply that declines. Broken
    replies are neither.
    """
    prompts = [prompt for each in sets for prompt in each.prompts]
    replies = sampler.whole(who, prompts, "a") if prompts else {}
    return list(chain.from_iterable(_inconsistent(sampler, each, replies, judge) for each in sets))


def _inconsistent(sampler: Sampler, each: CounterfactualSet, replies: Replies, judge: Judge) -> list[Comparison]:
    right, wrong = ("refused", "complied") if each.is_harmful else ("complied", "refused")
    found = {prompt.id: judge(replies[prompt.id][0], prompt.request) for prompt in each.prompts}
    people = list(zip(each.prompts, each.persons, strict=True))
    better, its_person = next(((prompt, who) for prompt, who in people if found[prompt.id] == right), (None, ""))
    if better is None:
        return []
    return [
        _pair(sampler, prompt, better, retold(replies[better.id][0], its_person, who), replies, each.is_harmful)
        for prompt, who in people
        if found[prompt.id] == wrong
    ]


def _pair(
    sampler: Sampler, prompt: Prompt, better: Prompt, better_reply: str, replies: Replies, harmful: bool
) -> Comparison:
    own, begun = replies[prompt.id]
    sides = [(better_reply, better, replies[better.id][1]), (own, prompt, begun)]
    (reply_a, from_a, begun_a), (reply_b, from_b, begun_b) = sides if harmful else sides[::-1]
    return Comparison(
        id=prompt.id,
        prompt=prompt,
        reply_a=reply_a,
        reply_b=reply_b,
        seed_a=sampler.seed(from_a, "a"),
        seed_b=sampler.seed(from_b, "a"),
        begun_a=begun_a,
        begun_b=begun_b,
    )
