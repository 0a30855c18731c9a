"""explain: answer questions about the finished run, such as which principle did what, and how deep it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.constitution.schema import Constitution
from pipeline.core.errors import ConfigError, NotMeasuredError
from pipeline.core.log import say, warn
from pipeline.core.settings import part
from pipeline.core.stage import Context, Cost, Metrics, Prepared, Stage
from pipeline.engines.base import EngineConfig
from pipeline.evals.checkpoints import checkpoints
from pipeline.explain.asked import ExplainConfig, Explanation
from pipeline.explain.base import Material
from pipeline.labellers.base import reads_choices

if TYPE_CHECKING:
    from pipeline.chain.config import Config


class Explain(Stage):
    """Findings about the models of a run, or about two checkpoints."""

    name, outputs = "explain", ("explanation.json",)
    needs = ("prompts", "critique", "sft", "preferences", "reward", "align", "evaluate")
    parallel = trains = False

    def wanted(self, config: Config) -> bool:
        return config.explain.enabled

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        return {
            "seed": config.seed,
            "model": part(config.model, "path", "revision", "precision", "tuning", "lora"),
            "policy_engine": config.policy_engine,
            "engine": config.feedback_engine("preferences"),
            "labeller": config.preferences.labeller,
            "labels": config.preferences.labels,
            "constitution": constitution,
            "alignment": part(config.align, "reward_model"),
            "suites": part(config.evaluate, "checkpoints", "split", "confidence", "max_reply_tokens"),
            "questions": {
                question.name: question.reads(getattr(config.explain, question.name))
                for question in config.explain.asked
            },
        }

    def check(self, prepared: Prepared) -> list[str]:
        own = prepared.config.explain
        if not own.asked:
            raise ConfigError(
                "explain.enabled is true, but every question is switched off; switch one on, such as "
                "explain.depth.enabled=true, or set explain.enabled=false."
            )
        return [note for question in own.asked for note in question.check(getattr(own, question.name), prepared)]

    def engines(self, config: Config) -> dict[str, EngineConfig]:
        asks = any(question.asks_labeller for question in config.explain.asked)
        return config.feedback_engines("preferences") if asks else {}

    def read_choices(self, config: Config) -> set[str]:
        return set(self.engines(config)) if reads_choices(config.preferences.labeller) else set()

    def cost(self, prepared: Prepared) -> Cost:
        own = prepared.config.explain
        parts = [question.cost(getattr(own, question.name), prepared) for question in own.asked]
        fields = dict.fromkeys(field for part in parts for field in part.roles)
        roles = {field: Cost.sum(part.roles[field] for part in parts if field in part.roles) for field in fields}
        return Cost.sum(parts, roles)

    def run(self, config: ExplainConfig, context: Context) -> Metrics:
        material = Material(
            context,
            models=checkpoints(context.suites, context),
            confidence=context.suites.confidence,
            split=context.suites.split,
        )
        found: dict[str, Any] = {}
        for question in config.asked:
            say(f"explain: {question.name}")
            try:
                found[question.name] = question.answer(getattr(config, question.name), material)
            except NotMeasuredError as reason:
                material.notes.append(f"{question.name} was not measured: {reason}.")
                warn(material.notes[-1])
        explanation = Explanation(
            models=list(material.models), confidence=material.confidence, notes=material.notes, **found
        )
        (context.out / "explanation.json").write_text(explanation.model_dump_json(indent=1), encoding="utf-8")
        return {"answered": list(found), "num_not_answered": len(config.asked) - len(found)}
