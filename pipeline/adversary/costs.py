"""What a search reads, whom it asks, and what that costs at most: for both stages that search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.adversary.attackers import ATTACKERS
from pipeline.adversary.config import AdversaryConfig, AttackConfig, SearchConfig
from pipeline.adversary.families import TEMPLATE
from pipeline.core.settings import part
from pipeline.core.stage import Cost
from pipeline.engines.base import EngineConfig
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.judges.base import JUDGES, EngineJudgeConfig, Item
from pipeline.records import Prompt

if TYPE_CHECKING:
    from pipeline.chain.config import Config

TOKENS_PER_QUERY = 150  # for estimates: a request in a scene; many-shot examples have 400
JUDGE = "evaluate.judge.engine"


def asking_cost(evaluation: EvaluateConfig, num_replies: int) -> dict[str, Cost]:
    """Field of an engine → its share of so many replies that are judged."""
    judge = JUDGES[evaluation.judge.kind]
    one = Item(id="one", request="A request?", reply="A reply to it.", harmful=True)
    num_judged = num_replies * judge.num_calls(evaluation.judge, [one])
    policy = Cost(
        num_calls=num_replies,
        num_tokens_written=num_replies * evaluation.max_reply_tokens,
        num_tokens_read=num_replies * TOKENS_PER_QUERY,
    )
    return {
        "policy_engine": policy,
        JUDGE: judge.cost(evaluation.judge, num_judged, TOKENS_PER_QUERY + evaluation.max_reply_tokens),
    }


def search_cost(
    section: str,
    config: SearchConfig,
    evaluation: EvaluateConfig,
    prompts: Sequence[Prompt],
    num_models: int,
    num_others: int = 0,
) -> Cost:
    """If no request is broken before its last query. ``num_others``: replies outside the search."""
    num_moves = {name: num_models * len(prompts) * config.budget_of(name) for name in config.attackers}
    roles = asking_cost(evaluation, sum(num_moves.values()) + num_others)
    for name, number in num_moves.items():
        own = config.attacker(name)
        if own.asked is not None:
            roles[f"{section}.{name}.engine"] = ATTACKERS[name].cost(own, number)
    return Cost.of_roles(roles)


def search_engines(section: str, config: SearchConfig, evaluation: EvaluateConfig) -> dict[str, EngineConfig]:
    """Field → engine, for the judge and the attackers that ask one."""
    judge = {JUDGE: evaluation.judge.engine} if isinstance(evaluation.judge, EngineJudgeConfig) else {}
    attackers = {name: config.attacker(name).asked for name in config.attackers}
    return judge | {f"{section}.{name}.engine": engine for name, engine in attackers.items() if engine is not None}


def search_choices(evaluation: EvaluateConfig) -> set[str]:
    """The fields of engines whose log-probabilities of choices are read: the judge's, if it reads them."""
    return {JUDGE} if JUDGES[evaluation.judge.kind].reads_choices() else set()


def search_reads(config: Config, own: AdversaryConfig | AttackConfig, evaluation: Sequence[str]) -> dict[str, Any]:
    """What decides a search, beside the stage's own section. ``evaluation``: fields of the section ``evaluate``."""
    return {
        "seed": config.seed,
        "model": part(config.model, "path", "revision", "precision"),
        "policy_engine": config.policy_engine,
        "suites": part(config.evaluate, *evaluation),
        "judge": JUDGES[config.evaluate.judge.kind].templates,
        "families": [TEMPLATE, *own.chosen],
        "attackers": [ATTACKERS[name].template for name in own.attackers],
    }
