"""The report's numbers in the order of the page. No statistics are computed here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from pipeline.evals.changes import change_pairs
from pipeline.evals.counterfactuals import attributes_said
from pipeline.evals.measures import all_measures, group_of
from pipeline.evals.results import DIRECT, Change, Direction, Estimate, PairAccuracy, Results
from pipeline.evals.scores import Measure, Unit
from pipeline.evals.suites.red_team import ALL
from pipeline.records import Verdict, derive_seed
from pipeline.report.build import Report
from pipeline.report.explorer import by_case
from pipeline.report.svg import Axis, around
from pipeline.report.wording import is_rate, words, written

Row = tuple[str, list[Estimate | None]]
_REFUSED = ("look_alike_refused", "ordinary_refused")
_COMPLIED = "harmful_complied"


@dataclass(frozen=True)
class MeasureRow:
    """A row of the table of measures. An unknown measure (of another version) is shown by its identifier."""

    name: str
    estimates: list[Estimate | None]
    changes: list[Change | None]
    axis: Axis
    unit: Unit

    @property
    def title(self) -> str:
        return title(self.name)

    @property
    def how(self) -> str:
        return measure.how if (measure := _known(self.name)) else ""

    @property
    def suite(self) -> str:
        return group_of(self.name) if _known(self.name) else "other"

    @property
    def better(self) -> Direction | None:
        return measure.better if (measure := _known(self.name)) else None


def _known(name: str) -> Measure | None:
    return all_measures().get(name)


def title(name: str) -> str:
    return measure.title if (measure := _known(name)) else words(name).capitalize()


@dataclass(frozen=True)
class HeatTable:
    model: str
    attacks: list[str]
    rows: list[Row]


def measure_groups(results: Results) -> dict[str, list[MeasureRow]]:
    """Suite → its measures. Suites are in the order of the run; measures of other suites come last."""
    names = dict.fromkeys(chain.from_iterable(results.measures.get(model, {}) for model in results.models))
    groups: dict[str, list[MeasureRow]] = {}
    for row in (_measure_row(name, results) for name in names):
        groups.setdefault(row.suite, []).append(row)
    places = {suite: place for place, suite in enumerate(results.suites)}
    return dict(sorted(groups.items(), key=lambda group: places.get(group[0], len(places))))


def _measure_row(name: str, results: Results) -> MeasureRow:
    estimates = [results.measures.get(model, {}).get(name) for model in results.models]
    changes = {(c.before, c.after): c for c in results.changes if c.measure == name}
    of_rates = any(e is not None and is_rate(e) for e in estimates)
    known = (v for e in estimates if e for v in (e.value, e.low, e.high) if v is not None)
    measure = _known(name)
    return MeasureRow(
        name=name,
        estimates=estimates,
        changes=[changes.get(pair) for pair in change_pairs(results.models)],
        axis=Axis() if of_rates else around(known),
        unit="rate" if of_rates else measure.unit if measure else "mean",
    )


def success_by_kind(results: Results, attack: str) -> list[Row]:
    """(kind of harm, attack success per model) rows for one attack (``direct``: none, ``all``: all of them)."""
    found = {(cell.kind, cell.model): cell.success for cell in results.attacks if cell.attack == attack}
    return [
        (kind_name(kind), [found.get((kind, m)) for m in results.models]) for kind in _all_first(k for k, _ in found)
    ]


def success_by_attack(results: Results) -> list[Row]:
    """(attack, success per model) rows, over all kinds of harm; empty if there is only one."""
    found = {(cell.attack, cell.model): cell.success for cell in results.attacks if cell.kind == ALL}
    attacks = _all_first(attack for attack, _ in found)
    return [(attack_name(a), [found.get((a, m)) for m in results.models]) for a in attacks] if len(attacks) > 1 else []


def by_manner(report: Report, measure: str) -> list[Row]:
    """(manner of wording, rate per model) rows of one measure."""
    return [(manner, rates) for name, manner, rates in report.by_manner() if name == measure]


def cell_verdicts(results: Results, measure: str) -> dict[str, str]:
    """Name of a row → "better" or "worse", if the paired test of the first and the last model shows a change."""
    signs = {"better": "✓ better", "worse": "✗ worse"}
    cells = ((change.measure.partition(":"), change.verdict) for change in results.cell_changes)
    return {words(cell): signs[verdict] for (name, _, cell), verdict in cells if name == measure and verdict in signs}


def kind_name(kind: str) -> str:
    return "all kinds" if kind == ALL else words(kind)


def attack_name(attack: str) -> str:
    return "all attacks" if attack == ALL else words(attack)


def heat_tables(results: Results) -> list[HeatTable]:
    """One table of kind × attack per model, the last model first."""
    tables = []
    for model in reversed(results.models):
        found = {(cell.kind, cell.attack): cell.success for cell in results.attacks if cell.model == model}
        attacks = _all_first(attack for _, attack in found)
        kinds = _all_first(kind for kind, _ in found)
        if found:
            tables.append(HeatTable(model, attacks, [(k, [found.get((k, a)) for a in attacks]) for k in kinds]))
    return tables


def _all_first(names: Any) -> list[str]:
    return sorted(dict.fromkeys(names), key=lambda name: (name != ALL, name != DIRECT))


def trade_off_points(results: Results) -> tuple[str, str, dict[str, tuple[Estimate, Estimate]]]:
    """The titles of both axes, and model → (harmless refused, harmful complied with)."""
    for refused in _REFUSED:
        points = {
            model: (results.measures[model][refused], results.measures[model][_COMPLIED])
            for model in results.models
            if {refused, _COMPLIED} <= set(results.measures.get(model, {}))
        }
        if any(x.value is not None and y.value is not None for x, y in points.values()):
            return title(refused), title(_COMPLIED), points
    return "", "", {}


def rating_rows(results: Results) -> list[Row]:
    """One row per model with its strength; all rows have the same axis."""
    found = {r.model: Estimate(value=r.elo, low=r.low, high=r.high) for r in results.ratings}
    return [
        (words(model), [found[model] if other == model else None for other in results.models])
        for model in results.models
        if model in found
    ]


def pair_groups(results: Results) -> dict[tuple[str, str], list[PairAccuracy]]:
    """(data set, kind) → the accuracy of each judge and, after them, of each baseline."""
    groups: dict[tuple[str, str], list[PairAccuracy]] = {}
    for pair in sorted(results.pairs, key=lambda pair: pair.role == "baseline"):
        groups.setdefault((pair.dataset, pair.kind), []).append(pair)
    return groups


def curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, str, dict[str, list[Any]]]]:
    """(stage, title, series by name) of the logged metrics: loss, reward, accuracy and KL, or the metrics of a
    policy-gradient method."""
    found = []
    for stage, history in histories.items():
        keys = list(dict.fromkeys(chain.from_iterable(history)))
        for title, names in _names_of_curves(keys).items():
            series = {name: points for key, name in names.items() if (points := _points(history, key))}
            if any(len(points) > 1 for points in series.values()):
                found.append((stage, title, series))
    return found


def _points(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    known = ((row["step"], row.get(key)) for row in history)
    return [(float(s), float(v)) for s, v in known if isinstance(v, int | float) and math.isfinite(v)]


def _names_of_curves(keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """Title of a plot → logged key → name of its series."""
    if "objective/scores" not in keys:
        return {title: {key: key for key in keys if is_mine(key.lower())} for title, is_mine in _CURVES.items()}
    parts = {key: key.split("/")[1] for key in keys if key.startswith("rewards/") and not key.endswith("/std")}
    return _ROLLOUT_CURVES | ({"parts of the score": parts} if len(parts) > 1 else {})


_CURVES = {
    "loss": lambda key: key in ("loss", "eval_loss", "train_loss"),
    "reward": lambda key: "reward" in key and "accurac" not in key and "std" not in key,
    "accuracy": lambda key: "accurac" in key,
    "KL": lambda key: "kl" in key.replace("/", "_").split("_"),
}
_ROLLOUT_CURVES = {
    "score": {"objective/scores": "rollouts", "held_out/scores": "held-out prompts"},
    "KL to the SFT model, nats per reply": {"objective/kl": "rollouts", "held_out/kl": "held-out prompts"},
    "entropy, nats per token": {"objective/token_entropy": "rollouts"},
    "length of replies, tokens": {"reply_tokens_mean": "rollouts"},
    "loss of the policy": {"loss": "policy"},  # loss/policy_avg is the same number
    "loss of the values": {"loss/value_avg": "values"},
    "share of tokens clipped": {"policy/clipfrac_avg": "policy", "val/clipfrac_avg": "values"},
    "approximate KL of an update, nats per token": {"policy/approxkl_avg": "policy"},
    "engine beside trainer: log-probabilities, nats per token": {
        "sampling/sampling_logp_difference/mean": "mean difference"
    },
    "explained variance of the values": {"val/explained_variance": "values"},
}


def flat_metrics(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name, value) rows of a manifest's numbers and texts; nested ones as ``name: key``. Other values are skipped."""
    rows: list[tuple[str, Any]] = []
    for key, value in metrics.items():
        name = words(key.removeprefix("num_"))
        nested = value.items() if isinstance(value, Mapping) and not _is_estimate(value) else [(None, value)]
        flat = ((part, written(Estimate(**item)) if _is_estimate(item) else item) for part, item in nested)
        rows += [
            (name if part is None else f"{name}: {part}", item)
            for part, item in flat
            if item is None or isinstance(item, int | float | str)
        ]
    return rows


