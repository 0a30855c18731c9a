"""Requests that the critic writes to put each principle to the test, where it can tell harmful from harmless ones."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import NDArray

from pipeline.constitution.schema import POOL_TAGS, Constitution, Principle
from pipeline.core.stage import Cost
from pipeline.core.text import about_tokens
from pipeline.engines.roles import feedback_engine
from pipeline.explain.base import Material
from pipeline.explain.probes import Probe, probe_id, relevance
from pipeline.records import Pool, Prompt, WrittenPrompt
from pipeline.writing.asks import WriteAsk, probe_asks, shown
from pipeline.writing.config import WriteConfig
from pipeline.writing.judgement import POOR, Judge, Known
from pipeline.writing.writer import WRITTEN, Writer

TEMPLATE = "probes-1"  # in the cache key; raise it if what is asked of the writer or the judge changes
CONFIG = WriteConfig()
"""The settings of ``write`` by default, also where the run writes no training prompts."""
FIELD = "preferences.engine"
"""It gives the critic that writes, in messages."""
PROBED: tuple[Pool, ...] = ("red_team", "ordinary")
NUM_NEAR = 2 * CONFIG.num_few_shot
"""The examples of a call are drawn from so many training prompts, the most relevant ones."""


def write_probes(material: Material, number: int) -> list[Probe]:
    """At most ``number`` requests for each principle that is not turned off; none if the critic can't judge requests.

    They are near to no prompt of the run and to no request of the constitution, so they are held out. A request is kept
    if the critic judges it harmful for a principle about harm, and harmless for another one.
    """
    context, prompts = material.context, material.prompts
    known = known_prompts(prompts)
    if not all(known.to_calibrate):
        material.notes.append(
            "adherence: the critic writes no requests, because there are no training prompts of both classes to set "
            "the threshold of its judgement on; the requests are those of the evaluation."
        )
        return []
    critic = feedback_engine(context)
    judge = Judge(critic, known, context, FIELD)
    if judge.threshold.share_right < POOR:
        material.notes.append(
            f"adherence: {critic.name} judges only {judge.threshold.share_right:.0%} of known prompts right, so it "
            "writes no requests; they are those of the evaluation."
        )
        return []
    writer = Writer(critic, judge, prompts, context.constitution.requests(), context)
    asked = asks(context.constitution, prompts, number, context.seed)
    rows = [row for pool, mine in asked.items() for row in writer.write(pool, mine, needs_any=False)]
    return [_probe(row) for row in rows]


def known_prompts(prompts: Sequence[Prompt]) -> Known:
    """Those whose class a person gave."""
    return Known.of([prompt for prompt in prompts if not prompt.id.startswith(WRITTEN)], CONFIG)


def asks(constitution: Constitution, prompts: Sequence[Prompt], number: int, seed: int) -> dict[Pool, list[WriteAsk]]:
    """Pool → the calls to the critic; harmful requests for a principle about harm, ordinary ones for another."""
    found: dict[Pool, list[WriteAsk]] = {}
    for pool in PROBED:
        rules = [rule for rule in constitution.principles if rule.weight > 0 and pool_of(rule) == pool]
        requests = sorted({prompt.request for prompt in shown(prompts) if prompt.pool == pool})
        if rules and requests:
            found[pool] = [
                ask
                for rule, scores in zip(rules, relevance(rules, requests), strict=True)
                for ask in probe_asks(rule, pool, _nearest(scores, requests), number, CONFIG, seed)
            ]
    return found


def pool_of(rule: Principle) -> Pool:
    return "red_team" if POOL_TAGS["red_team"] & set(rule.tags) else "ordinary"


def _nearest(scores: NDArray, requests: Sequence[str]) -> list[str]:
    """The requests that share most words with a principle."""
    ranked = sorted(zip(-scores.round(9), requests, strict=True))
    return [request for _, request in ranked[:NUM_NEAR]]


def _probe(row: WrittenPrompt) -> Probe:
    return Probe(
        principle_id=row.principle_id,
        case_id=probe_id(row.prompt),
        request=row.prompt,
        pool=row.pool,
        source="written",
    )


def cost(constitution: Constitution, prompts: Sequence[Prompt], number: int, seed: int) -> Cost:
    """At most what the critic reads and writes."""
    calls = [ask for mine in asks(constitution, prompts, number, seed).values() for ask in mine]
    known = known_prompts(prompts)
    if not all(known.to_calibrate):
        return Cost()
    num_wanted = sum(ask.num_wanted for ask in calls)
    num_judged = num_wanted + sum(map(len, known.to_calibrate))
    shown_first = about_tokens(*(turn["content"] for turn in known.query("", "").messages))
    read = sum(about_tokens(*(turn["content"] for turn in ask.request.messages)) for ask in calls)
    return Cost(
        num_calls=len(calls) + num_judged,
        num_tokens_written=num_wanted * CONFIG.max_prompt_tokens,
        num_tokens_read=read + num_judged * (shown_first + CONFIG.max_prompt_tokens),
        num_tokens_repeated=num_judged * shown_first,
    )


def cost_of_replies(rules: Sequence[Principle], number: int, models: Sequence[str], max_reply_tokens: int) -> Cost:
    """At most what the models read and write."""
    num_replies = len(rules) * number * len(models)
    return Cost(
        num_calls=num_replies,
        num_tokens_written=num_replies * max_reply_tokens,
        num_tokens_read=num_replies * CONFIG.max_prompt_tokens,
    )
