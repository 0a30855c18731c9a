"""write: the critic writes more training prompts from few-shot examples, and judges which of them are what they should
be. Off by default (section ``write``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.errors import ConfigError
from pipeline.core.log import say, warn
from pipeline.core.settings import part
from pipeline.core.stage import Context, Cost, Memory, Metrics, Prepared, Stage
from pipeline.core.text import about_tokens
from pipeline.data.loading import load_prompts
from pipeline.engines.base import EngineConfig
from pipeline.engines.roles import feedback_engine
from pipeline.records import Prompt, WrittenPrompt, write_records
from pipeline.writing.asks import LISTED, TEMPLATE, list_asks, shown, twin_asks
from pipeline.writing.config import WriteConfig
from pipeline.writing.judgement import POOR, Judge, Known
from pipeline.writing.writer import Writer

if TYPE_CHECKING:
    from pipeline.chain.config import Config


class Write(Stage):
    """Training prompts that the critic writes: harmful ones, harmless twins of these, and ordinary ones."""

    name, outputs = "write", ("written.jsonl",)

    def wanted(self, config: Config) -> bool:
        return super().wanted(config) and config.write.is_on

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        return {
            "seed": config.seed,
            "model": part(config.model, "path", "revision", "precision"),
            "engine": config.feedback_engine("write"),
            "data": config.data,
            "constitution": part(
                constitution,
                "worked_examples",
                "good_answers",
                "contrasts",
                *(f"principles.{name}" for name in ("id", "tags", "weight", "title")),
            ),
            "template": TEMPLATE,
        }

    def check(self, prepared: Prepared) -> list[str]:
        config = prepared.config.write
        if not config.is_on:
            raise ConfigError(
                "write.num_red_team and write.num_ordinary are 0, so there is nothing to write; set one of them."
            )
        for pool in LISTED:
            field, number = f"num_{pool}", config.num_asked[pool]
            if number and not any(prompt.pool == pool for prompt in shown(prepared.prompts)):
                raise ConfigError(
                    f"write.{field} is {number}, but data.{pool} has no training prompt of a single line to show as an "
                    f"example; set write.{field}=0 or add some."
                )
        known = Known.of(prepared.prompts, config)
        for name, some in (("red_team", known.harmful), ("look_alike or data.ordinary", known.harmless)):
            if not some:
                raise ConfigError(
                    f"write is on, but data.{name} has no training prompts, on which the threshold of the critic's "
                    "judgement is set; add some, or give prompts by data.written alone."
                )
        asked = ", ".join(f"{number} {pool}" for pool, number in config.num_asked.items() if number)
        return [f"write asks for {asked} prompts; fewer will be kept, so what is planned for later stages is the most."]

    def engines(self, config: Config) -> dict[str, EngineConfig]:
        return config.feedback_engines("write")

    def read_choices(self, config: Config) -> set[str]:
        return set(self.engines(config))

    def cost(self, prepared: Prepared) -> Cost:
        config, prompts = prepared.config.write, prepared.prompts
        asks = [
            ask
            for pool in LISTED
            for ask in list_asks(pool, config, prompts, prepared.constitution, prepared.config.seed)
        ]
        num_twins = config.num_asked["look_alike"]
        known = Known.of(prompts, config)
        num_judged = sum(config.num_asked.values()) + sum(map(len, known.to_calibrate))
        lengths = [about_tokens(prompt.request) for prompt in shown(prompts)]
        length = sum(lengths) // max(1, len(lengths))
        shown_first = about_tokens(*(turn["content"] for turn in known.query("", "").messages))
        twin = (config.num_few_shot + 1) * (2 * length + 50)
        read = sum(about_tokens(*(turn["content"] for turn in ask.request.messages)) for ask in asks)
        [field] = prepared.config.feedback_engines("write")
        critic = Cost(
            num_calls=len(asks) + num_twins + num_judged,
            num_tokens_written=sum(config.num_asked.values()) * config.max_prompt_tokens,
            num_tokens_read=read + num_twins * twin + num_judged * (shown_first + length),
            num_tokens_repeated=num_judged * shown_first,
        )
        return Cost.of_roles({field: critic})

    def memory(self, prepared: Prepared) -> Memory:
        from pipeline.training.footprint import of_generation

        return of_generation(prepared)

    def run(self, config: WriteConfig, context: Context) -> Metrics:
        loaded = load_prompts(context.data)
        critic = feedback_engine(context)
        originals = [prompt for prompt in loaded.prompts if prompt.id not in loaded.written]
        judge = Judge(critic, Known.of(originals, config), context)
        threshold = judge.threshold
        if distributed.is_main():
            say(f"  {critic.name} judges requests: {threshold}")
            if threshold.share_right < POOR:
                warn(
                    f"{critic.name} judges only {threshold.share_right:.0%} of the known prompts right, so what it "
                    "keeps is hardly better than what it leaves out; use a larger critic (write.engine)."
                )
        writer = Writer(critic, judge, loaded.prompts, context.constitution.requests(), context)
        written = _write(config, originals, writer, context)
        if distributed.is_main():
            write_records(context.out / "written.jsonl", written)
            rows = [(row.pool, row.kind, row.manner, row.prompt, row.harm_log_odds) for row in written]
            context.tracker.table("write/samples", ("pool", "kind", "manner", "prompt", "log-odds of harm"), rows[:50])
        twinned = {row.twin_of for row in written}
        return {
            "num_written": len(written),
            "num_by_pool": dict(Counter(row.pool for row in written)),
            "num_harmful_without_twin": sum(row.pool == "red_team" and row.id not in twinned for row in written),
            "counts_by_pool_and_kind": writer.counts,
            "threshold": asdict(threshold),
            "writer": critic.name,
        }


def _write(config: WriteConfig, originals: Sequence[Prompt], writer: Writer, context: Context) -> list[WrittenPrompt]:
    """Harmful requests, then their twins, then ordinary ones. ``originals``: prompts that no model wrote."""
    written: list[WrittenPrompt] = []
    for pool in LISTED:
        if config.num_asked[pool]:
            asks = list_asks(pool, config, originals, context.constitution, context.seed)
            written += writer.write(pool, list(asks))
        if pool == "red_team" and written and config.num_twins:
            twins = list(twin_asks(written, config, originals, context.seed))
            if twins:
                written += writer.write("look_alike", twins)
            elif distributed.is_main():
                warn("no twins are written, because no training prompt of data.look_alike says whose twin it is.")
    return written
