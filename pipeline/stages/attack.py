"""attack: attackers that adapt try to break every model, with a budget of queries for each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.adversary.attackers import ATTACKERS
from pipeline.adversary.config import AttackConfig
from pipeline.adversary.costs import search_choices, search_cost, search_engines, search_reads
from pipeline.adversary.families import Composition, draw
from pipeline.adversary.records import AttackResults
from pipeline.adversary.search import Bench, Found, search
from pipeline.adversary.summary import by_family, counts, differences, refused_rates, successes
from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context, Cost, Memory, Metrics, Prepared, Stage, Use, stage_of
from pipeline.engines.base import EngineConfig
from pipeline.engines.roles import policy_engine
from pipeline.evals.checkpoints import MODELS
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.judges.base import JUDGES, AnswerLog
from pipeline.evals.judges.patterns import PatternsJudge
from pipeline.evals.suites.base import RequestSuite
from pipeline.records import Case, Prompt, Verdict, derived_rng, read_records, write_records

if TYPE_CHECKING:
    from pipeline.chain.config import Config

LOOK_ALIKES = "look-alikes"
EVALUATION = (
    *("checkpoints", "split", "confidence", "judge", "max_reply_tokens", "temperature", "top_p"),
    *("red_team", "over_refusal"),
)


class Attack(Stage):
    """Success against budget of every model, and what the models refuse of harmless requests under attack."""

    name, needs, outputs = "attack", ("prompts", "sft", "align"), ("queries.jsonl", "attack.json")
    trains = False
    reads_every_round = True

    def wanted(self, config: Config) -> bool:
        return config.attack.enabled

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        trained = config.adversary.chosen if config.adversary.enabled else []
        return search_reads(config, config.attack, EVALUATION) | {"trained": trained}

    def check(self, prepared: Prepared) -> list[str]:
        own, notes = prepared.config.attack, list[str]()
        for name in own.attackers:
            ATTACKERS[name].check(own.attacker(name), own.chosen, "attack")
        trained = prepared.config.adversary.chosen if prepared.config.adversary.enabled else []
        for family in own.chosen:
            if family in trained:
                raise ConfigError(
                    f"attack.families has {family!r}, which adversary.families trains on; leave it out of one of them."
                )
        attacked = len(_requests("red_team", prepared.config.evaluate, prepared.prompts, None))
        if attacked < own.num_requests:
            notes.append(f"attack.num_requests is {own.num_requests} but there are only {attacked}; all are used.")
        return notes

    def engines(self, config: Config) -> dict[str, EngineConfig]:
        return search_engines("attack", config.attack, config.evaluate)

    def read_choices(self, config: Config) -> set[str]:
        return search_choices(config.evaluate)

    def uses(self, prepared: Prepared) -> list[Use]:
        harmful, harmless = self._asked(prepared)
        families, seed = prepared.config.attack.chosen, prepared.config.seed
        dialogues = [drawn(families, seed, prompt).apply(prompt.messages) for prompt in [*harmful, *harmless]]
        most = prepared.config.evaluate.max_reply_tokens
        return [Use(what="attack: attacked requests", dialogues=dialogues, reply_tokens=most)]

    def cost(self, prepared: Prepared) -> Cost:
        config, (harmful, harmless) = prepared.config, self._asked(prepared)
        num_models = len(config.evaluate.checkpoints or MODELS) + config.rounds - 1
        num_others = 2 * num_models * len(harmless)
        return search_cost("attack", config.attack, config.evaluate, harmful, num_models, num_others)

    def memory(self, prepared: Prepared) -> Memory:
        from pipeline.training.footprint import of_generation

        return of_generation(prepared, prepared.config.evaluate.max_reply_tokens)

    def _asked(self, prepared: Prepared) -> tuple[list[Prompt], list[Prompt]]:
        own, evaluation = prepared.config.attack, prepared.config.evaluate
        return (
            _requests("red_team", evaluation, prepared.prompts, own.num_requests),
            _requests("over_refusal", evaluation, prepared.prompts, own.num_look_alikes),
        )

    def run(self, config: AttackConfig, context: Context) -> Metrics:
        evaluation, confidence = context.suites, context.suites.confidence
        prompts = list(read_records(context.folder("prompts") / "prompts.jsonl", Prompt))
        harmful = _requests("red_team", evaluation, prompts, config.num_requests)
        harmless = _requests("over_refusal", evaluation, prompts, config.num_look_alikes)
        judge = JUDGES[evaluation.judge.kind].open(
            evaluation.judge, context, AnswerLog(logbook=context, name="judge", label="judge")
        )
        models, rounds = attacked_models(context)
        found, verdicts = list[Found](), list[Verdict]()
        for name, path in models.items():
            engine = policy_engine(context, path, name)
            bench = Bench(engine=engine, model=name, judge=judge, evaluation=evaluation, context=context)
            found += [search(bench, attacker, harmful, config, config.chosen) for attacker in config.attackers]
            verdicts += bench.ask(f"{LOOK_ALIKES}, {name}", _look_alikes(name, harmless, config, context.seed))
            del bench, engine  # the next model needs its room
        results = AttackResults(
            models=list(models),
            rounds=rounds,
            attackers=config.attackers,
            families=config.chosen,
            trained_families=context.trained,
            budgets=config.budgets,
            num_requests=len(harmful),
            judge=judge.who,
            judges_wording=isinstance(judge, PatternsJudge),
            confidence=confidence,
            successes=successes(found, list(models), config, confidence),
            by_family=by_family(found, confidence),
            refused=refused_rates(verdicts, confidence),
            differences=differences(found, verdicts, list(models), confidence),
            counts=counts(found),
        )
        if distributed.is_main():
            write_records(context.out / "queries.jsonl", [query for one in found for query in one.queries])
            write_records(context.out / "look_alikes.jsonl", verdicts)
            (context.out / "attack.json").write_text(results.model_dump_json(indent=1), encoding="utf-8")
        return {
            "num_requests": len(harmful),
            "num_queries": sum(len(one.queries) for one in found),
            "num_unjudged": sum(one.num_unjudged for one in results.counts),
            "num_unwritten": sum(one.num_unwritten for one in results.counts),
        }


def attacked_models(context: Context) -> tuple[dict[str, str], list[str]]:
    """Name → path of each model, and the names of those after each round, if there are several rounds."""
    if context.suites.checkpoints:
        return dict(context.suites.checkpoints), []
    tasks = [name for name in context.folders if stage_of(name) == "align"]
    names = [*(f"round {number}" for number in range(1, len(tasks))), MODELS[-1]]
    trained = dict(zip(names, tasks, strict=True))
    paths = {name: str(context.folder(task) / "model") for name, task in {"sft": "sft", **trained}.items()}
    return {MODELS[0]: context.model.path, **paths}, names if len(names) > 1 else []


def _requests(suite: str, config: EvaluateConfig, prompts: Sequence[Prompt], most: int | None) -> list[Prompt]:
    """The first requests of a suite, balanced over their kinds: a part of those of the whole evaluation."""
    found = config.suite(suite)
    assert isinstance(found, RequestSuite)
    held_out = [prompt for prompt in prompts if prompt.split == config.split]
    return [prompt for prompt, _ in found.requests(held_out, [])][:most]


def drawn(families: Sequence[str], seed: int, prompt: Prompt) -> Composition:
    """The composition of one or two families that a prompt gets outside a search: the same for every model."""
    rng = derived_rng(seed, "composition", prompt.key)
    return draw(rng.sample(list(families), rng.randint(1, min(2, len(families)))), rng, rng.getrandbits(63))


def _look_alikes(model: str, prompts: Sequence[Prompt], config: AttackConfig, seed: int) -> list[Case]:
    """Each look-alike plain, and under an attack."""
    cases = []
    for prompt in prompts:
        composition = drawn(config.chosen, seed, prompt)
        for attack, messages in (
            ("direct", prompt.messages),
            (" + ".join(composition.steps), composition.apply(prompt.messages)),
        ):
            case_id = f"{model}|{LOOK_ALIKES}|{prompt.id}|{'plain' if attack == 'direct' else 'attacked'}"
            cases.append(Case(id=case_id, suites=["attack"], prompt=prompt, messages=messages, attack=attack))
    return cases
