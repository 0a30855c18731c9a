"""Put the cases to a model: its replies, how likely it finds reference answers, and the suites' questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.core import distributed
from pipeline.core.cache import RecordLog, cache_key
from pipeline.core.log import Meter
from pipeline.engines.base import Completion, Engine, Logbook, ReplyQuery, Request, generate_all, score_all
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.results import Estimate
from pipeline.evals.suites.base import Questions
from pipeline.records import Case, derive_seed

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
    """What one model said to every case, and what its answers to the suites' questions come to."""

    replies: dict[str, Completion]
    seeds: dict[str, int]
    reference_logprobs: dict[str, float]
    measured: dict[str, Estimate]


def answer_all(
    engine: Engine,
    cases: Sequence[Case],
    questions: Mapping[str, Questions],
    config: EvaluateConfig,
    seed: int,
    logbook: Logbook,
) -> Answered:
    requests = [_request(case, config, seed) for case in cases]
    replies = generate_all(engine, f"replies of {engine.name}", requests, logbook, "replies")
    reference_logprobs = _reference_logprobs(engine, cases, logbook)
    measured: dict[str, Estimate] = {}
    for suite, asked in questions.items():
        answers = score_all(engine, f"{suite}, {engine.name}", asked.queries, logbook, suite)
        measured |= asked.count(answers, config.confidence)
    return Answered(
        replies=replies,
        seeds={request.id: request.seed for request in requests},
        reference_logprobs=reference_logprobs,
        measured=measured,
    )


def num_calls(cases: Sequence[Case], questions: Mapping[str, Questions]) -> int:
    """How often ``answer_all`` asks a model."""
    num_references = sum(case.reference is not None for case in cases)
    return len(cases) + num_references + sum(len(asked.queries) for asked in questions.values())


def _request(case: Case, config: EvaluateConfig, seed: int) -> Request:
    begun = case.messages[-1]["role"] == "assistant"
    return Request(
        id=case.id,
        messages=case.messages[:-1] if begun else case.messages,
        seed=derive_seed(seed, case.id, "evaluate"),
        max_new_tokens=config.max_reply_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        prefix=case.messages[-1]["content"] if begun else "",
    )


def whole_reply(case: Case, completion: Completion) -> str:
    """The reply with the beginning that an attack has put into the model's mouth."""
    if case.messages[-1]["role"] != "assistant":
        return completion.text
    return f"{case.messages[-1]['content']} {completion.text}".strip() if completion.text else ""


def _reference_logprobs(engine: Engine, cases: Sequence[Case], logbook: Logbook) -> dict[str, float]:
    queries = [
        ReplyQuery(id=case.id, messages=case.messages, reply=case.reference)
        for case in cases
        if case.reference is not None
    ]
    answers = score_all(engine, f"references, {engine.name}", queries, logbook, "references")
    return {row_id: answer.logprobs[0] for row_id, answer in answers.items()}
