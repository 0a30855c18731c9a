"""The base class of methods on labelled comparisons (DPO, IPO and KTO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.core import distributed
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.stage import Context, Cost, Memory, Metrics, Prepared
from pipeline.methods.base import AlignConfig, History, Method, judge_role, num_judge_calls, num_steps
from pipeline.records import Preference, read_records

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.training.pairs import PairLogprobs

TOKENS_PER_TURN = 50  # an assumption of the cost estimate


class PairConfig(AlignConfig):
    """Settings of the methods on comparisons."""

    beta: float = Field(default=0.1, gt=0)
    """β of the loss: a larger value keeps the policy nearer to the reference."""
    min_confidence: float = Field(default=0.0, ge=0, le=0.5)
    """Leave out comparisons whose label differs from 0.5 by less than this."""


class BothRepliesConfig(PairConfig):
    """Settings of the methods whose loss compares the two replies of a pair."""

    hard_labels: bool = False
    """Round each label to 0 or 1, and leave out ties."""
    num_reply_tokens: int | None = Field(default=None, ge=1)
    """Train on only so many tokens at the start of each reply; null: all."""
    recovery_ratio: float = Field(default=0.0, ge=0, le=1)
    """Recovery rows for each pair: the answer has begun, and the refusal or the rest of the answer follows. They need
    pairs of a refusal and an answer."""
    recovery_tokens: int = Field(default=10, ge=1)
    """At most so many tokens of the answer have begun; how many is drawn for each row."""

    def key(self) -> dict[str, Any]:
        """Without recovery rows, their settings are not in it: results from before these settings stay valid."""
        found = super().key()
        return found if self.recovery_ratio else {k: v for k, v in found.items() if not k.startswith("recovery_")}


class PairMethod(Method):
    """Trains on comparisons. With ``config.rewards``, the rewards give the labels instead of the labeller."""

    reads_preferences = True

    def check(self, config: Any, prepared: Prepared) -> list[str]:
        pairs, opening = prepared.config.preferences.pairs, prepared.constitution.opening()
        if getattr(config, "recovery_ratio", 0) and (pairs == "sampled" or not opening):
            why = f"preferences.pairs is {pairs!r}"
            if pairs != "sampled":
                why = f"the constitution {prepared.constitution.name!r} does not show how a refusal begins"
            raise ConfigError(
                f"align.recovery_ratio is {config.recovery_ratio:g}, but {why}, so no pair has a refusal and an "
                f"answer; use align.recovery_ratio=0{', or preferences.pairs=contrast' if opening else ''}."
            )
        notes = super().check(config, prepared)
        if config.rewards and not config.trains_reward_model and prepared.config.preferences.asks_labeller:
            instead = "set preferences.labels=pool" if opening else "set preferences.labeller.num_principles=1"
            notes.append(
                f"align.rewards replaces all labels, so what preferences.labeller answers is not used; {instead} to "
                "save its work."
            )
        return notes

    def learns_from_openings(self, config: Any) -> bool:
        return getattr(config, "num_reply_tokens", None) is not None and not config.rewards

    def cost(self, config: Any, prepared: Prepared) -> Cost:
        settings = prepared.config.preferences
        prompts = settings.compared_prompts(prepared)
        num_pairs = round(len(prompts) * (1 + getattr(config, "recovery_ratio", 0)))
        tokens = 2 * (TOKENS_PER_TURN + settings.max_reply_tokens)
        judged = 2 * num_judge_calls(config.reward_judge, prompts, prepared.constitution, prepared.config.seed)
        roles = judge_role(prepared, judged, tokens)
        judge = Cost.of_roles(roles)
        return Cost(
            num_calls=judge.num_calls,
            num_tokens_written=judge.num_tokens_written,
            num_tokens_read=round(num_pairs * tokens * config.num_epochs),
            num_steps=num_steps(num_pairs, config),
            roles=roles,
        )

    def memory(self, config: Any, prepared: Prepared) -> Memory:
        from pipeline.training.footprint import of_training

        kept = getattr(config, "num_reply_tokens", None)  # KTO trains on whole replies
        longest = kept or prepared.config.preferences.max_reply_tokens
        return of_training("align", prepared, config, longest, num_replies=2, on_cpu=8 if kept else 4)

    def train(self, config: Any, context: Context) -> tuple[Metrics, History]:
        from pipeline.training.pairs import trainable

        preferences = list(read_records(context.folder("preferences") / "preferences.jsonl", Preference))
        if config.rewards:
            preferences = _relabelled(preferences, config, context)
        rows = trainable(preferences, config)
        if not rows:
            raise StageError(
                f"align has no pairs to train on: none of {len(preferences)} labels is usable; lower "
                f"align.min_confidence (now {config.min_confidence:g}) or check the labels in "
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
        """Return the loss of each comparison, (pairs,).

        Args:
            labels: (pairs,), probability that reply A is the better one.
        """
        raise NotImplementedError


def _relabelled(preferences: list[Preference], config: AlignConfig, context: Context) -> list[Preference]:
    """The same comparisons with labels from the rewards instead of the labeller. One rank asks: a server may answer
    each of them differently."""
    from pipeline.methods.rewards import make_rewards, relabelled

    prompts = [preference.comparison.prompt for preference in preferences]
    return distributed.from_main(lambda: relabelled(preferences, make_rewards(config, prompts, context)))
