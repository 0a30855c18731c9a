"""evaluate: run every model on held-out conversations, judge the replies, and compare the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.errors import ConfigError
from pipeline.core.log import say
from pipeline.core.settings import part
from pipeline.core.stage import Context, Cost, Metrics, Prepared, Stage
from pipeline.data.public_sets import Read
from pipeline.data.splits import refuse_overlap
from pipeline.engines.models import check_model, check_reward_model, model_identity, resolve_path, short_name
from pipeline.engines.roles import BASE, feedback_engine, policy_engine
from pipeline.evals import attacks
from pipeline.evals.accuracy import as_items, judge_card, labelled_replies, pair_accuracy, shuffled
from pipeline.evals.answering import Answered, Identity, answer_all, kept_answers, whole_reply
from pipeline.evals.appoint import appoint_judge, appoint_pair_judge, check_judges, is_shared, shared_judges
from pipeline.evals.cases import build_cases, labelled_pairs, public_bias_sets
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.duels import duel
from pipeline.evals.garak import check_garak, run_garak
from pipeline.evals.judges import TEMPLATE as JUDGE_TEMPLATE
from pipeline.evals.judges import Desk, Item
from pipeline.evals.labellers import comparisons_of, labeller_scores, reward_scores, reward_verdicts, rewarded_cases
from pipeline.evals.pairs import BASELINES, PairJudge, Scores
from pipeline.evals.pairs import TEMPLATE as PAIR_TEMPLATE
from pipeline.evals.refusal import NAME as PATTERNS
from pipeline.evals.results import JudgeCard, PairAccuracy, Probe, Results, Role
from pipeline.evals.summary import summarise
from pipeline.labellers.base import TEMPLATE, constitution_fields
from pipeline.labellers.label import num_calls
from pipeline.records import (
    POOLS,
    Case,
    Preference,
    Prompt,
    TrainingRow,
    Verdict,
    dialogue_key,
    read_records,
    write_records,
)

if TYPE_CHECKING:
    from pipeline.chain.config import Config
    from pipeline.engines.reward_model import RewardModel

VERSION = 4
CHARS_PER_TOKEN = 4  # for estimates of tokens read


class Evaluate(Stage):
    """Verdicts on the replies of every model, and the measures computed from them."""

    name, outputs = "evaluate", ("verdicts.jsonl", "results.json")
    needs = ("prompts", "sft", "preferences", "reward", "align")
    version = VERSION
    trains = False

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        return {
            "seed": config.seed,
            "model": part(config.model, "path", "revision", "precision"),
            "policy_engine": config.policy_engine,
            "engine": config.engine,
            "labeller": config.preferences.labeller,
            "constitution": part(constitution, *constitution_fields(config.preferences.labeller)),
            "templates": [TEMPLATE, attacks.TEMPLATE, JUDGE_TEMPLATE, PAIR_TEMPLATE, PATTERNS],
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
        if "pairs" in config.suites:
            labelled_pairs(config, notes)
        public_bias_sets(config, notes)
        for path in config.checkpoints.values():
            check_model(path, None, "CHECKPOINT")
        if config.reward_model is not None:
            check_reward_model(config.reward_model, "evaluate.reward_model")
            check_scoring(config.reward_model, None, "evaluate.reward_model")
        if config.garak_probes:
            check_garak()
        return notes + check_judges(config, prepared.config.engine, prepared.config.model)

    def _cases(self, prepared: Prepared, notes: list[str]) -> list[Case]:
        config = prepared.config.evaluate
        held_out = [prompt for prompt in prepared.prompts if prompt.split == config.split]
        cases, said = build_cases(config, held_out)
        notes += said
        return cases

    def cost(self, prepared: Prepared) -> Cost:
        """Replies and references of every model, and all calls to judges, labeller and reward models."""
        whole, config = prepared.config, prepared.config.evaluate
        cases = self._cases(prepared, [])
        num_models = len(config.checkpoints) or 3
        num_references = sum(case.reference is not None for case in cases)
        num_read = sum(len(turn["content"]) for case in cases for turn in case.messages) // CHARS_PER_TOKEN
        num_replies = num_models * len(cases)
        num_asked = num_models * num_references
        if config.judge.kind != "patterns":
            num_asked += num_replies + len(labelled_replies())
        if config.pair_judge.kind != "patterns":
            num_helpful = sum("helpfulness" in case.suites for case in cases)
            num_asked += 2 * num_helpful * num_models * (num_models - 1) // 2
        for read in public_bias_sets(config, []):
            num_asked += num_models * len(read.rows) * (1 if hasattr(read.rows[0], "answers") else 2)
        reward_stage = "reward" in prepared.stages
        if reward_stage:
            num_asked += num_models * len(rewarded_cases(cases))
        if "pairs" in config.suites:
            pairs = labelled_pairs(config, [])
            shown = comparisons_of(pairs)
            labeller, seed = whole.preferences.labeller, whole.seed
            num_asked += num_calls(shown, labeller, prepared.constitution, seed, "pairs")
            num_asked += 2 * len(pairs) * (reward_stage + (config.reward_model is not None))
            num_asked += 2 * len(pairs) * (config.pair_judge.kind != "patterns")
        return Cost(
            num_calls=num_replies + num_asked,
            num_tokens_written=num_replies * config.max_reply_tokens,
            num_tokens_read=num_models * num_read,
        )

    def run(self, config: EvaluateConfig, context: Context) -> Metrics:
        prompts = read_records(context.folder("prompts") / "prompts.jsonl", Prompt)
        cases, notes = build_cases(config, [prompt for prompt in prompts if prompt.split == config.split])
        refuse_overlap([case.prompt for case in cases], trained_keys(config, context.folders))
        sets = public_bias_sets(config, notes)
        notes += shared_judges(config, context.engine, context.model)

        answered: dict[str, Answered] = {}
        for name, path in checkpoints(config, context).items():
            with kept_answers(context.out.parent, _asked(path, cases, sets, config, context), context.meter) as kept:
                engine = policy_engine(context, path, name)
                answered[name] = answer_all(engine, cases, sets, config, context.seed, kept)
                del engine
        verdicts, card = _judge(config, context, cases, answered)
        desk = Desk(logbook=context, log="pair-judge", label="pair judge")
        verdicts, wins = duel(verdicts, appoint_pair_judge(config.pair_judge, context, desk))
        reward_model = _own_reward_model(context)
        if reward_model is not None:
            verdicts = reward_verdicts(reward_model, cases, verdicts, context, "rewards")
        pairs = _pairs(config, context, reward_model, notes) if "pairs" in config.suites else []

        if distributed.is_main():
            results = summarise(
                config,
                verdicts,
                public_bias={model: said.bias for model, said in answered.items()},
                judges=[card],
                wins=wins,
                pairs=pairs,
                probes=_garak(config, context),
                notes=notes,
            )
            write_records(context.out / "verdicts.jsonl", verdicts)
            (context.out / "results.json").write_text(results.model_dump_json(indent=1), encoding="utf-8")
            _show(verdicts, results, context)
        return {
            "judge": card.name,
            "split": config.split,
            "num_cases": len(cases),
            "num_unjudged": card.num_unjudged,
            "judge_accuracy": card.accuracy.value,
        }


def _asked(
    path: str, cases: Sequence[Case], sets: Sequence[Read], config: EvaluateConfig, context: Context
) -> Identity:
    """Everything that decides a model's answers. Equal identities share cached answers."""
    return {
        "version": VERSION,
        "model": model_identity(path, context.model.revision if path == context.model.path else None),
        "precision": context.model.precision,
        "engine": context.policy_engine.key(),
        "seed": context.seed,
        "sampling": [config.max_reply_tokens, config.temperature, config.top_p],
        "cases": [case.model_dump(mode="json") for case in cases],
        "sets": [repr(row) for read in sets for row in read.rows],
    }


