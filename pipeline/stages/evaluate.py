"""evaluate: run every model on held-out conversations, judge the replies, and compare the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.errors import ConfigError
from pipeline.core.log import say
from pipeline.core.settings import part
from pipeline.core.stage import Context, Cost, Memory, Metrics, Prepared, Stage, Use
from pipeline.data.splits import refuse_overlap
from pipeline.engines.base import EngineConfig, ReplyQuery
from pipeline.engines.classifiers import check_reward_model
from pipeline.engines.local import batch_limits
from pipeline.engines.model_checks import check_model
from pipeline.engines.models import resolve_path
from pipeline.engines.roles import weights_of
from pipeline.evals import answering
from pipeline.evals.accuracy import as_items, labelled_replies
from pipeline.evals.answering import asked_turns
from pipeline.evals.cases import build_cases, build_comparisons, build_questions
from pipeline.evals.checkpoints import MODELS, checkpoints, trained_keys, training_folders
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.counted import Counted
from pipeline.evals.counterfactuals import attributes_said, trained_attributes
from pipeline.evals.duels import duel, is_compared
from pipeline.evals.garak import check_garak, run_garak
from pipeline.evals.judges.base import JUDGES, PAIR_JUDGES, EngineJudgeConfig
from pipeline.evals.judges.sharing import check_judges, shared_judges
from pipeline.evals.judging import item_of, judge_replies, open_pair_judge
from pipeline.evals.knows_does import asked_of_the_probe, knows_does
from pipeline.evals.labelled_pairs import all_accuracies, own_reward_model
from pipeline.evals.labellers import reward_verdicts, rewarded_cases
from pipeline.evals.manners import manners_held_out
from pipeline.evals.measures import all_measures, by_model
from pipeline.evals.probe import training_prompts
from pipeline.evals.results import KnowsDoes, Probe
from pipeline.evals.summary import summarise, track
from pipeline.guard.system import evaluate_guarded
from pipeline.labellers import label
from pipeline.labellers.base import can_ask, constitution_fields, reads_choices
from pipeline.records import POOLS, Case, Prompt, Verdict, dialogue_key, read_records, write_records

if TYPE_CHECKING:
    from pipeline.chain.config import Config

CHARS_PER_TOKEN = 4  # for estimates of tokens read


class Evaluate(Stage):
    """Verdicts on the replies of every model, and the measures computed from them."""

    name, outputs = "evaluate", ("verdicts.jsonl", "results.json", "counted.json", "guarded.json")
    needs = ("prompts", "sft", "preferences", "reward", "align", "guard")
    version = answering.VERSION
    trains = False

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        return {
            "seed": config.seed,
            "model": part(config.model, "path", "revision", "precision"),
            "policy_engine": config.policy_engine,
            "engine": config.feedback_engine("preferences"),
            "critic": config.feedback_engine("critique"),
            "labeller": config.preferences.labeller,
            "constitution": part(constitution, *constitution_fields(config.preferences.labeller)),
            "suites": {suite.name: suite.templates for suite in config.evaluate.selected},
            "judge": JUDGES[config.evaluate.judge.kind].templates,
            "pair_judge": PAIR_JUDGES[config.evaluate.pair_judge.kind].templates,
        }

    def check(self, prepared: Prepared) -> list[str]:
        """Check that models and data exist, and that no evaluated prompt is trained on or is an example."""
        from pipeline.engines.reward_model import check_scoring

        config, notes = prepared.config.evaluate, list[str]()
        cases = self._cases(prepared, notes)
        evaluated = [prompt for prompt in prepared.prompts if prompt.split == config.split]
        for pool in POOLS:
            if not any(prompt.pool == pool for prompt in evaluated):
                raise ConfigError(
                    f"evaluate.split is {config.split!r} but data.{pool} has no prompts there; evaluate another "
                    "split, or change data.validation_fraction."
                )
        constitution = prepared.constitution
        shown = {dialogue_key(turns): f"the constitution {constitution.name!r}" for turns in constitution.requests()}
        trained = {prompt.key: "the training split" for prompt in prepared.prompts if prompt.split == "train"}
        refuse_overlap(evaluated, shown)
        refuse_overlap([case.prompt for case in cases], shown | ({} if config.checkpoints else trained))
        questions = build_questions(config, notes)
        scored = [f"evaluate.suites={name}" for name, asked in questions.items() if any(map(_is_reply, asked.queries))]
        scored += ["reference answers to requests"] if any(case.reference is not None for case in cases) else []
        if scored and not prepared.config.policy_engine.scores_replies:
            raise ConfigError(
                f"policy_engine.scores is 'none', but {' and '.join(scored)} need log-probabilities of given replies; "
                "use policy_engine.scores=vllm or sglang, or policy_engine=hf."
            )
        build_comparisons(config, notes)
        for path in config.checkpoints.values():
            check_model(path, None, "CHECKPOINT")
        if config.reward_model is not None:
            check_reward_model(config.reward_model, "evaluate.reward_model")
            check_scoring(config.reward_model, None, "evaluate.reward_model")
        if config.garak_probes:
            check_garak()
        return notes + check_judges(config, _teachers(prepared.config), prepared.config.model)

    def _cases(self, prepared: Prepared, notes: list[str]) -> list[Case]:
        config = prepared.config.evaluate
        return build_cases(config, [prompt for prompt in prepared.prompts if prompt.split == config.split], notes)

    def _learned_by_the_probe(self, prepared: Prepared) -> list[Prompt]:
        config, evaluated = prepared.config.evaluate, asked_of_the_probe(self._cases(prepared, []))
        if not config.probe.enabled or not evaluated:
            return []
        asked = [case.prompt for case in evaluated]
        return training_prompts(prepared.prompts, asked, config.probe.num_prompts, prepared.config.seed)

    def read_choices(self, config: Config) -> set[str]:
        own = config.evaluate
        judges = {"evaluate.judge": JUDGES[own.judge.kind], "evaluate.pair_judge": PAIR_JUDGES[own.pair_judge.kind]}
        labels = reads_choices(config.preferences.labeller)
        return {f"{field}.engine" for field, judge in judges.items() if judge.reads_choices()} | (
            set(config.feedback_engines("preferences")) if labels else set()
        )

    def engines(self, config: Config) -> dict[str, EngineConfig]:
        judges = {"evaluate.judge": config.evaluate.judge, "evaluate.pair_judge": config.evaluate.pair_judge}
        asked = {
            f"{field}.engine": judge.engine for field, judge in judges.items() if isinstance(judge, EngineJudgeConfig)
        }
        feedback = config.feedback_engines("preferences")
        asks = build_comparisons(config.evaluate, []) and can_ask(config.preferences.labeller, *feedback.values())
        return asked | (feedback if asks else {})

    def uses(self, prepared: Prepared) -> list[Use]:
        cases = [asked_turns(case) for case in self._cases(prepared, [])]
        most = prepared.config.evaluate.max_reply_tokens
        uses = [Use(what="evaluate: replies", dialogues=cases, reply_tokens=most)]
        if learned := self._learned_by_the_probe(prepared):
            turns = [prompt.messages for prompt in learned]
            uses.append(Use(what="evaluate: prompts of the probe", dialogues=turns, reply_tokens=0))
        return uses

    def cost(self, prepared: Prepared) -> Cost:
        """Replies and answers of every model, and all calls to judges, labeller and reward models."""
        whole, config = prepared.config, prepared.config.evaluate
        judge, pair_judge = JUDGES[config.judge.kind], PAIR_JUDGES[config.pair_judge.kind]
        cases = self._cases(prepared, [])
        models = list(config.checkpoints or MODELS)
        num_answers = len(models) * answering.num_calls(cases, build_questions(config, []))
        items = [item_of(model, case, "A reply.") for model in models for case in cases]
        num_judged = judge.num_calls(config.judge, [*items, *as_items(labelled_replies(config.num_labelled_replies))])
        num_duels = comb(len(models), 2) * sum(map(is_compared, cases))
        has_reward_model = "reward" in prepared.stages
        num_rewards = has_reward_model * len(models) * len(rewarded_cases(cases))
        read = sum(len(turn["content"]) for case in cases for turn in case.messages) // CHARS_PER_TOKEN
        asked = read // max(len(cases), 1) + 2 * config.max_reply_tokens  # by a question of a judge or labeller
        [(field, engine)] = whole.feedback_engines("preferences").items()
        labeller, labels = whole.preferences.labeller, list[Cost]()
        for name, pairs in build_comparisons(config, []).items():
            if can_ask(labeller, engine):
                labels.append(label.cost(pairs, engine, labeller, prepared.constitution, whole.seed, name, tokens=0))
            num_rewards += 2 * len(pairs) * (has_reward_model + (config.reward_model is not None))
            num_duels += len(pairs)
        roles = {
            "policy_engine": Cost(
                num_calls=num_answers,
                num_tokens_written=len(items) * config.max_reply_tokens,
                num_tokens_read=len(models) * read,
            ),
            "evaluate.judge.engine": judge.cost(config.judge, num_judged, asked),
            "evaluate.pair_judge.engine": pair_judge.cost(config.pair_judge, pair_judge.num_calls(num_duels), asked),
            field: Cost.sum(labels),
        }
        cost = Cost.of_roles(roles)
        return replace(cost, num_calls=cost.num_calls + num_rewards)

    def memory(self, prepared: Prepared) -> Memory:
        from pipeline.training.footprint import of_generation, of_states

        config = prepared.config.evaluate
        states = of_states(prepared) if config.probe.enabled else Memory()
        return max(of_generation(prepared, config.max_reply_tokens), states, key=lambda memory: memory.total)

    def run(self, config: EvaluateConfig, context: Context) -> Metrics:
        prompts = list(read_records(context.folder("prompts") / "prompts.jsonl", Prompt))
        notes: list[str] = []
        cases = build_cases(config, [prompt for prompt in prompts if prompt.split == config.split], notes)
        refuse_overlap([case.prompt for case in cases], trained_keys(config, context.folders))
        questions = build_questions(config, notes)
        notes += shared_judges(config, [context.engine, context.critic], context.model)

        answered = answering.answers_of_all(config, context, cases, questions)
        held_out_manners = [] if config.checkpoints else sorted(manners_held_out(prompts))
        trained = trained_attributes(training_folders(config, context.folders))
        counted = Counted(measures=list(all_measures()), held_out_manners=held_out_manners, trained_attributes=trained)
        verdicts, card = judge_replies(config, context, cases, answered, notes, counted)
        pair_judge = open_pair_judge(config, context, "pair-judge", "pair judge")
        verdicts, wins, num_unreadable = duel(verdicts, pair_judge, counted)
        reward_model = own_reward_model(context)
        if reward_model is not None:
            verdicts = reward_verdicts(reward_model, cases, verdicts, context, "rewards")
        pairs = all_accuracies(config, context, reward_model, counted, notes)

        del reward_model  # the first model needs its room
        guarded = evaluate_guarded(config, context, verdicts, notes) if "guard" in context.folders else None
        if counted.trained_attributes:
            evaluated = {case.attribute for case in cases if case.attribute}
            notes.append(attributes_said(counted.trained_attributes, evaluated))
        if distributed.is_main():
            results = summarise(
                config,
                verdicts,
                held_out_manners=counted.held_out_manners,
                trained_attributes=counted.trained_attributes,
                answers={model: said.measured for model, said in answered.items()},
                judges=[card],
                wins=wins,
                pairs=pairs,
                probes=_garak(config, context),
                known=_knows_does(config, context, prompts, verdicts, notes, counted),
                notes=notes,
            )
            write_records(context.out / "verdicts.jsonl", verdicts)
            for name, found in (("counted", counted), ("results", results), ("guarded", guarded)):
                if found is not None:
                    (context.out / f"{name}.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")
            track(verdicts, results, context.tracker)
        return {
            "judge": card.name,
            "split": config.split,
            "num_cases": len(cases),
            "num_requests": len(verdicts),
            "num_unanswered": sum(not verdict.replied for verdict in verdicts),
            "num_unjudged": card.num_unjudged,
            "num_unreadable_comparisons": num_unreadable,
            "judge_accuracy": card.accuracy.value,
        }


def _teachers(config: Config) -> list[EngineConfig]:
    """The engines that wrote or labelled the training data."""
    return [config.feedback_engine("preferences"), config.feedback_engine("critique")]


def _is_reply(query: object) -> bool:
    return isinstance(query, ReplyQuery)


def _knows_does(
    config: EvaluateConfig,
    context: Context,
    prompts: Sequence[Prompt],
    verdicts: Sequence[Verdict],
    notes: list[str],
    counted: Counted,
) -> KnowsDoes | None:
    """Ask a probe on the first model's states about the requests that all models answered."""
    name, path = next(iter(checkpoints(config, context).items()))
    with context.meter.running():
        return knows_does(
            config.probe,
            weights_of(context, path, name),
            prompts,
            by_model(verdicts),
            batch_rows=batch_limits(context.launch)[0],
            seed=context.seed,
            confidence=config.confidence,
            notes=notes,
            counted=counted,
        )


def _garak(config: EvaluateConfig, context: Context) -> list[Probe]:
    """Run garak's probes and detectors on the last model."""
    if not config.garak_probes:
        return []
    model, path = list(checkpoints(config, context).items())[-1]
    say(f"garak: {', '.join(config.garak_probes)}")
    with context.meter.running():
        found = run_garak(Path(resolve_path(path)), config.garak_probes, context.out / "garak")
    return [Probe(model=model, **vars(result)) for result in found]
