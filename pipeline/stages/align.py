"""align: train the SFT model, or the newest policy, with the configured method, on comparisons or on rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.settings import part
from pipeline.core.stage import WEIGHTS, Context, Cost, Memory, Metrics, Prepared, Stage, Use
from pipeline.data.counterfactuals import counterfactual_sets
from pipeline.engines.base import EngineConfig
from pipeline.evals.judges.base import JUDGES, EngineJudgeConfig, JudgeConfig, ModelJudgeConfig
from pipeline.labellers.base import TEMPLATE, constitution_fields, reads_choices
from pipeline.methods.base import METHODS, AlignConfig, method_of
from pipeline.methods.policy_gradient.config import PolicyGradientConfig
from pipeline.methods.policy_gradient.second_judge import FIELD
from pipeline.training.config import training_use
from pipeline.training.history import write_history

if TYPE_CHECKING:
    from pipeline.chain.config import Config


_SECOND = f"{FIELD}.engine"


class Align(Stage):
    """The aligned model."""

    name, needs, outputs = "align", ("prompts", "sft", "preferences", "reward"), WEIGHTS
    version = 4
    repeats = True

    def needed(self, config: Config) -> tuple[str, ...]:
        on_pairs = METHODS[config.align.method].reads_preferences
        read = {
            "prompts": not on_pairs,
            "sft": True,
            "preferences": on_pairs,
            "reward": config.align.trains_reward_model,
        }
        return tuple(name for name in self.needs if read[name])

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        found: dict[str, Any] = {"seed": config.seed, "model": part(config.model, "precision", "tuning", "lora")}
        if not METHODS[config.align.method].reads_preferences:
            found["policy_engine"] = config.policy_engine
        if isinstance(config.align, PolicyGradientConfig) and (number := config.align.rollout.num_counterfactuals):
            found["counterfactuals"] = counterfactual_sets(config.data, number)
        if (second := _second_judge(config)) is not None:
            found["second_judge"] = JUDGES[second.kind].templates
            if isinstance(second, ModelJudgeConfig):
                found["model"] = part(config.model, "path", "revision", "precision", "tuning", "lora")
        if config.align.trains_reward_model:
            found["reward_init"] = config.reward.init
        if (judge := config.align.reward_judge) is not None:
            found |= {
                "model": part(config.model, "path", "revision", "precision", "tuning", "lora"),
                "engine": config.feedback_engine("preferences"),
                "constitution": part(constitution, *constitution_fields(judge)),
                "template": TEMPLATE,
            }
        return found

    def check(self, prepared: Prepared) -> list[str]:
        return method_of(prepared.config).check(prepared.config.align, prepared)

    def engines(self, config: Config) -> dict[str, EngineConfig]:
        asked = {} if config.align.reward_judge is None else config.feedback_engines("preferences")
        second = _second_judge(config)
        return asked | ({_SECOND: second.engine} if isinstance(second, EngineJudgeConfig) else {})

    def read_choices(self, config: Config) -> set[str]:
        asked = set(config.feedback_engines("preferences")) if reads_choices(config.align.reward_judge) else set()
        second = _second_judge(config)
        return asked | ({_SECOND} if second is not None and JUDGES[second.kind].reads_choices() else set())

    def uses(self, prepared: Prepared) -> list[Use]:
        preferences, config = prepared.config.preferences, prepared.config.align
        if not METHODS[config.method].reads_preferences:
            return []  # these methods refuse long prompts in their own check
        prompts = [prompt.messages for prompt in preferences.compared_prompts(prepared)]
        return [training_use("align", prompts, preferences.max_reply_tokens, config)]

    def cost(self, prepared: Prepared) -> Cost:
        return method_of(prepared.config).cost(prepared.config.align, prepared)

    def memory(self, prepared: Prepared) -> Memory:
        return method_of(prepared.config).memory(prepared.config.align, prepared)

    def run(self, config: AlignConfig, context: Context) -> Metrics:
        metrics, history = METHODS[config.method]().train(config, context)
        if distributed.is_main():
            write_history(context.out, history)
        return metrics


def _second_judge(config: Config) -> JudgeConfig | None:
    """The judge beside the reward; only PPO, RLOO and GRPO have one."""
    return config.align.second_judge if isinstance(config.align, PolicyGradientConfig) else None
