"""The loops that run an engine over many asks. Every result is written to a log, so a killed run loses little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from pipeline.core import distributed
from pipeline.core.cache import RecordLog
from pipeline.core.errors import StageError
from pipeline.core.log import Bar, Meter, Usage
from pipeline.core.memory import trim
from pipeline.engines.base import (
    Answer,
    ChoiceQuery,
    Completion,
    Engine,
    Failure,
    Query,
    ReplyQuery,
    Request,
    Scored,
    StreamingEngine,
)

SHOWN_REASONS = 4
ResultT = TypeVar("ResultT", Completion, Answer, Scored)
ReplyT = TypeVar("ReplyT", Completion, Answer)


class Logbook(Protocol):
    """Logs answers as they arrive and counts calls. A stage's ``Context`` implements it."""

    meter: Meter

    def log(self, name: str) -> RecordLog: ...


class Worklist(Generic[ResultT]):
    """Runs batches of asks and logs every batch, so a killed run loses at most one.

    Args:
        independent: a result does not depend on the other rows of its batch.
    """

    def __init__(self, log: RecordLog, parse: Callable[..., ResultT], meter: Meter, independent: bool = False) -> None:
        self._log: RecordLog = log
        self._parse: Callable[..., ResultT] = parse
        self._meter, self._independent = meter, independent

    def run(
        self,
        label: str,
        batches: Sequence[Sequence[Any]],
        work: Callable[[Sequence[Any]], list[ResultT]],
    ) -> dict[str, ResultT]:
        """Return ask id → result. Of n ranks, each one processes every n-th batch; all ranks return all results.

        A batch that is only partly in the log runs again as a whole, because the other rows of a batch can change the
        last bits of a log-probability. Rows that are already in the log are kept. Independent rows run only once.
        """
        ids = [ask.id for batch in batches for ask in batch]
        assert len(ids) == len(set(ids)), "asks must have distinct ids"
        mine = list(batches)[distributed.rank() :: distributed.world_size()]
        with Bar(label, sum(len(batch) for batch in mine), quiet=not distributed.is_main()) as bar:
            for batch in mine:
                missing = [ask for ask in batch if ask.id not in self._log]
                if missing:
                    with self._meter.running():
                        results = work(missing if self._independent else batch)
                    self._log.append(vars(result) for result in results)
                    trim()
                bar.advance(len(batch), cached=not missing)
        _gather(self._log)
        found = {row_id: self._parse(**self._log[row_id]) for row_id in ids}
        _count(self._meter, found.values())
        return found


def stream(
    engine: StreamingEngine, label: str, asks: Sequence[Any], log: RecordLog, parse: type[ReplyT], meter: Meter
) -> dict[str, ReplyT]:
    """Return ask id → result. Each result is logged as it comes; a logged failure is asked again.

    Raises:
        StageError: a larger share than ``engine.max_failed_share`` failed. The other results are kept.
    """
    ids = [ask.id for ask in asks]
    assert len(ids) == len(set(ids)), "asks must have distinct ids"
    mine = _share_of_rank(engine, asks)
    missing = [ask for ask in mine if ask.id not in log]
    with Bar(label, len(mine), quiet=not distributed.is_main()) as bar, meter.running():
        bar.advance(len(mine) - len(missing), cached=True)
        for result in engine.answers(missing) if missing else ():
            log.append([vars(result)])
            bar.advance()
    _gather(log)
    failures = {row_id: str(log.failures[row_id]["reason"]) for row_id in ids if row_id in log.failures}
    _judge_failures(failures, len(ids), engine)
    found = {row_id: parse.unanswered(row_id) if row_id in failures else parse(**log[row_id]) for row_id in ids}
    _count(meter, found.values(), engine.num_votes)
    count_usage(meter, engine, found.values())
    return found


def count_usage(meter: Meter, engine: StreamingEngine, results: Iterable[Completion | Answer]) -> None:
    """Add what a server counted to ``meter.usage``."""
    used = meter.usage.setdefault(engine.name, Usage(money=0.0 if engine.price else None))
    for result in results:
        used.num_requests += _num_requests(result, engine.num_votes)
        used.num_tokens_read += result.num_prompt_tokens
        used.num_tokens_written += result.num_tokens
    if engine.price is not None:
        used.money = engine.price.of(used.num_tokens_read, used.num_tokens_written)


