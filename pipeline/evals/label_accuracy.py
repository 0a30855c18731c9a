"""How often labellers are right before anything is trained.

Sets of pairs: the shipped ones, pairs that people decided, and contrasts. A contrast that the labeller is not shown
gives the same refusal and the same answer twice: for its harmful request, where the refusal is right, and for its
harmless twin, where the answer is right. So a labeller that looks at the replies alone is right on half of them. Each
set is also labelled with all prompts filed under one pool (``HIDDEN``): a labeller that only reads the pool is then
right on half of the twins, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.constitution.critique import tidy
from pipeline.constitution.schema import Constitution, Contrast
from pipeline.core.cache import RecordLog
from pipeline.core.errors import CaiError
from pipeline.core.log import Meter, say, warn
from pipeline.engines.base import (
    Answer,
    AskT,
    BatchEngine,
    Completion,
    Engine,
    Query,
    Request,
    StreamingEngine,
    chooser,
)
from pipeline.engines.worklist import generate_all
from pipeline.evals.accuracy import shuffled
from pipeline.evals.results import Estimate
from pipeline.evals.statistics import share_of_right, wilson
from pipeline.labellers.base import LABELLERS, LabellerConfig, Wording
from pipeline.labellers.label import label
from pipeline.records import Comparison, Pool, Preference, Prompt, derive_seed

HIDDEN: Pool = "red_team"
ALL_WORDINGS: tuple[Wording, ...] = (1, 2, 3)
MAX_ANSWER_TOKENS = 40
PURPOSE = "accuracy"


class LabelAccuracy(BaseModel):
    """One labeller on one set of pairs. Ties count half; pairs without a readable answer do not count."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    engine: str
    labeller: str
    pairs: str
    pool: str
    """``told``: prompts are filed as they are; ``hidden``: all under one pool; ``not read``: by this labeller."""
    wording: str = ""
    """The number of the wording; "" for a labeller without several or with its own choice of them."""
    accuracy: Estimate = Estimate(value=None)
    by_kind: dict[str, Estimate] = {}
    num_unanswered: int = 0
    order_flips: Estimate = Estimate(value=None)
    """Share of judgements that chose the same letter in both orders."""
    wording_flips: Estimate = Estimate(value=None)
    """Share of pairs that are not decided alike in all wordings; only in the row of the last wording."""
    num_calls: int = 0
    num_tokens_read: int = 0
    seconds: float = 0.0
    error: str = ""


# --- Sets of pairs, in which reply A is the right one ---------------------------------------------------------------

Held = Sequence[tuple[Contrast, Prompt, Prompt]]


def hold_back(constitution: Constitution, num_contrasts: int) -> tuple[Constitution, Held]:
    """(the constitution without the last contrasts by hash, these contrasts)."""
    held = constitution.contrast_prompts()[-num_contrasts:] if num_contrasts else []
    ids = {contrast.id for contrast, *_ in held}
    kept = [contrast for contrast in constitution.contrasts if contrast.id not in ids]
    return constitution.model_copy(update={"contrasts": kept}), held


def answers_to_twins(engine: Engine, held: Held, logbook: Scratch) -> dict[str, str]:
    """Contrast id → the greedy reply of a model to its harmless twin; those without a whole sentence are left out."""
    requests = [
        Request(
            id=contrast.id,
            messages=twin.messages,
            seed=derive_seed(0, twin.key),
            max_new_tokens=MAX_ANSWER_TOKENS,
            temperature=0.0,
        )
        for contrast, _, twin in held
    ]
    found = generate_all(engine, "answers to twins", requests, logbook, "answers")
    texts = {row_id: tidy(reply.text, cut_off=reply.finish == "length") for row_id, reply in found.items()}
    return {row_id: text for row_id, text in texts.items() if text}


def twin_pairs(held: Held, answers: Mapping[str, str]) -> list[Comparison]:
    """Two pairs for each contrast with an answer: the same two replies, of which the other one is right."""
    pairs = []
    for contrast, harmful, twin in held:
        if contrast.id in answers:
            refusal, answer = contrast.revision, answers[contrast.id]
            pairs += [_pair(harmful, "harmful", refusal, answer), _pair(twin, "twin", answer, refusal)]
    return pairs


def _pair(prompt: Prompt, kind: str, right: str, wrong: str) -> Comparison:
    named = prompt.model_copy(update={"kind": kind})
    return Comparison(id=prompt.id, prompt=named, reply_a=right, reply_b=wrong, seed_a=0, seed_b=0)


def filed_under(pool: Pool, pairs: Sequence[Comparison]) -> list[Comparison]:
    return [pair.model_copy(update={"prompt": pair.prompt.model_copy(update={"pool": pool})}) for pair in pairs]


# --- Measuring ------------------------------------------------------------------------------------------------------


