"""guard: make a guard of the aligned model from its own states. Off by default (section ``guard``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.constitution.schema import Constitution
from pipeline.core.errors import ConfigError, NotMeasuredError, StageError
from pipeline.core.log import say, warn
from pipeline.core.settings import part
from pipeline.core.stage import Context, Cost, Memory, Metrics, Prepared, Stage, Use
from pipeline.engines.local import batch_limits
from pipeline.engines.models import short_name
from pipeline.engines.roles import policy_engine, weights_of
from pipeline.engines.worklist import generate_all
from pipeline.evals.judges.refusal import NAME, judge_reply
from pipeline.evals.probe import MIN_PROMPTS
from pipeline.evals.results import DIRECT
from pipeline.evals.suites.attacks import ATTACKS, TEMPLATE
from pipeline.guard.bounds import num_needed
from pipeline.guard.config import GuardConfig
from pipeline.guard.families import attacked
from pipeline.guard.guard import FOLDER
from pipeline.guard.labels import Labels
from pipeline.guard.making import Rows, make_guard
from pipeline.guard.refusals import refusal_of
from pipeline.guard.rows import (
    Row,
    answered_anew,
    as_request,
    held_out_rows,
    learned_prompts,
    learned_rows,
    num_harmless,
)
from pipeline.records import Preference, Prompt, read_records

if TYPE_CHECKING:
    from pipeline.chain.config import Config


class Guard(Stage):
    """A guard of the aligned model."""

    name, needs = "guard", ("prompts", "preferences", "align")
    outputs = (f"{FOLDER}/*",)
    parallel = False

    def wanted(self, config: Config) -> bool:
        return super().wanted(config) and config.guard.enabled

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        return {
            "seed": config.seed,
            "model": part(config.model, "path", "revision", "precision"),
            "policy_engine": config.policy_engine,
            "constitution": part(
                constitution,
                "contrasts",
                "worked_examples",
                *(f"principles.{name}" for name in ("id", "tags", "weight")),
            ),
            "templates": [TEMPLATE, NAME],
        }

    def check(self, prepared: Prepared) -> list[str]:
        config, split = prepared.config.guard, prepared.config.evaluate.split
        if split == "validation":
            raise ConfigError(
                "guard.enabled is true and evaluate.split is 'validation', but the guard's threshold is set on that "
                "split; use evaluate.split=test."
            )
        held_out = held_out_rows(prepared.prompts)
        number, needed = num_harmless(held_out), num_needed(config.max_false_alarms, config.confidence)
        if number < needed:
            raise ConfigError(
                f"guard.max_false_alarms is {config.max_false_alarms:g} with guard.confidence {config.confidence:g}, "
                f"which needs {needed} harmless requests in the validation split, and there are {number} (twins count "
                "once); raise the one, lower the other, or raise data.validation_fraction."
            )
        if not any(row.harmful for row in held_out):
            raise ConfigError(
                "guard.enabled is true, but data.red_team has no prompts in the validation split, which show whether "
                "the guard knows anything; raise data.validation_fraction."
            )
        learned = self._learned(prepared)
        for name, harmful in (("harmful", True), ("harmless", False)):
            found = len({row.group for row in learned if row.harmful is harmful})
            if found < MIN_PROMPTS:
                raise ConfigError(
                    f"guard.enabled is true, but there are {found} {name} training prompts, and a guard needs "
                    f"{MIN_PROMPTS}; add some to data."
                )
        refusal = refusal_of(config, prepared.constitution)
        if judge_reply(refusal)[0] == "refused":
            return []
        return [
            f"the guard's refusal is “{refusal}”, which the judge {NAME} does not take for a refusal; set "
            "guard.refusal to words that decline."
        ]

    def _learned(self, prepared: Prepared) -> list[Row]:
        config, seed = prepared.config.guard, prepared.config.seed
        prompts = learned_prompts(prepared.prompts, prepared.constitution, config.num_prompts, seed)
        return learned_rows(prompts, Labels.of([]), config.families, seed)

    def _answered(self, prepared: Prepared) -> list[Row]:
        config, seed = prepared.config.guard, prepared.config.seed
        return [*answered_anew(self._learned(prepared), config.num_replies, seed), *held_out_rows(prepared.prompts)]

    def uses(self, prepared: Prepared) -> list[Use]:
        config = prepared.config.guard
        dialogues = [as_request(row, 1, 0).messages for row in [*self._learned(prepared), *self._answered(prepared)]]
        return [Use(what="guard: replies", dialogues=dialogues, reply_tokens=config.max_reply_tokens)]

    def cost(self, prepared: Prepared) -> Cost:
        """Replies of the aligned model."""
        rows, config = self._answered(prepared), prepared.config.guard
        read = sum(len(turn["content"]) for row in rows for turn in row.messages) // 4
        replies = Cost(
            num_calls=len(rows), num_tokens_written=len(rows) * config.max_reply_tokens, num_tokens_read=read
        )
        return Cost.of_roles({"policy_engine": replies})

    def memory(self, prepared: Prepared) -> Memory:
        from pipeline.training.footprint import of_generation, of_states

        replies = of_generation(prepared, prepared.config.guard.max_reply_tokens)
        return max(replies, of_states(prepared), key=lambda memory: memory.total)

    def run(self, config: GuardConfig, context: Context) -> Metrics:
        from pipeline.engines.states import load_reader

        rows = _rows(config, context)
        path = str(context.folder("align") / "model")
        answered = [*answered_anew(rows.learned, config.num_replies, context.seed), *rows.held_out]
        replies = _replies(answered, path, config, context)
        rows = replace(
            rows,
            learned=[replies.get(row.id, row) for row in rows.learned],
            held_out=[replies.get(row.id, row) for row in rows.held_out],
        )
        say(f"guard: states of the aligned model for {len(rows.learned)} training rows")
        try:
            with context.meter.running():
                reader = load_reader(weights_of(context, path, "aligned"), batch_limits(context.launch)[0])
                guard = make_guard(
                    config,
                    reader,
                    rows,
                    model=f"{short_name(context.model.path)}, aligned",
                    refusal=refusal_of(config, context.constitution),
                    seed=context.seed,
                )
        except NotMeasuredError as reason:
            raise StageError(f"guard: no guard can be made: {reason}; run with guard.enabled=false.") from None
        guard.save(context.out / FOLDER)
        card = guard.card
        if card.idle:
            warn(f"the guard never fires: {card.idle}.")
        return {
            "idle": card.idle,
            "made_of": card.made_of,
            "families": card.families,
            "num_harmless": card.num_harmless,
            "num_alarms": card.num_alarms,
            "bound": card.bound,
            "found_of_held_out_harmful": next((one.fired.value for one in card.held_out if one.pool == "red_team"), 0),
        }


def _rows(config: GuardConfig, context: Context) -> Rows:
    prompts = list(read_records(context.folder("prompts") / "prompts.jsonl", Prompt))
    folder = context.folders.get("preferences")
    labels = Labels.of(read_records(folder / "preferences.jsonl", Preference) if folder else [])
    chosen = learned_prompts(prompts, context.constitution, config.num_prompts, context.seed)
    held_out = held_out_rows(prompts)
    return Rows(
        learned=learned_rows(chosen, labels, config.families, context.seed),
        held_out=held_out,
        attacked=_attacked(prompts, held_out),
        made_of=dict(Counter(labels.of_prompt(prompt)[1] for prompt in chosen)),
    )


def _attacked(prompts: Sequence[Prompt], held_out: Sequence[Row]) -> list[Row]:
    """Each held-out harmless request under one of all attacks, in turn."""
    names = [name for name in ATTACKS if name != DIRECT]
    harmless = [row for row in held_out if not row.harmful]
    by_id = {f"{prompt.split}/{prompt.id}/{DIRECT}": prompt for prompt in prompts}
    return [
        replace(row, id=f"{row.id}/{name}", attack=name, messages=attacked(by_id[row.id], name))
        for row, name in zip(harmless, names * (len(harmless) // len(names) + 1), strict=False)
    ]


def _replies(rows: Sequence[Row], path: str, config: GuardConfig, context: Context) -> dict[str, Row]:
    """Row id → the row with the aligned model's own reply, where it has one."""
    requests = [as_request(row, config.max_reply_tokens, context.seed) for row in rows]
    engine = policy_engine(context, path, "aligned")
    found = generate_all(engine, "guard: replies of the aligned model", requests, context, "replies")
    del engine
    return {
        row.id: row.answered(found[row.id].text) for row in rows if row.id in found and not found[row.id].why_unanswered
    }