def _share_of_rank(engine: StreamingEngine, asks: Sequence[Any]) -> list[Any]:
    """Every n-th ask. It must not depend on the log, which other ranks are writing."""
    if engine.asks_from_one_rank:
        return list(asks) if distributed.is_main() else []
    return list(asks)[distributed.rank() :: distributed.world_size()]


def _gather(log: RecordLog) -> None:
    """Wait for all ranks, and read what they have logged."""
    distributed.barrier()
    if distributed.world_size() > 1:
        log.reload()


def _count(meter: Meter, results: Iterable[Completion | Answer | Scored], num_votes: int = 0) -> None:
    """Count calls and what they wrote: replies, and answers that were voted on."""
    for result in results:
        meter.num_calls += _num_requests(result, num_votes)
        if isinstance(result, Completion) or (isinstance(result, Answer) and num_votes):
            meter.num_tokens_written += result.num_tokens


def _num_requests(result: Completion | Answer | Scored, num_votes: int) -> int:
    return num_votes if num_votes and isinstance(result, Answer) else 1


def _judge_failures(failures: Mapping[str, str], num_asked: int, engine: StreamingEngine) -> None:
    if len(failures) > engine.max_failed_share * num_asked:
        raise StageError(
            f"{len(failures):,} of {num_asked:,} requests to {engine.name} failed ({_by_reason(failures.values())}); "
            "the others are kept: run the same command again, which asks only these."
        )


def _by_reason(reasons: Any) -> str:
    """``9 × no answer within 120 s, 3 × HTTP 500``: the most frequent reasons first."""
    counted = Counter(reasons).most_common()
    rest = sum(number for _, number in counted[SHOWN_REASONS:])
    shown = [f"{number:,} × {reason}" for reason, number in counted[:SHOWN_REASONS]]
    return ", ".join([*shown, *([f"{rest:,} × other reasons"] if rest else [])])


def generate_all(
    engine: Engine, label: str, requests: Sequence[Request], logbook: Logbook, log: str
) -> dict[str, Completion]:
    """Return request id → completion. Finished ones are appended to the log named ``log``."""
    if not requests:
        return {}
    if isinstance(engine, StreamingEngine):
        return stream(engine, label, requests, logbook.log(log), Completion, logbook.meter)
    work = Worklist(logbook.log(log), Completion, logbook.meter, _is_independent(engine))
    return work.run(label, engine.batches(requests), engine.generate)


def score_all(engine: Engine, label: str, queries: Sequence[Any], logbook: Logbook, log: str) -> dict[str, Answer]:
    """Return query id → answer. Choice queries and reply queries are in separate batches."""
    if not queries:
        return {}
    if isinstance(engine, StreamingEngine):
        return stream(engine, label, queries, logbook.log(log), Answer, logbook.meter)
    choices = engine.batches([query for query in queries if isinstance(query, ChoiceQuery)])
    replies = engine.batches([query for query in queries if isinstance(query, ReplyQuery)])
    work = Worklist(logbook.log(log), Answer, logbook.meter, _is_independent(engine))
    return work.run(label, [*choices, *replies], engine.score)


def score_now(engine: Engine, queries: Sequence[Query], meter: Meter) -> dict[str, Answer]:
    """Return query id → answer, without a log: for rewards of replies that no later run will ask about again.

    Raises:
        StageError: a larger share than ``max_failed_share`` of a streaming engine failed.
    """
    if not isinstance(engine, StreamingEngine):
        batches: Sequence[Sequence[Any]] = engine.batches(list(queries))
        scored = {answer.id: answer for batch in batches for answer in engine.score(batch)}
        _count(meter, scored.values())
        return scored
    found, failures = dict[str, Answer](), dict[str, str]()
    for result in engine.answers(queries):
        if isinstance(result, Failure):
            failures[result.id], found[result.id] = result.reason, Answer.unanswered(result.id)
        elif isinstance(result, Answer):
            found[result.id] = result
    _judge_failures(failures, len(queries), engine)
    _count(meter, found.values(), engine.num_votes)
    count_usage(meter, engine, found.values())
    return found


def _is_independent(engine: Engine) -> bool:
    return bool(getattr(engine, "rows_are_independent", False))
