"""adversary: attack the newest policy on training prompts; what breaks it becomes prompts of the stage preferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.adversary.attackers import ATTACKERS
from pipeline.adversary.config import AdversaryConfig
from pipeline.adversary.costs import search_choices, search_cost, search_engines, search_reads
from pipeline.adversary.harvest import harvest
from pipeline.adversary.search import Bench, search
from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.log import warn
from pipeline.core.stage import Context, Cost, Memory, Metrics, Prepared, Stage
from pipeline.engines.base import EngineConfig
from pipeline.engines.roles import policy_engine
from pipeline.evals.judges.base import JUDGES, AnswerLog
from pipeline.records import Prompt, read_records, write_records

if TYPE_CHECKING:
    from pipeline.chain.config import Config

EVALUATION = ("judge", "max_reply_tokens", "temperature", "top_p")


class Adversary(Stage):
    """Prompts that broke the policy of the round before, and look-alikes under the same attacks."""

    name, needs, outputs = "adversary", ("prompts", "sft"), ("prompts.jsonl",)
    repeats, first_round = True, 2

    def wanted(self, config: Config) -> bool:
        return super().wanted(config) and config.adversary.enabled

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        return search_reads(config, config.adversary, EVALUATION)

    def check(self, prepared: Prepared) -> list[str]:
        own = prepared.config.adversary
        for name in own.attackers:
            ATTACKERS[name].check(own.attacker(name), own.chosen, "adversary")
        known = len(attacked_prompts(prepared.prompts, own, prepared.config.seed))
        if known < own.num_requests:
            return [f"adversary.num_requests is {own.num_requests} but there are only {known}; all are used."]
        return []

    def engines(self, config: Config) -> dict[str, EngineConfig]:
        return search_engines("adversary", config.adversary, config.evaluate)

    def read_choices(self, config: Config) -> set[str]:
        return search_choices(config.evaluate)

    def cost(self, prepared: Prepared) -> Cost:
        config = prepared.config
        attacked = attacked_prompts(prepared.prompts, config.adversary, config.seed)
        return search_cost("adversary", config.adversary, config.evaluate, attacked, num_models=1)

    def memory(self, prepared: Prepared) -> Memory:
        from pipeline.training.footprint import of_generation

        return of_generation(prepared, prepared.config.evaluate.max_reply_tokens)

    def run(self, config: AdversaryConfig, context: Context) -> Metrics:
        prompts = list(read_records(context.folder("prompts") / "prompts.jsonl", Prompt))
        attacked = attacked_prompts(prompts, config, context.seed)
        log = AnswerLog(logbook=context, name="judge", label="judge")
        bench = Bench(
            engine=policy_engine(context, str(context.folder("sft") / "model"), context.policy),
            model=context.policy,
            judge=JUDGES[context.suites.judge.kind].open(context.suites.judge, context, log),
            evaluation=context.suites,
            context=context,
        )
        found = [search(bench, name, attacked, config, config.chosen) for name in config.attackers]
        queries = [query for one in found for query in one.queries]
        look_alikes = [prompt for prompt in prompts if (prompt.pool, prompt.split) == ("look_alike", "train")]
        gathered = harvest(queries, look_alikes, config.max_similarity, context.seed)
        if distributed.is_main():
            if not gathered.kept:
                warn(f"no attack on {context.policy} succeeded, so this round has no new prompts.")
            write_records(context.out / "prompts.jsonl", gathered.prompts)
            write_records(context.out / "queries.jsonl", queries)
        return {
            "num_requests": len(attacked),
            "num_queries": len(queries),
            "num_unjudged": sum(query.verdict.outcome == "unjudged" for query in queries),
            "num_unwritten": sum(one.num_unwritten for one in found),
            **gathered.metrics(),
        }


def attacked_prompts(prompts: Sequence[Prompt], config: AdversaryConfig, seed: int) -> list[Prompt]:
    """The harmful training prompts that are attacked; other ones in each round, because each has its seed."""
    return config.order([prompt for prompt in prompts if prompt.pool == "red_team"], seed)[: config.num_requests]
