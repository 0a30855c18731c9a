"""Lists how a configuration differs from Bai et al. 2022 (arXiv 2212.08073)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.constitution.schema import Constitution

if TYPE_CHECKING:
    from pipeline.chain.config import Config

PAPER_PRINCIPLES = 16
PAPER_ROUNDS = 4


def _on(align: Any) -> str:
    """The rewards or labels that a method trains on."""
    parts = (f"{weight:g} × {name.replace('_', ' ')}" for name, weight in align.rewards.items())
    return f"on {' + '.join(parts)}" if align.rewards else "on the soft labels"


def deviations_from_paper(config: Config, constitution: Constitution) -> list[str]:
    """One sentence per difference from the paper, without a full stop."""
    critique, sft, preferences, align = config.critique, config.sft, config.preferences, config.align
    asked = preferences.asks_labeller
    harmful, harmless = (len(constitution.principles_for(pool)) for pool in ("red_team", "ordinary"))
    found = [
        (
            harmful != PAPER_PRINCIPLES,
            f"{harmful} principles for harmful requests and {harmless} for harmless ones, the same for critiques and "
            f"labels; the paper has {PAPER_PRINCIPLES} for critiques and {PAPER_PRINCIPLES} for labels",
        ),
        (critique.num_rounds != PAPER_ROUNDS, f"{critique.num_rounds} round(s) of revision instead of {PAPER_ROUNDS}"),
        (critique.temperature != 1, f"critiques and revisions at T = {critique.temperature:g} instead of 1"),
        (critique.top_p != 1, f"nucleus sampling (top_p = {critique.top_p:g}) in critique and revision"),
        (sft.revisions != "all", "supervised fine-tuning on the last revision only, not on all"),
        (sft.worked_examples, "supervised fine-tuning also on the constitution's worked examples and good answers"),
        (sft.num_epochs != 1, f"{sft.num_epochs:g} epochs of supervised fine-tuning instead of 1"),
        (not asked, "labels by the pool in which people filed a prompt, not by AI feedback"),
        (
            asked and preferences.labeller.kind not in {"ab", "cot"},
            f"labels by {preferences.labeller.kind} instead of (A)/(B)",
        ),
        (
            asked and preferences.labeller.num_principles != 1,
            f"{preferences.labeller.num_principles} principles per label instead of 1",
        ),
        (preferences.temperature != 1, f"pairs sampled at T = {preferences.temperature:g} instead of 1"),
        (
            config.rounds > 1,
            f"{config.rounds} rounds of labels and alignment, each on the newest policy's replies",
        ),
        (asked, "AI labels for helpfulness as well; the paper uses human ones"),
        (align.method != "ppo", f"{align.method.upper()} {_on(align)} instead of PPO against a preference model"),
        (align.method == "ppo" and align.rewards.keys() != {"reward_model"}, f"PPO {_on(align)}"),
        (align.trains_reward_model and config.reward.human.source == "none", "no human labels in the reward model"),
        (getattr(align, "hard_labels", False), "labels rounded to 0 or 1 before alignment"),
    ]
    return [sentence for differs, sentence in found if differs]