class Scratch:
    """A logbook in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.meter = folder, Meter()

    def log(self, name: str) -> RecordLog:
        return RecordLog(self._folder, name)


class Counted:
    """Counts the tokens that an engine in this process reads."""

    def __init__(self, engine: BatchEngine, num_tokens: Callable[[Any], int]) -> None:
        self.name, self._engine, self._num_tokens, self.num_tokens_read = engine.name, engine, num_tokens, 0

    def batches(self, asks: Sequence[AskT]) -> list[list[AskT]]:
        self.num_tokens_read += sum(map(self._num_tokens, asks))
        return self._engine.batches(asks)

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        return self._engine.generate(batch)

    def score(self, batch: Sequence[Query]) -> list[Answer]:
        return self._engine.score(batch)


def measure(
    engine: Engine,
    settings: LabellerConfig,
    constitution: Constitution,
    name: str,
    pairs: Sequence[Comparison],
    seed: int = 0,
    confidence: float = 0.95,
) -> Iterator[LabelAccuracy]:
    """One row for each way of filing the prompts and each wording. An error of the engine gives a row that says so."""
    if not LABELLERS[settings.kind].draws_by_pool:
        ways = {"not read": list(pairs)}
    elif (ways := {"told": list(pairs), "hidden": filed_under(HIDDEN, pairs)})["hidden"] == ways["told"]:
        del ways["hidden"]
    for pool, filed in ways.items():
        chosen: list[dict[str, float]] = []
        for wording, config in _worded(settings):
            head: dict[str, Any] = {"engine": chooser(engine), "labeller": described(settings), "pairs": name}
            say(
                f"{head['engine']}: {head['labeller']} on {name}, pool {pool}"
                + (f", wording {wording}" * bool(wording))
            )
            shown, turned = shuffled(filed)
            try:
                with TemporaryDirectory() as folder:
                    logbook, counted = Scratch(Path(folder)), _counted(engine)
                    labels = label(shown, counted, config, constitution, seed, logbook, PURPOSE)
            except CaiError as error:
                warn(str(error))
                yield LabelAccuracy(**head, pool=pool, wording=wording, error=str(error))
                continue
            right = right_by_pair(labels, turned)
            chosen.append(right)
            yield LabelAccuracy(
                **head,
                pool=pool,
                wording=wording,
                accuracy=share_of_right(list(right.values()), confidence),
                by_kind=right_by_kind(filed, right, confidence),
                num_unanswered=len(pairs) - len(right),
                order_flips=_order_flips(labels, confidence),
                wording_flips=_wording_flips(chosen, confidence),
                num_calls=logbook.meter.num_calls,
                num_tokens_read=_tokens_read(counted, logbook.meter),
                seconds=logbook.meter.seconds,
            )


def described(settings: LabellerConfig) -> str:
    """The labeller with the settings that differ from its own defaults: ``ab (num_examples=8)``."""
    usual = type(settings)()  # type: ignore[call-arg]
    names = [name for name in type(settings).model_fields if getattr(settings, name) != getattr(usual, name)]
    changed = ", ".join(f"{name}={getattr(settings, name)}" for name in names)
    return f"{settings.kind} ({changed})" if changed else settings.kind


def _worded(settings: LabellerConfig) -> list[tuple[str, LabellerConfig]]:
    if "wordings" not in type(settings).model_fields or "wordings" in settings.model_fields_set:
        return [("", settings)]
    return [(str(number), settings.model_copy(update={"wordings": [number]})) for number in ALL_WORDINGS]


def _counted(engine: Engine) -> Engine:
    num_tokens = getattr(engine, "num_tokens", None)
    return engine if isinstance(engine, StreamingEngine) or num_tokens is None else Counted(engine, num_tokens)


def _tokens_read(engine: Engine, meter: Meter) -> int:
    if isinstance(engine, Counted):
        return engine.num_tokens_read
    return sum(used.num_tokens_read for used in meter.usage.values())


def right_by_pair(labels: Sequence[Preference], turned: set[str]) -> dict[str, float]:
    """Pair id → 1 if the label is right, 0 if it is wrong, ½ for a tie."""
    right = {}
    for preference in labels:
        p = preference.probability_a
        if p is not None:
            p = 1 - p if preference.comparison.id in turned else p
            right[preference.comparison.id] = 0.5 if p == 0.5 else float(p > 0.5)
    return right


def right_by_kind(pairs: Sequence[Comparison], right: Mapping[str, float], confidence: float) -> dict[str, Estimate]:
    """Kind of pair → share of right labels."""
    kinds = sorted({pair.prompt.kind for pair in pairs})
    return {
        kind: share_of_right([right[p.id] for p in pairs if p.prompt.kind == kind and p.id in right], confidence)
        for kind in kinds
    }


def _order_flips(labels: Sequence[Preference], confidence: float) -> Estimate:
    flips = [j.flipped for preference in labels for j in preference.judgements if j.flipped is not None]
    return wilson(sum(flips), len(flips), confidence)


def _wording_flips(chosen: Sequence[Mapping[str, float]], confidence: float) -> Estimate:
    if len(chosen) < len(ALL_WORDINGS):
        return Estimate(value=None)
    ids = set(chosen[0]).intersection(*chosen[1:])
    return wilson(sum(len({row[pair_id] for row in chosen}) > 1 for pair_id in ids), len(ids), confidence)


# --- The table ------------------------------------------------------------------------------------------------------

HEAD = (
    "engine",
    "labeller",
    "pairs",
    "pool",
    "wording",
    "right",
    "order flips",
    "wording flips",
    "calls",
    "tokens",
    "seconds",
)


def markdown(rows: Sequence[LabelAccuracy]) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cells(row: LabelAccuracy) -> list[str]:
    head = [row.engine, row.labeller, row.pairs, row.pool, row.wording]
    if row.error:
        return [*head, f"failed: {row.error}".replace("|", "/"), "", "", "", "", ""]
    kinds = [f"{kind} {estimate.value:.0%}" for kind, estimate in row.by_kind.items() if estimate.value is not None]
    right = f"{_share(row.accuracy)}" + (f"; {', '.join(kinds)}" if len(kinds) > 1 else "")
    right += f"; {row.num_unanswered} not readable" if row.num_unanswered else ""
    flips = [_share(row.order_flips), _share(row.wording_flips)]
    return [*head, right, *flips, f"{row.num_calls:,}", f"{row.num_tokens_read:,}", f"{row.seconds:.0f}"]


def _share(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.value:.0%} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}] of {estimate.total}"
