"""evaluate: every model on conversations that nothing was trained on, judged, counted and compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.chain.config_evaluate import EvaluateConfig
from pipeline.core import distributed
from pipeline.core.cache import RecordLog
from pipeline.core.log import say
from pipeline.data.public_sets import Read
from pipeline.data.splits import refuse_overlap
from pipeline.engines.models import feedback_engine, local_engine, model_identity, resolve_path
from pipeline.evals.accuracy import as_items, judge_card, labelled_replies, pair_accuracy, shuffled
from pipeline.evals.answering import Answered, Identity, Logs, answer_all, kept_answers, whole_reply
from pipeline.evals.appoint import appoint_judge, appoint_pair_judge, is_shared, shared_judges, short_name
from pipeline.evals.cases import build_cases, labelled_pairs, public_bias_sets
from pipeline.evals.duels import duel
from pipeline.evals.garak import run_garak
from pipeline.evals.judges import Desk, Item
from pipeline.evals.labellers import labeller_scores, reward_scores, reward_verdicts
from pipeline.evals.pairs import BASELINES, PairJudge, Scores
from pipeline.evals.results import JudgeCard, PairAccuracy, Probe, Results, Role
from pipeline.evals.summary import summarise
from pipeline.records import (
    Case,
    Preference,
    Prompt,
    TrainingRow,
    Verdict,
    dialogue_key,
    read_records,
    write_records,
)
from pipeline.stages.base import Inputs, Metrics

if TYPE_CHECKING:
    from pipeline.engines.reward_model import RewardModel

VERSION = 3


def run(cfg: EvaluateConfig, inputs: Inputs, out: Path) -> Metrics:
    def log(name: str) -> RecordLog:
        return inputs.log(out, name.replace("/", "~"))  # hub ids have slashes

    prompts = read_records(inputs.folders["prompts"] / "prompts.jsonl", Prompt)
    cases, notes = build_cases(cfg, [prompt for prompt in prompts if prompt.split == cfg.split])
    refuse_overlap([case.prompt for case in cases], trained_keys(cfg, inputs))
    sets = public_bias_sets(cfg, notes)
    notes += shared_judges(cfg, inputs.engine, inputs.model)

    answered: dict[str, Answered] = {}
    for name, path in checkpoints(cfg, inputs).items():
        with kept_answers(out.parent, _asked(path, cases, sets, cfg, inputs)) as kept:
            engine = local_engine(path, inputs.model, inputs.launch, name=name)
            answered[name] = answer_all(engine, cases, sets, cfg, inputs.seed, kept, inputs.watch)
            del engine
    verdicts, card = _judge(cfg, inputs, cases, answered, log)
    desk = Desk(log=log("pair-judge"), watch=inputs.watch, label="pair judge")
    verdicts, wins = duel(verdicts, appoint_pair_judge(cfg.pair_judge, inputs.model, inputs.launch, desk))
    reward_model = _own_reward_model(inputs)
    if reward_model is not None:
        verdicts = reward_verdicts(reward_model, cases, verdicts, log("rewards"), inputs.watch)
    pairs = _pairs(cfg, inputs, reward_model, notes, log) if "pairs" in cfg.suites else []

    if distributed.is_main():
        results = summarise(
            cfg,
            verdicts,
            public_bias={model: said.bias for model, said in answered.items()},
            judges=[card],
            wins=wins,
            pairs=pairs,
            probes=_garak(cfg, inputs, out),
            notes=notes,
        )
        write_records(out / "verdicts.jsonl", verdicts)
        (out / "results.json").write_text(results.model_dump_json(indent=1), encoding="utf-8")
        _show(verdicts, results, inputs)
    return {
        "judge": card.name,
        "split": cfg.split,
        "num_cases": len(cases),
        "num_unjudged": card.num_unjudged,
        "judge_accuracy": card.accuracy.value,
    }


def _asked(path: str, cases: Sequence[Case], sets: Sequence[Read], cfg: EvaluateConfig, inputs: Inputs) -> Identity:
    """Who is asked what, and how: the same again has the same answers."""
    return {
        "version": VERSION,
        "model": model_identity(path, inputs.model.revision if path == inputs.model.path else None),
        "precision": inputs.model.precision,
        "seed": inputs.seed,
        "sampling": [cfg.max_reply_tokens, cfg.temperature, cfg.top_p],
        "cases": [case.model_dump(mode="json") for case in cases],
        "sets": [repr(row) for read in sets for row in read.rows],
    }


def checkpoints(cfg: EvaluateConfig, inputs: Inputs) -> dict[str, str]:
    """Name → model, the one that others are set against first."""
    if cfg.checkpoints:
        return dict(cfg.checkpoints)
    return {
        "base": inputs.model.path,
        "sft": str(inputs.folders["sft"] / "model"),
        "aligned": str(inputs.folders["align"] / "model"),
    }


def trained_keys(cfg: EvaluateConfig, inputs: Inputs) -> dict[str, str]:
    """Every request that anything was trained on or shown as an example, and where."""
    keys = {dialogue_key(messages): "the constitution" for messages in inputs.constitution.requests()}
    folders = dict(inputs.folders)
    if cfg.run is not None:  # the checkpoint's own run
        own = Path(cfg.run).glob("[0-9]*-*")
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
    if "align" in folders and (folders["align"] / "prompts.jsonl").exists():  # of an online method
        for prompt in read_records(folders["align"] / "prompts.jsonl", Prompt):
            keys.setdefault(prompt.key, "alignment")
    return keys


def _judge(
    cfg: EvaluateConfig, inputs: Inputs, cases: Sequence[Case], answered: dict[str, Answered], log: Logs
) -> tuple[list[Verdict], JudgeCard]:
    """Judge every reply, and the judge itself on labelled ones."""
    desk = Desk(log=log("judge"), watch=inputs.watch, label="judge")
    judge = appoint_judge(cfg.judge, inputs.model, inputs.launch, desk)
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
    shared = is_shared(cfg.judge, cfg, inputs.engine, inputs.model)
    return verdicts, judge_card(judge, labelled, judged, num_unjudged, shared, cfg.confidence)


def _own_reward_model(inputs: Inputs) -> RewardModel | None:
    """The one that the run has trained."""
    from pipeline.engines.reward_model import load_reward_model

    folder = inputs.folders.get("reward")
    if folder is None:
        return None
    return load_reward_model(str(folder / "model"), name="reward-stage", batch_rows=inputs.launch.batch_rows)


def _pairs(
    cfg: EvaluateConfig, inputs: Inputs, own_reward_model: RewardModel | None, notes: list[str], log: Logs
) -> list[PairAccuracy]:
    """The run's labeller, reward models and the pair judge on pairs that people decided, beside two baselines."""
    from pipeline.engines.reward_model import load_reward_model

    chosen_first = labelled_pairs(cfg, notes)
    shown, turned = shuffled(chosen_first)
    dataset = "shipped" if cfg.pairs.source == "builtin" else short_name(str(cfg.pairs.path))
    found: list[PairAccuracy] = []

    def add(who: str, role: Role, scores: Scores) -> None:
        found.extend(pair_accuracy(who, role, dataset, chosen_first, scores, turned, cfg.confidence))

    if inputs.preferences is not None:
        engine = feedback_engine(inputs.engine, inputs.model, inputs.launch, policy=None)
        scores = labeller_scores(
            inputs.preferences,
            inputs.constitution,
            engine,
            shown,
            inputs.seed,
            log("pairs-labeller"),
            log("pairs-thoughts"),
            inputs.watch,
        )
        add(f"{inputs.preferences.labeller}:{engine.name}", "labeller", scores)
        del engine
    if own_reward_model is not None:
        scores = reward_scores(own_reward_model, shown, log("pairs-own-reward"), inputs.watch)
        add(own_reward_model.name, "reward model", scores)
    if cfg.reward_model is not None:
        rows = inputs.launch.batch_rows
        given = load_reward_model(cfg.reward_model, name=short_name(cfg.reward_model), batch_rows=rows)
        add(given.name, "reward model", reward_scores(given, shown, log("pairs-reward"), inputs.watch))
        del given
    desk = Desk(log=log("pairs-judge"), watch=inputs.watch, label="pair judge on labelled pairs")
    judge: PairJudge = appoint_pair_judge(cfg.pair_judge, inputs.model, inputs.launch, desk)
    add(judge.name, "judge", judge.prefer(shown))
    for name, baseline in BASELINES.items():
        add(name, "baseline", baseline(shown))
    return found


