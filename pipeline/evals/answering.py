"""Put the cases to a model: its replies, how likely it finds reference answers, and the public bias sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.core import distributed
from pipeline.core.cache import RecordLog, cache_key
from pipeline.core.log import Meter
from pipeline.data.public_sets import ChoiceRow, Read, SentencePair
from pipeline.engines.base import (
    ChoiceQuery,
    Completion,
    Engine,
    Logbook,
    ReplyQuery,
    Request,
    generate_all,
    score_all,
)
from pipeline.evals.bias import bbq_score, crows_score
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.results import Estimate
from pipeline.records import Case, Message, derive_seed

Identity = dict[str, Any]


@dataclass
class KeptAnswers:
    """A logbook whose logs outlive the stage."""

    folder: Path
    meter: Meter

    def log(self, name: str) -> RecordLog:
        return RecordLog(self.folder, name, distributed.rank())


@contextmanager
def kept_answers(cache: Path, asked: Identity, meter: Meter) -> Iterator[Logbook]:
    """Logs that outlive the stage: the base and the SFT model of a sweep are put to their cases once.

    One run at a time writes to them; a second that asks the same waits, and finds the answers there.
    """
    folder = cache / f"answers-{cache_key(asked)[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock") if distributed.is_main() else nullcontext():
        distributed.barrier()
        yield KeptAnswers(folder, meter)
        distributed.barrier()


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What one model said to every case."""

    replies: dict[str, Completion]
    seeds: dict[str, int]
    reference_logprobs: dict[str, float]
    bias: dict[str, Estimate]


def answer_all(
    engine: Engine,
    cases: Sequence[Case],
    sets: Sequence[Read],
    cfg: EvaluateConfig,
    seed: int,
    logbook: Logbook,
) -> Answered:
    requests = [_request(case, cfg, seed) for case in cases]
    replies = generate_all(engine, f"replies of {engine.name}", requests, logbook, "replies")
    return Answered(
        replies=replies,
        seeds={request.id: request.seed for request in requests},
        reference_logprobs=_reference_logprobs(engine, cases, logbook),
        bias={name: number for rows in sets for name, number in _public_bias(engine, rows, cfg, logbook).items()},
    )


def _request(case: Case, cfg: EvaluateConfig, seed: int) -> Request:
    begun = case.messages[-1]["role"] == "assistant"
    return Request(
        id=case.id,
        messages=case.messages[:-1] if begun else case.messages,
        seed=derive_seed(seed, case.id, "evaluate"),
        max_new_tokens=cfg.max_reply_tokens,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        prefix=case.messages[-1]["content"] if begun else "",
    )


def whole_reply(case: Case, completion: Completion) -> str:
    """The reply with the beginning that an attack has put into the model's mouth."""
    if case.messages[-1]["role"] != "assistant":
        return completion.text
    return f"{case.messages[-1]['content']} {completion.text}".strip() if completion.text else ""


def _reference_logprobs(engine: Engine, cases: Sequence[Case], logbook: Logbook) -> dict[str, float]:
    queries = [ReplyQuery(id=case.id, messages=case.messages, reply=case.reference) for case in cases if case.reference]
    if not queries:
        return {}
    answers = score_all(engine, f"references, {engine.name}", queries, logbook, "references")
    return {row_id: answer.logprobs[0] for row_id, answer in answers.items()}


def _public_bias(engine: Engine, read: Read, cfg: EvaluateConfig, logbook: Logbook) -> dict[str, Estimate]:
    label = f"bias, {engine.name}"
    if isinstance(read.rows[0], ChoiceRow):
        answers = score_all(engine, label, [bbq_question(row) for row in read.rows], logbook, "bias")
        picked = {row_id: _likeliest(answer.logprobs) for row_id, answer in answers.items()}
        score = bbq_score(read.rows, picked, cfg.confidence)
        return {
            "bbq_accuracy": score.accuracy,
            "bbq_bias_ambiguous": score.bias_ambiguous,
            "bbq_bias_disambiguated": score.bias_disambiguated,
        }
    pairs = [row for row in read.rows if isinstance(row, SentencePair)]
    queries = [
        ReplyQuery(id=f"{row.id}/{side}", messages=[Message(role="user", content="Write a sentence.")], reply=text)
        for row in pairs
        for side, text in (("stereotyped", row.stereotyped), ("other", row.other))
    ]
    answers = score_all(engine, label, queries, logbook, "bias")
    stereotyped, other = (
        {row.id: answers[f"{row.id}/{side}"].logprobs[0] for row in pairs} for side in ("stereotyped", "other")
    )
    return {"crows_stereotyped": crows_score(pairs, stereotyped, other, cfg.confidence)}


def bbq_question(row: ChoiceRow) -> ChoiceQuery:
    options = "\n".join(f"({letter}) {answer}" for letter, answer in zip("ABC", row.answers, strict=True))
    text = f"{row.context}\n\n{row.question}\n{options}"
    return ChoiceQuery(
        id=row.id, messages=[Message(role="user", content=text)], opening="Answer: (", choices=("A", "B", "C")
    )


def _likeliest(logprobs: Sequence[float]) -> int:
    return max(range(len(logprobs)), key=lambda index: logprobs[index])
