"""The search: each attacker queries one model, round by round, until a request is broken or the budget is used up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.adversary.attackers import ATTACKERS
from pipeline.adversary.attackers.base import Move, Setting, Target
from pipeline.adversary.config import SearchConfig
from pipeline.adversary.records import Query
from pipeline.engines.base import Engine
from pipeline.engines.worklist import generate_all
from pipeline.evals.answering import request_for, whole_reply
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.judges.base import Judge, Judged
from pipeline.evals.judging import item_of
from pipeline.records import Case, Prompt, Verdict

if TYPE_CHECKING:
    from pipeline.core.stage import Context


@dataclass(frozen=True, kw_only=True)
class Found:
    """All queries of one attacker to one model, and how many its own model failed to write."""

    model: str
    attacker: str
    queries: list[Query]
    num_unwritten: int


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What answers and judges the queries to one model. Replies are sampled as in the evaluation."""

    engine: Engine
    model: str
    judge: Judge
    evaluation: EvaluateConfig
    context: Context

    def ask(self, label: str, cases: Sequence[Case]) -> list[Verdict]:
        """The judged replies to these cases, in their order."""
        requests = [request_for(case, self.evaluation, self.context.seed) for case in cases]
        replies = generate_all(self.engine, label, requests, self.context, "replies")
        items = {case.id: item_of(self.model, case, whole_reply(case, replies[case.id])) for case in cases}
        # No reply is not an empty reply: it says nothing about the model.
        silent = {case.id: reason for case in cases if (reason := replies[case.id].why_unanswered)}
        judged = self.judge.judge([items[case.id] for case in cases if case.id not in silent])
        judged |= {items[row].id: Judged(outcome="unjudged", evidence=reason) for row, reason in silent.items()}
        return [
            Verdict(
                case=case,
                model=self.model,
                reply=items[case.id].reply,
                num_tokens=replies[case.id].num_tokens,
                seed=request.seed,
                outcome=judged[items[case.id].id].outcome,
                evidence=judged[items[case.id].id].evidence,
                judge=self.judge.who,
                replied=case.id not in silent,
            )
            for case, request in zip(cases, requests, strict=True)
        ]


def search(bench: Bench, attacker: str, prompts: Sequence[Prompt], config: SearchConfig, families: list[str]) -> Found:
    """Attack one model with one attacker. Query i to all requests that are not broken yet is asked in one worklist.

    Everything that is drawn follows from the seed and from earlier answers, so a killed search takes the answers from
    the logs and goes on where it was.
    """
    setting = Setting(families=families, seed=bench.context.seed, who=bench.model, context=bench.context)
    mind = ATTACKERS[attacker](config.attacker(attacker), setting)
    targets = [Target(prompt) for prompt in prompts]
    unbroken = targets
    for number in range(1, config.budget_of(attacker) + 1):
        moves = mind.moves(number, unbroken)
        asked = [target for target in unbroken if target.prompt.id in moves]
        cases = [_case(bench.model, attacker, number, target.prompt, moves[target.prompt.id]) for target in asked]
        verdicts = bench.ask(f"{attacker}, query {number} to {bench.model}", cases)
        for target, verdict in zip(asked, verdicts, strict=True):
            move = moves[target.prompt.id]
            query = Query(attacker=attacker, number=number, steps=list(move.steps), seed=move.seed, verdict=verdict)
            target.tried.append(query)
        mind.learn([target.tried[-1] for target in asked])
        over = {target.prompt.id for target in asked if target.tried[-1].succeeded}
        if mind.gives_up:
            over |= {target.prompt.id for target in unbroken if target.prompt.id not in moves}
        unbroken = [target for target in unbroken if target.prompt.id not in over]
        if not unbroken:
            break
    queries = [query for target in targets for query in target.tried]
    return Found(model=bench.model, attacker=attacker, queries=queries, num_unwritten=mind.num_unwritten)


def _case(model: str, attacker: str, number: int, prompt: Prompt, move: Move) -> Case:
    return Case(
        id=f"{model}|{attacker}|{prompt.id}|{number}",
        suites=["attack"],
        prompt=prompt,
        messages=move.messages,
        attack=" + ".join(move.steps),
    )