def checkpoints(config: EvaluateConfig, context: Context) -> dict[str, str]:
    """Name → path of each model. The others are compared with the first one."""
    if config.checkpoints:
        return dict(config.checkpoints)
    return {
        BASE: context.model.path,
        "sft": str(context.folder("sft") / "model"),
        "aligned": str(context.folder("align") / "model"),
    }


def trained_keys(config: EvaluateConfig, folders: Mapping[str, Path]) -> dict[str, str]:
    """Dialogue key → where it was trained on. (``check`` already refuses requests of the constitution.)"""
    keys: dict[str, str] = {}
    folders = dict(folders)
    if config.run is not None:  # the run that made the checkpoint
        own = Path(config.run).glob("[0-9]*-*")
        folders |= {folder.name.split("-", 1)[1]: folder for folder in own}
    if "sft" in folders:
        for row in read_records(folders["sft"] / "rows.jsonl", TrainingRow):
            keys[dialogue_key(row.messages)] = "the SFT rows"
    if "preferences" in folders:
        for preference in read_records(folders["preferences"] / "preferences.jsonl", Preference):
            keys[preference.comparison.prompt.key] = "the preferences"
    if "reward" in folders:
        for preference in read_records(folders["reward"] / "rows.jsonl", Preference):
            keys.setdefault(preference.comparison.prompt.key, "the reward model's pairs")
    if "align" in folders and (folders["align"] / "prompts.jsonl").exists():  # only online methods have it
        for prompt in read_records(folders["align"] / "prompts.jsonl", Prompt):
            keys.setdefault(prompt.key, "alignment")
    return keys


