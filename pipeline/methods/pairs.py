"""Methods on labelled comparisons: DPO, IPO and KTO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.core.errors import ConfigError, StageError
from pipeline.core.stage import Context, Cost, Metrics, Prepared
from pipeline.methods.base import METHODS, AlignConfig, History, Method, num_judge_calls, num_steps
from pipeline.records import Preference, read_records

TOKENS_PER_TURN = 50  # for estimates of tokens read


class PairConfig(AlignConfig):
    """What methods on comparisons set."""

    hard_labels: bool = False
    """Round each label to 0 or 1; a tie is left out."""
    min_confidence: float = Field(default=0.0, ge=0, le=0.5)
    """Leave out comparisons whose label is nearer to 0.5 than this."""

    @model_validator(mode="after")
    def _check_beta(self) -> Self:
        if self.beta == 0:
            raise ValueError("{here}.beta is 0; it must be above 0")
        return self


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
        from pipeline.methods.dpo import trainable

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
        from pipeline.methods.dpo import train_dpo

        return train_dpo(rows, base_path, config, context)


@METHODS.add
class DPO(PairMethod):
    """Direct preference optimisation on soft labels."""

    name = "dpo"

    class Config(PairConfig):
        """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) on soft labels."""

        method: Literal["dpo"] = "dpo"
        """Direct preference optimisation."""
        num_reply_tokens: int | None = Field(default=None, ge=1)
        """Compare only the first so many tokens of each reply; null: all."""


@METHODS.add
class IPO(PairMethod):
    """Identity preference optimisation on soft labels."""

    name = "ipo"

    class Config(PairConfig):
        """Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036) on soft labels."""

        method: Literal["ipo"] = "ipo"
        """Identity preference optimisation."""
        num_reply_tokens: int | None = Field(default=None, ge=1)
        """Compare only the first so many tokens of each reply; null: all."""


@METHODS.add
class KTO(PairMethod):
    """Kahneman-Tversky optimisation: the better reply of a comparison is wanted, the other is not."""

    name = "kto"

    class Config(PairConfig):
        """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306)."""

        method: Literal["kto"] = "kto"
        """Kahneman-Tversky optimisation."""

    def check(self, config: Any, prepared: Prepared) -> list[str]:
        """TRL estimates the KL from a prompt with its neighbour's completion, so a device needs two rows at once."""
        from pipeline.training.models import largest_divisor, rows_a_device_holds

        launch = prepared.config.launch
        if largest_divisor(config.global_batch_size // launch.num_processes, rows_a_device_holds(launch)) < 2:
            raise ConfigError(
                f"align.global_batch_size is {config.global_batch_size} over launch.num_processes="
                f"{launch.num_processes}, which leaves a device one row at a time, and align=kto needs two or more; "
                "change align.global_batch_size or launch.per_device_batch_size."
            )
        return super().check(config, prepared)

    def cost(self, config: Any, prepared: Prepared) -> Cost:
        whole = super().cost(config, prepared)
        steps = num_steps(2 * len(prepared.config.preferences.compared_prompts(prepared)), config)
        return Cost(num_calls=whole.num_calls, num_tokens_read=whole.num_tokens_read, num_steps=steps)

    def train_on(
        self, rows: Sequence[dict[str, Any]], base_path: str, config: Any, context: Context
    ) -> tuple[Metrics, History]:
        from pipeline.methods.kto import train_kto

        return train_kto(rows, base_path, config, context)


def _relabelled(preferences: list[Preference], config: AlignConfig, context: Context) -> list[Preference]:
    """The same comparisons, labelled by the rewards instead of the labeller."""
    from pipeline.methods.rewards import make_rewards, relabelled

    prompts = [preference.comparison.prompt for preference in preferences]
    return relabelled(preferences, make_rewards(config, prompts, context))
