"""Methods on labelled comparisons: what they share. DPO, IPO and KTO are in files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.core.errors import StageError
from pipeline.core.stage import Context, Cost, Metrics, Prepared
from pipeline.methods.base import AlignConfig, History, Method, num_judge_calls, num_steps
from pipeline.records import Preference, read_records

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.training.pairs import PairLogprobs

TOKENS_PER_TURN = 50  # for estimates of tokens read


class PairConfig(AlignConfig):
    """What methods on comparisons set."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference."""
    hard_labels: bool = False
    """Round each label to 0 or 1; a tie is left out."""
    min_confidence: float = Field(default=0.0, ge=0, le=0.5)
    """Leave out comparisons whose label is nearer to 0.5 than this."""


class BothRepliesConfig(PairConfig):
    """What methods set that compare the two replies directly."""

    num_reply_tokens: int | None = Field(default=None, ge=1)
    """Compare only the first so many tokens of each reply; null: all."""


class PairMethod(Method):
    """Trains on comparisons with their labels, or with labels by the rewards where there are any."""

    reads_preferences = True

    def cost(self, config: Any, prepared: Prepared) -> Cost:
        settings = prepared.config.preferences
        prompts = settings.compared_prompts(prepared)
        num_pairs, tokens = len(prompts), 2 * (TOKENS_PER_TURN + settings.max_reply_tokens)
        return Cost(
            num_calls=2 * num_judge_calls(config.reward_judge, prompts, prepared.constitution, prepared.config.seed),
            num_tokens_read=round(num_pairs * tokens * config.num_epochs),
            num_steps=num_steps(num_pairs, config),
        )

    def train(self, config: Any, context: Context) -> tuple[Metrics, History]:
        from pipeline.training.pairs import trainable

        preferences = list(read_records(context.folder("preferences") / "preferences.jsonl", Preference))
        if config.rewards:
            preferences = _relabelled(preferences, config, context)
        rows = trainable(preferences, config)
        if not rows:
            raise StageError(
                f"align has no pairs to train on: none of {len(preferences)} labels is usable; lower "
                f"align.min_confidence (now {config.min_confidence:g}) or look at the labels in "
                f"{context.folder('preferences')}."
            )
        metrics, history = self.train_on(rows, str(context.folder("sft") / "model"), config, context)
        last = history[-1] if history else {}
        rewards = {name: last.get(name) for name in ("rewards/margins", "rewards/accuracies")}
        return {"num_pairs": len(rows), "num_left_out": len(preferences) - len(rows), **metrics, **rewards}, history

    def train_on(
        self, rows: Sequence[dict[str, Any]], base_path: str, config: Any, context: Context
    ) -> tuple[Metrics, History]:
        from pipeline.training.pairs import train_pairs

        return train_pairs(rows, base_path, self, config, context)

    def loss(self, pairs: PairLogprobs, labels: Tensor, config: Any) -> Tensor:
        """The loss of each comparison, of shape (pairs,).

        Args:
            labels: (pairs,), probability that reply A is the better one.
        """
        raise NotImplementedError


def _relabelled(preferences: list[Preference], config: AlignConfig, context: Context) -> list[Preference]:
    """The same comparisons, labelled by the rewards instead of the labeller."""
    from pipeline.methods.rewards import make_rewards, relabelled

    prompts = [preference.comparison.prompt for preference in preferences]
    return relabelled(preferences, make_rewards(config, prompts, context))
