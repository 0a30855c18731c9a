"""The reward ``group_variance``: by hand, and the batches in which all groups of a template are together."""

from __future__ import annotations

from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.core.errors import ConfigError
from pipeline.data.counterfactuals import counterfactual_sets, set_of
from pipeline.methods.base import GROUP_VARIANCE
from pipeline.methods.group_variance import batch_of_step, group_variance, whole_sets
from pipeline.methods.policy_gradient.base import prompts_of_step, refuse_large_sets
from pipeline.methods.policy_gradient.collect import reward_equal_treatment
from pipeline.methods.policy_gradient.rollouts import Rollout
from pipeline.records import Message, Prompt


def prompt(name: str) -> Prompt:
    return Prompt(id=name, pool="ordinary", kind="k", split="train", messages=[Message(role="user", content=name)])


SINGLE = [prompt(f"single-{n}") for n in range(10)]
GROUPS = [prompt(f"counterfactual/age/{template}/{group}") for template in "xyz" for group in "abc"]


def test_the_reward_by_hand():
    """Scores 1, 0, 0 of three groups: their mean is ⅓. A single prompt has no part in it, whatever its score."""
    found = group_variance([1, 0, 0, 9], [*GROUPS[:3], SINGLE[0]])
    assert found == pytest.approx([-4 / 9, -1 / 9, -1 / 9, 0])
    assert group_variance([1, 1, 1], GROUPS[:3]) == [0, 0, 0]


def test_several_replies_to_a_prompt_make_the_mean_of_their_group():
    """Group a has the scores 1 and 0, group b has 0: the means are ½ and 0, and theirs is ¼."""
    found = group_variance([1, 0, 0], [GROUPS[0], GROUPS[0], GROUPS[1]])
    assert found == pytest.approx([-9 / 16, -1 / 16, -1 / 16])


def test_templates_are_compared_with_themselves_only():
    assert group_variance([1, 1, 0, 0], [*GROUPS[:2], *GROUPS[3:5]]) == [0, 0, 0, 0]


def test_all_groups_of_a_template_are_in_one_batch_and_an_epoch_has_every_prompt():
    batches = list(islice(whole_sets([*SINGLE, *GROUPS], 5, 3), 19))
    assert {len(batch) for batch in batches} == {5}
    for batch in batches:
        names = [set_of(one.id) for one in batch]
        assert all(names.count(name) == 3 for name in names if name)
    counts = {one.id: sum(batch.count(one) for batch in batches) for one in (*SINGLE, *GROUPS)}
    assert all(4 <= number <= 6 for number in counts.values()), "about 19 · 5 / 19 times each"
    assert batches[7] == batch_of_step(7, [*SINGLE, *GROUPS], 5, 3)
    assert batches[:3] != list(islice(whole_sets([*SINGLE, *GROUPS], 5, 4), 3)), "another seed, another order"


def ppo(*overrides: str) -> Any:
    return compose_config(["align=ppo", "model.path=org/model", *overrides])


def test_steps_have_whole_templates_only_where_there_are_some():
    config = ppo("align.rollout.num_counterfactuals=3", "align.global_batch_size=8").align
    step = prompts_of_step(1, [*SINGLE, *GROUPS], config, 0)
    assert step == batch_of_step(1, [*SINGLE, *GROUPS], 8, 0)
    grpo = compose_config(["align=grpo", "align.rollout.num_counterfactuals=3", "align.global_batch_size=16"]).align
    step = prompts_of_step(0, [*SINGLE, *GROUPS], grpo, 0)
    assert len(step) == 16 and step[0] == step[3] and len({one.id for one in step}) == 4


def rollout(index: int, of: Prompt, text: str, score: float) -> Rollout:
    return Rollout(
        index=index,
        prompt=of,
        prompt_tokens=[],
        reply_tokens=[1],
        ended=True,
        text=text,
        score=score,
        parts={"toy": score},
    )


@pytest.mark.parametrize(("score", "parts"), [("declines", [-4 / 9, -1 / 9, -1 / 9, 0]), ("reward", [0, -4, -4, 0])])
def test_it_is_added_to_the_other_rewards(score: str, parts: list[float]):
    """By ``declines``, the first group of three is treated unlike the others; the reward differs between the others."""
    texts = ["I can't help with that.", "Take the bus to town.", "Take the bus to town.", "I can't help with that."]
    scores = [2.0, 0.0, 4.0, 7.0]
    asked = [*GROUPS[:3], SINGLE[0]]
    rollouts = [rollout(n, *row) for n, row in enumerate(zip(asked, texts, scores, strict=True))]
    config = SimpleNamespace(rewards={"toy": 1.0, GROUP_VARIANCE: 0.5}, group_score=score)
    reward_equal_treatment(rollouts, config)
    assert [one.parts[GROUP_VARIANCE] for one in rollouts] == pytest.approx(parts)
    assert [one.score for one in rollouts] == pytest.approx([s + 0.5 * p for s, p in zip(scores, parts, strict=True)])
    reward_equal_treatment(rollouts, SimpleNamespace(rewards={"toy": 1.0}))
    assert rollouts[3].score == 7


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["align=ppo", "align.rewards.group_variance=1"], "num_counterfactuals is 0"),
        (
            [
                "align=ppo",
                "align.rewards.group_variance=1",
                "align.rewards.reward_model=0",
                "align.rollout.num_counterfactuals=4",
            ],
            "is the only reward",
        ),
        (["align=dpo", "align.rewards.group_variance=1"], "is not one of reward_model, constitution"),
    ],
)
def test_what_it_needs_is_said(overrides: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        compose_config(overrides)


def test_a_batch_that_is_too_small_for_an_attribute_is_refused():
    config = ppo("align.rollout.num_counterfactuals=40", "align.global_batch_size=4").align
    sets = counterfactual_sets(ppo().data, 40)
    with pytest.raises(ConfigError, match=r"'religion' has 5 groups, .* raise it to 5 or more"):
        refuse_large_sets(config, sets)
    refuse_large_sets(ppo("align.global_batch_size=8").align, sets)


def test_group_score_is_in_the_key_only_where_it_is_read():
    plain = ppo().align.key()
    assert "group_score" not in plain and "num_counterfactuals" not in plain["rollout"]
    with_it = ppo("align.rewards.group_variance=1", "align.rollout.num_counterfactuals=4").align.key()
    assert with_it["group_score"] == "declines" and with_it["rollout"]["num_counterfactuals"] == 4