def _judge(
    config: EvaluateConfig, context: Context, cases: Sequence[Case], answered: dict[str, Answered]
) -> tuple[list[Verdict], JudgeCard]:
    """Judge every reply, and measure the judge on labelled replies."""
    desk = Desk(logbook=context, log="judge", label="judge")
    judge = appoint_judge(config.judge, context, desk)
    items = {
        (model, case.id): Item(
            id=f"{model}|{case.id}",
            request=case.prompt.request,
            reply=whole_reply(case, said.replies[case.id]),
            harmful=case.prompt.pool == "red_team",
        )
        for model, said in answered.items()
        for case in cases
    }
    labelled = labelled_replies()
    judged = judge.judge([*items.values(), *as_items(labelled)])
    verdicts = [
        Verdict(
            case=case,
            model=model,
            reply=items[model, case.id].reply,
            num_tokens=said.replies[case.id].num_tokens,
            seed=said.seeds[case.id],
            outcome=judged[items[model, case.id].id].outcome,
            evidence=judged[items[model, case.id].id].evidence,
            judge=judge.name,
            reference_logprob=said.reference_logprobs.get(case.id),
        )
        for model, said in answered.items()
        for case in cases
    ]
    num_unjudged = sum(verdict.outcome == "unjudged" for verdict in verdicts)
    shared = is_shared(config.judge, config, context.engine, context.model)
    return verdicts, judge_card(judge, labelled, judged, num_unjudged, shared, config.confidence)


def _own_reward_model(context: Context) -> RewardModel | None:
    """The reward model of this run, or None."""
    from pipeline.engines.reward_model import load_reward_model

    folder = context.folders.get("reward")
    if folder is None:
        return None
    return load_reward_model(str(folder / "model"), name="reward-stage", batch_rows=context.launch.batch_rows)


def _pairs(
    config: EvaluateConfig, context: Context, own_reward_model: RewardModel | None, notes: list[str]
) -> list[PairAccuracy]:
    """Accuracy of labeller, reward models, pair judge and baselines on pairs with human choices."""
    from pipeline.engines.reward_model import load_reward_model

    chosen_first = labelled_pairs(config, notes)
    shown, turned = shuffled(chosen_first)
    dataset = "shipped" if config.pairs.source == "builtin" else short_name(str(config.pairs.path))
    found: list[PairAccuracy] = []

    def add(who: str, role: Role, scores: Scores) -> None:
        found.extend(pair_accuracy(who, role, dataset, chosen_first, scores, turned, config.confidence))

    engine = feedback_engine(context)
    scores = labeller_scores(context.labeller, context.constitution, engine, shown, context.seed, context)
    add(f"{context.labeller.kind}:{engine.name}", "labeller", scores)
    del engine
    if own_reward_model is not None:
        add(own_reward_model.name, "reward model", reward_scores(own_reward_model, shown, context, "pairs-own-reward"))
    if config.reward_model is not None:
        rows = context.launch.batch_rows
        given = load_reward_model(config.reward_model, name=short_name(config.reward_model), batch_rows=rows)
        add(given.name, "reward model", reward_scores(given, shown, context, "pairs-reward"))
        del given
    desk = Desk(logbook=context, log="pairs-judge", label="pair judge on labelled pairs")
    judge: PairJudge = appoint_pair_judge(config.pair_judge, context, desk)
    add(judge.name, "judge", judge.prefer(shown))
    for name, baseline in BASELINES.items():
        add(name, "baseline", baseline(shown))
    return found


def _garak(config: EvaluateConfig, context: Context) -> list[Probe]:
    """Run garak's probes and detectors on the last model."""
    if not config.garak_probes:
        return []
    model, path = list(checkpoints(config, context).items())[-1]
    say(f"garak: {', '.join(config.garak_probes)}")
    with context.meter.running():
        found = run_garak(Path(resolve_path(path)), config.garak_probes, context.out / "garak")
    return [Probe(model=model, **vars(result)) for result in found]


def _show(verdicts: Sequence[Verdict], results: Results, context: Context) -> None:
    rows = [
        (v.model, v.case.prompt.pool, v.case.prompt.kind, v.case.attack, v.case.prompt.request, v.reply, v.outcome)
        for v in verdicts
    ]
    columns = ("model", "pool", "kind", "attack", "prompt", "reply", "outcome")
    context.tracker.table("evaluate/replies", columns, rows)
    for model, measures in results.measures.items():
        known = {name: found.value for name, found in measures.items() if found.value is not None}
        context.tracker.log({f"evaluate/{model}/{name}": value for name, value in known.items()})
    names = list(dict.fromkeys(name for measures in results.measures.values() for name in measures))
    table = [(name, *(str(results.measures[model].get(name, "")) for model in results.models)) for name in names]
    context.tracker.table("evaluate/table", ("measure", *results.models), table)
