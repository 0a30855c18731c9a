"""Which pairs a reward model is trained on, and which are held out."""

from __future__ import annotations

from pipeline.stages.reward import NUM_REFERENCE, mixed, reference_pairs, source_of, split_by_prompt, usable
from tests.reward_data import toy_pairs, toy_preference


def test_which_labels_count():
    pairs = [toy_preference(0).model_copy(update={"probability_a": label}) for label in (None, 0.5, 0.7, 0.2)]
    assert [p.probability_a for p in usable(pairs, hard_labels=False)] == [0.5, 0.7, 0.2]
    assert [p.probability_a for p in usable(pairs, hard_labels=True)] == [1.0, 0.0]


def test_pairs_are_held_out_by_prompt_whatever_their_order():
    pairs = [toy_preference(index) for index in range(20)]
    pairs += [p.model_copy(update={"labeller": "human"}) for p in pairs[:10]]  # the same prompts, labelled twice
    rest, held_out = split_by_prompt(pairs, 0.2)
    prompts = [{p.comparison.prompt.key for p in part} for part in (rest, held_out)]
    assert not prompts[0] & prompts[1] and len(prompts[1]) == 4 and len(rest) + len(held_out) == 30
    again = split_by_prompt(pairs[::-1], 0.2)[1]
    assert {p.comparison.id for p in again} == {p.comparison.id for p in held_out}
    assert len(split_by_prompt(pairs[:2], 0.05)[1]) == 1, "one prompt is always held out"


def test_helpfulness_pairs_are_drawn_in_proportion_and_human_ones_all_kept():
    harmless = [toy_preference(index) for index in range(6)]
    helpful = [toy_preference(index, pool="ordinary") for index in range(6, 20)]
    helpful += [toy_preference(index, pool="look_alike") for index in range(20, 30)]
    human = [toy_preference(index).model_copy(update={"labeller": "human"}) for index in range(30, 33)]

    def drawn(ratio: float, seed: int = 0) -> list[str]:
        chosen = mixed([*helpful, *human, *harmless], ratio, seed)
        return sorted(p.comparison.id for p in chosen if source_of(p) == "helpfulness")

    assert len(drawn(0.5)) == 3 and len(drawn(1)) == 6 and len(drawn(100)) == 24 and drawn(0) == []
    assert drawn(1) == drawn(1) != drawn(1, seed=1)
    sources = [source_of(p) for p in mixed([*helpful, *human, *harmless], 0, 0)]
    assert sources.count("human") == 3 and sources.count("harmlessness") == 6


def test_rewards_are_scaled_by_a_sample_of_the_labelled_pairs():
    pairs = toy_pairs(NUM_REFERENCE + 40)
    human = [pair.model_copy(update={"labeller": "human"}) for pair in toy_pairs(8, start=len(pairs))]
    chosen = reference_pairs([*pairs, *human], seed=0)
    assert len(chosen) == NUM_REFERENCE and not any(pair in human for pair in chosen)
    assert len({pair.comparison.id for pair in chosen}) == NUM_REFERENCE
    assert chosen == reference_pairs([*pairs, *human], seed=0) != reference_pairs([*pairs, *human], seed=1)
    few = reference_pairs(pairs[:3], seed=0)
    assert sorted(pair.comparison.id for pair in few) == sorted(pair.comparison.id for pair in pairs[:3])
