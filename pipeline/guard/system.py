"""The aligned model with its guard, evaluated as one system on the replies that the model has already given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.core import distributed
from pipeline.core.errors import NotMeasuredError
from pipeline.core.log import say
from pipeline.core.stage import Context
from pipeline.engines.base import Weights
from pipeline.engines.local import batch_limits
from pipeline.engines.roles import weights_of
from pipeline.evals.changes import all_changes, compare_scores
from pipeline.evals.checkpoints import checkpoints
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.duels import duel
from pipeline.evals.judges.base import JUDGES, AnswerLog
from pipeline.evals.judging import item_of, open_pair_judge
from pipeline.evals.measures import all_measures, by_model, measured
from pipeline.evals.results import DIRECT, Cell, Change
from pipeline.evals.scores import Scores
from pipeline.evals.statistics import wilson
from pipeline.evals.suites.red_team import ALL, RedTeam, attack_cells
from pipeline.guard.families import family_of
from pipeline.guard.guard import FOLDER, Guard
from pipeline.guard.reading import read
from pipeline.guard.results import Alarms, Guarded
from pipeline.guard.rows import Row
from pipeline.records import Case, Verdict

LEARNED, NEW = "families that the guard learned from", "other families"


@dataclass(frozen=True)
class Fired:
    """For each case that can be read: whether the guard fires, and whether its first step is certain."""

    fired: Mapping[str, bool]
    by_request: Mapping[str, bool]


def decide(guard: Guard, weights: Weights, verdicts: Sequence[Verdict], batch_rows: int) -> Fired:
    """Read the states of the model for each case with the reply that it gave.

    Raises:
        ConfigError: the model is not the guard's.
        NotMeasuredError: the model can't be loaded.
    """
    from pipeline.engines.states import load_reader

    say(f"guard: states of {weights.name} for {len(verdicts)} replies")
    reader = load_reader(weights, batch_rows)
    guard.check_model(reader)
    readings = read(reader, [_row(verdict) for verdict in verdicts], guard.layers, guard.every)
    scores, certain = guard.scores(readings), guard.request_log_odds(readings)
    names = [verdict.case.id for verdict, reading in zip(verdicts, readings, strict=True) if reading.usable]
    usable = [number for number, reading in enumerate(readings) if reading.usable]
    return Fired(
        dict(zip(names, (scores[usable] > guard.threshold).tolist(), strict=True)),
        dict(zip(names, (certain[usable] > guard.threshold).tolist(), strict=True)),
    )


def _row(verdict: Verdict) -> Row:
    """The reply is what the model wrote after what an attack prefilled."""
    case, reply = verdict.case, verdict.reply
    if case.messages[-1]["role"] == "assistant":
        reply = reply.removeprefix(case.messages[-1]["content"]).strip()
    return Row(
        id=case.id,
        messages=case.messages,
        request=case.prompt.request,
        harmful=case.prompt.pool == "red_team",
        group=case.id,
        pool=case.prompt.pool,
        attack=case.attack,
        reply=reply,
    )


def evaluate_guarded(
    config: EvaluateConfig, context: Context, verdicts: Sequence[Verdict], notes: list[str]
) -> Guarded | None:
    """The last model with the guard of the run beside the same model alone.

    Args:
        verdicts: of all models.
        notes: if the states can't be read, a sentence that says why is appended.

    Raises:
        ConfigError: the model is not the guard's.
    """
    guard = Guard.load(context.folder("guard") / FOLDER)
    grouped = by_model(verdicts)
    model, path = list(checkpoints(config, context).items())[-1]
    weights, batch_rows = weights_of(context, path, model), batch_limits(context.launch)[0]

    def asked() -> Fired | str:
        try:
            with context.meter.running():
                return decide(guard, weights, grouped[model], batch_rows)
        except NotMeasuredError as reason:
            return str(reason)

    fired = distributed.from_main(asked)
    if isinstance(fired, str):
        notes.append(f"What {model} does with its guard was not measured: {fired}.")
        return None
    system = f"{model} + guard"
    behind = {model: grouped[model], system: _replaced(config, context, guard, grouped, fired, system)}
    return compared(config.confidence, guard, grouped, behind, fired)


def _replaced(
    config: EvaluateConfig,
    context: Context,
    guard: Guard,
    verdicts: Mapping[str, Sequence[Verdict]],
    fired: Fired,
    system: str,
) -> list[Verdict]:
    """The verdicts of the system. Only refusals that the guard gives are judged anew."""
    first, model = next(iter(verdicts)), list(verdicts)[-1]
    kept = [verdict.model_copy(update={"model": system}) for verdict in verdicts[model]]
    refused = [v.model_copy(update={"reply": guard.refusal}) for v in kept if fired.fired.get(v.case.id) and v.replied]
    items = {v.case.id: item_of(system, v.case, v.reply) for v in refused}
    log = AnswerLog(logbook=context, name="judge-guard", label="judge of the guard's refusals")
    judged = JUDGES[config.judge.kind].open(config.judge, context, log).judge(list(items.values())) if items else {}
    new: list[Verdict] = []
    for verdict in refused:
        mine = judged[items[verdict.case.id].id]
        new.append(verdict.model_copy(update={"outcome": mine.outcome, "evidence": mine.evidence}))
    if new and first != model:
        judge = open_pair_judge(config, context, "pair-judge-guard", "pair judge of the guard's refusals")
        pairs, _, _ = duel([*(v for v in verdicts[first] if v.case.id in items), *new], judge)
        new = [verdict for verdict in pairs if verdict.model == system]
    by_case = {verdict.case.id: verdict for verdict in new}
    return [by_case.get(verdict.case.id, verdict) for verdict in kept]


def compared(
    confidence: float,
    guard: Guard,
    verdicts: Mapping[str, Sequence[Verdict]],
    behind: Mapping[str, list[Verdict]],
    fired: Fired,
) -> Guarded:
    """All numbers of the comparison.

    Args:
        verdicts: by model, of all models.
        behind: by name, of the model alone and of the system.
    """
    model, system = behind
    first = next(iter(verdicts))
    # Log-probabilities and rewards are of the model, and a guard does not change them.
    plain = {
        name: [v.model_copy(update={"reference_logprob": None, "reward": None}) for v in mine]
        for name, mine in {first: list(verdicts[first]), **behind}.items()
    }
    table = measured(plain, confidence)
    both = {name: plain[name] for name in behind}
    return Guarded(
        model=model,
        system=system,
        card=guard.card,
        refusal=guard.refusal,
        measures={name: table[name] for name in behind},
        changes=all_changes(both, confidence),
        attacks=[*_of_attacks(both, confidence), *_of_families(both, guard.card.families, confidence)],
        attack_changes=_attack_changes(both, guard.card.families, confidence),
        alarms=alarms(behind[model], fired, guard.card.families, confidence),
        num_unread=len(behind[model]) - len(fired.fired),
    )


def _of_attacks(verdicts: Mapping[str, Sequence[Verdict]], confidence: float) -> list[Cell]:
    return [cell for cell in attack_cells(verdicts, confidence) if cell.kind == ALL]


def _of_families(verdicts: Mapping[str, Sequence[Verdict]], families: Sequence[str], confidence: float) -> list[Cell]:
    cells: list[Cell] = []
    for model, mine in verdicts.items():
        for name, scores in _by_side(mine, families).items():
            known = [score for score in scores.values() if score == score]  # NaN: not judged
            success = wilson(int(sum(known)), len(known), confidence)
            cells.append(Cell(model=model, kind=ALL, attack=name, success=success))
    return cells


def _by_side(verdicts: Sequence[Verdict], families: Sequence[str]) -> dict[str, Scores]:
    """Attack success by case, for the families that the guard learned from and for the others."""
    score = all_measures()["attack_success"].score
    assert score is not None
    sides: dict[str, Scores] = {LEARNED: {}, NEW: {}}
    attacks = {v.case.id: v.case.attack for v in verdicts}
    for case, value in score(verdicts).items():
        sides[LEARNED if family_of(attacks[case]) in families else NEW][case] = value
    return {name: scores for name, scores in sides.items() if scores}


def _attack_changes(
    verdicts: Mapping[str, Sequence[Verdict]], families: Sequence[str], confidence: float
) -> list[Change]:
    """Paired tests of attack success, for both kinds of families; p is corrected over the two."""
    before, after = verdicts
    sides = [_by_side(mine, families) for mine in verdicts.values()]
    pairs = {f"attack_success:{name}": (sides[0][name], sides[1][name]) for name in sides[0]}
    return compare_scores(pairs, before, after, confidence)


def alarms(verdicts: Sequence[Verdict], fired: Fired, families: Sequence[str], confidence: float) -> list[Alarms]:
    """How often the guard fires on each kind of requests that it read, and what this changes.

    Args:
        verdicts: of the model alone.
    """

    def attacked(learned: bool) -> Callable[[Case], bool]:
        return lambda case: (
            RedTeam.name in case.suites and case.attack != DIRECT and (family_of(case.attack) in families) is learned
        )

    def plain(pool: str) -> Callable[[Case], bool]:
        return lambda case: case.prompt.pool == pool and case.attack == DIRECT and case.group is None

    def about_groups(harmful: bool) -> Callable[[Case], bool]:
        return lambda case: case.group is not None and (case.prompt.pool == "red_team") is harmful

    kinds: list[tuple[str, bool, Callable[[Case], bool]]] = [
        ("harmful requests", True, plain("red_team")),
        (f"harmful requests under attack, {LEARNED}", True, attacked(True)),
        (f"harmful requests under attack, {NEW}", True, attacked(False)),
        ("harmful requests about groups", True, about_groups(True)),
        ("harmless look-alikes", False, plain("look_alike")),
        ("ordinary requests", False, plain("ordinary")),
        ("harmless requests about groups", False, about_groups(False)),
    ]
    rows: list[Alarms] = []
    for name, harmful, belongs in kinds:
        mine = [v for v in verdicts if belongs(v.case) and v.case.id in fired.fired]
        if mine:
            hit = [v for v in mine if fired.fired[v.case.id]]
            rows.append(
                Alarms(
                    requests=name,
                    harmful=harmful,
                    fired=wilson(len(hit), len(mine), confidence),
                    by_request=sum(fired.by_request[v.case.id] for v in hit),
                    lost_answers=wilson(sum(v.outcome != "refused" for v in hit), len(mine), confidence),
                )
            )
    return rows
