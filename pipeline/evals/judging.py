"""Judge every reply, and note the requests that have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.core import distributed
from pipeline.core.counts import warn_of_many, warn_of_share
from pipeline.core.log import warn
from pipeline.core.stage import Context
from pipeline.evals.accuracy import as_items, judge_card, judged_replies, labelled_replies
from pipeline.evals.answering import Answered, whole_reply
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.counted import Counted
from pipeline.evals.judges.base import JUDGES, PAIR_JUDGES, AnswerLog, Item, Judged, PairJudge
from pipeline.evals.judges.sharing import is_shared
from pipeline.evals.results import JudgeCard
from pipeline.records import Case, Verdict


def judge_replies(
    config: EvaluateConfig,
    context: Context,
    cases: Sequence[Case],
    answered: dict[str, Answered],
    notes: list[str],
    counted: Counted,
) -> tuple[list[Verdict], JudgeCard]:
    """Judge every reply, and measure the judge on labelled replies, whose outcomes ``counted`` gets."""
    log = AnswerLog(logbook=context, name="judge", label="judge")
    judge = JUDGES[config.judge.kind].open(config.judge, context, log)
    items = {
        (model, case.id): item_of(model, case, whole_reply(case, said.replies[case.id]))
        for model, said in answered.items()
        for case in cases
    }
    # No reply is not an empty reply: it says nothing about the model, so no rate may count it.
    missing = {
        items[model, case.id].id: Judged(outcome="unjudged", evidence=reason)
        for model, said in answered.items()
        for case in cases
        if (reason := said.replies[case.id].why_unanswered)
    }
    _note_missing(missing, len(items), notes)
    labelled = labelled_replies(config.num_labelled_replies)
    given = [item for item in items.values() if item.id not in missing]
    judged = missing | judge.judge([*given, *as_items(labelled)])
    warn_of_many(  # no error, even for all: the measures without a judge are left
        sum(judged[item.id].outcome == "unjudged" for item in given),
        len(given),
        f"replies could not be judged by {judge.who}, and no rate counts them",
        "use another judge (evaluate.judge)",
    )
    verdicts = [
        _verdict(model, case, said, items[model, case.id], judged, judge.who, items[model, case.id].id not in missing)
        for model, said in answered.items()
        for case in cases
    ]
    num_unjudged = sum(verdict.outcome == "unjudged" for verdict in verdicts)
    shared = is_shared(config.judge, config, [context.engine, context.critic], context.model)
    counted.judged[judge.who] = judged_replies(labelled, judged)
    card = judge_card(judge, labelled, judged, num_unjudged, shared, config.confidence)
    if not card.beats_one_verdict:
        _note_useless(card, notes)
    return verdicts, card


def _verdict(
    model: str, case: Case, said: Answered, item: Item, judged: Mapping[str, Judged], who: str, replied: bool
) -> Verdict:
    return Verdict(
        case=case,
        model=model,
        reply=item.reply,
        num_tokens=said.replies[case.id].num_tokens,
        seed=said.seeds[case.id],
        outcome=judged[item.id].outcome,
        evidence=judged[item.id].evidence,
        judge=who,
        replied=replied,
        reference_logprob=said.reference_logprobs.get(case.id),
    )


def _note_useless(card: JudgeCard, notes: list[str]) -> None:
    """Say of a judge that is no better than one verdict for all that its rates say nothing."""
    sentence = (
        f"the judge {card.name} is right on {card.accuracy} of the labelled replies, which may be no more than one "
        "verdict for all would be: its rates say nothing, and no guideline on them is decided."
    )
    notes.append(sentence)
    if distributed.is_main():
        warn(f"{sentence} Use another evaluate.judge, or a larger evaluate.num_labelled_replies.")


def _note_missing(missing: Mapping[str, Judged], num_requests: int, notes: list[str]) -> None:
    """Add a note for the report, and warn above 5 %. Raises StageError if no request was answered."""
    for reason, number in Counter(judged.evidence for judged in missing.values()).items():
        notes.append(f"{number} of {num_requests} requests have no reply, and no rate counts them: {reason}.")
    reasons = " or ".join(sorted({judged.evidence for judged in missing.values()}))
    what = f"requests of the evaluation have no reply, and no rate counts them ({reasons})"
    warn_of_share(len(missing), num_requests, what, "lower evaluate.max_reply_tokens, or leave these requests out")


def item_of(model: str, case: Case, reply: str) -> Item:
    """What a judge reads of a reply."""
    harmful = case.prompt.pool == "red_team"
    return Item(id=f"{model}|{case.id}", request=case.prompt.request, reply=reply, harmful=harmful)


def open_pair_judge(config: EvaluateConfig, context: Context, log: str, label: str) -> PairJudge:
    """The judge of ``evaluate.pair_judge``; its answers are kept in ``log``, and ``label`` is in the progress lines."""
    answers = AnswerLog(logbook=context, name=log, label=label)
    return PAIR_JUDGES[config.pair_judge.kind].open(config.pair_judge, context, answers)
