"""Ask each model: its replies to the cases, log-probabilities of reference answers, and the suites' questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import distributed
from pipeline.core.cache import RecordLog, cache_key
from pipeline.core.locks import locked
from pipeline.core.log import Meter
from pipeline.core.stage import Context
from pipeline.engines.base import Completion, Engine, ReplyQuery, Request
from pipeline.engines.models import model_identity
from pipeline.engines.roles import policy_engine
from pipeline.engines.worklist import Logbook, generate_all, score_all
from pipeline.evals.checkpoints import checkpoints
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.results import Estimate
from pipeline.evals.suites.base import Questions
from pipeline.records import Case, Message, derive_seed

VERSION = 7  # of the stage evaluate and of kept answers
Identity = dict[str, Any]


@dataclass
class KeptAnswers:
    """A logbook whose logs are kept after the stage."""

    folder: Path
    meter: Meter

    def log(self, name: str) -> RecordLog:
        return RecordLog(self.folder, name, distributed.rank())


@contextmanager
def kept_answers(cache: Path, asked: Identity, meter: Meter, several_machines: bool) -> Iterator[Logbook]:
    """Logs that are kept after the stage, so that a sweep asks its base model and its SFT model only once.

    A lock lets one run at a time write. A second run with the same ``asked`` waits, then reuses the answers.
    """
    folder = cache / f"answers-{cache_key(asked)[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "answers", several_machines) if distributed.is_main() else nullcontext():
        distributed.barrier()
        yield KeptAnswers(folder, meter)
        distributed.barrier()


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The answers of one model: case id → reply, seed and mean log-probability; measure → estimate."""

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
    """Generate the replies and score the references and questions; answers in the logbook are reused."""
    requests = [request_for(case, config, seed) for case in cases]
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


def answers_of_all(
    config: EvaluateConfig, context: Context, cases: Sequence[Case], questions: Mapping[str, Questions]
) -> dict[str, Answered]:
    """The answers of each model. One model at a time is in memory."""
    answered: dict[str, Answered] = {}
    for name, path in checkpoints(config, context).items():
        asked = _asked(path, cases, questions, config, context)
        with kept_answers(context.out.parent, asked, context.meter, context.launch.num_machines > 1) as kept:
            engine = policy_engine(context, path, name)
            answered[name] = answer_all(engine, cases, questions, config, context.seed, kept)
            del engine
    return answered


def _asked(
    path: str, cases: Sequence[Case], questions: Mapping[str, Questions], config: EvaluateConfig, context: Context
) -> Identity:
    """Everything that decides a model's answers. Equal identities share cached answers."""
    return {
        "version": VERSION,
        "model": model_identity(path, context.model.revision if path == context.model.path else None),
        "precision": context.model.key_of("precision"),
        "engine": context.policy_engine.key(),
        "seed": context.seed,
        "sampling": [config.max_reply_tokens, config.temperature, config.top_p],
        "cases": [case.model_dump(mode="json") for case in cases],
        "questions": [repr(query) for asked in questions.values() for query in asked.queries],
    }


def num_calls(cases: Sequence[Case], questions: Mapping[str, Questions]) -> int:
    """The number of calls that ``answer_all`` makes to the engine."""
    num_references = sum(case.reference is not None for case in cases)
    return len(cases) + num_references + sum(len(asked.queries) for asked in questions.values())


def asked_turns(case: Case) -> list[Message]:
    """The turns up to the reply, without the beginning of a reply that an attack prefills."""
    return case.messages[:-1] if case.messages[-1]["role"] == "assistant" else case.messages


def request_for(case: Case, config: EvaluateConfig, seed: int) -> Request:
    """The request for a model's reply to a case."""
    begun = case.messages[-1]["role"] == "assistant"
    return Request(
        id=case.id,
        messages=asked_turns(case),
        seed=derive_seed(seed, case.id, "evaluate"),
        max_new_tokens=config.max_reply_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        prefix=case.messages[-1]["content"] if begun else "",
    )


def whole_reply(case: Case, completion: Completion) -> str:
    """The reply, after the beginning that an attack prefilled; empty if the model wrote nothing."""
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
    return {row_id: answer.logprobs[0] for row_id, answer in answers.items() if answer.is_readable}