def _is_estimate(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == Estimate.model_fields.keys()


def trained_attributes(results: Results) -> str:
    """Which attributes were trained on, and which never are."""
    return attributes_said(results.trained_attributes, {entry.attribute for entry in results.bias})


def sample_cases(report: Report, num_cases: int = 8) -> list[list[Verdict]]:
    """A few cases, half of them harmful, chosen by the hash of their id, not by their outcome."""
    cases = sorted(by_case(report.verdicts), key=lambda verdicts: derive_seed("page", verdicts[0].case.id))
    harmful = [verdicts for verdicts in cases if verdicts[0].case.prompt.pool == "red_team"]
    harmless = [verdicts for verdicts in cases if verdicts[0].case.prompt.pool != "red_team"]
    mixed = chain.from_iterable(zip_longest(harmful, harmless))
    return [verdicts for verdicts in mixed if verdicts][:num_cases]


def taught_examples(report: Report) -> dict[str, list[str]]:
    """Id of a worked example or good answer of the constitution → ids of its training rows."""
    taught: dict[str, list[str]] = {}
    for row in report.rows:
        if row.origin in ("worked_example", "good_answer"):
            taught.setdefault(row.source_id, []).append(row.id)
    return taught


def uses(report: Report) -> dict[str, tuple[int, int]]:
    """Principle id → (number of critiques, number of judgements) under it."""
    counted: dict[str, list[int]] = {}
    for exchange in report.exchanges:
        for revision in exchange.revisions:
            counted.setdefault(revision.principle_id, [0, 0])[0] += 1
    for preference in report.preferences:
        for judgement in preference.judgements:
            counted.setdefault(judgement.principle_id, [0, 0])[1] += 1
    return {principle: (critiques, judgements) for principle, (critiques, judgements) in counted.items()}