def _garak(cfg: EvaluateConfig, inputs: Inputs, out: Path) -> list[Probe]:
    """garak's probes against the last model, by garak's own detectors."""
    if not cfg.garak_probes:
        return []
    model, path = list(checkpoints(cfg, inputs).items())[-1]
    say(f"garak: {', '.join(cfg.garak_probes)}")
    with inputs.watch.running():
        found = run_garak(Path(resolve_path(path)), cfg.garak_probes, out / "garak")
    return [Probe(model=model, **vars(result)) for result in found]


def _show(verdicts: Sequence[Verdict], results: Results, inputs: Inputs) -> None:
    rows = [
        (v.model, v.case.prompt.pool, v.case.prompt.kind, v.case.attack, v.case.prompt.request, v.reply, v.outcome)
        for v in verdicts
    ]
    columns = ("model", "pool", "kind", "attack", "prompt", "reply", "outcome")
    inputs.tracker.table("evaluate/replies", columns, rows)
    for model, measures in results.measures.items():
        known = {name: found.value for name, found in measures.items() if found.value is not None}
        inputs.tracker.log({f"evaluate/{model}/{name}": value for name, value in known.items()})
    names = list(dict.fromkeys(name for measures in results.measures.values() for name in measures))
    table = [(name, *(str(results.measures[model].get(name, "")) for model in results.models)) for name in names]
    inputs.tracker.table("evaluate/table", ("measure", *results.models), table)
