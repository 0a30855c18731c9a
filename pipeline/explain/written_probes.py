"""Requests that the critic writes to put each principle to the test, where it can tell harmful from harmless ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from pipeline.constitution.schema import Constitution, Principle
from pipeline.core.errors import NothingUsableError
from pipeline.core.stage import Cost
from pipeline.core.text import about_tokens
from pipeline.engines.base import Engine, EngineConfig
from pipeline.engines.roles import feedback_engine
from pipeline.engines.votes import cost_of_choices
from pipeline.explain.base import Material
from pipeline.explain.probes import Probe, probe_id, relevance
from pipeline.explain.tested import NUM_KNOWN, NUM_RIVALS, PROBED, find_tested, pool_of
from pipeline.records import Pool, Prompt, WrittenPrompt, derive_seed
from pipeline.writing import asks as wordings
from pipeline.writing.asks import WriteAsk, probe_asks, shown
from pipeline.writing.config import WriteConfig
from pipeline.writing.judgement import POOR, Judge, Known
from pipeline.writing.writer import WRITTEN, Writer

TEMPLATE = "probes-2"  # in the cache key; raise it if what is asked of the writer or the judge changes
CONFIG = WriteConfig()
"""The settings of ``write`` by default, also where the run writes no training prompts."""
REMEDY = "set explain.adherence.num_written=0 to write none"
NUM_NEAR = 2 * CONFIG.num_few_shot
"""The examples of a call are drawn from so many training prompts, the most relevant ones."""
MIN_KNOWN = 20
"""A threshold that is set on fewer known prompts of a class says little about the critic."""


def reads() -> list[Any]:
    """What decides the requests beside the settings of a run, for the cache key."""
    return [TEMPLATE, wordings.TEMPLATE, CONFIG.key()]


def write_probes(material: Material, number: int) -> list[Probe]:
    """At most ``number`` requests for each principle that is not turned off; none if the critic can't judge requests.

    They are near to no prompt of the run and to no request of the constitution, so they are held out. A request is kept
    if the critic judges it harmful for a principle about harm, and harmless for another one, and finds no other
    principle more fitting.
    """
    context, prompts = material.context, material.prompts
    known = known_prompts(prompts)
    if min(map(len, known.to_calibrate)) < MIN_KNOWN:
        return _none(material, f"there are not {MIN_KNOWN} known prompts of each class to set its threshold on")
    critic = feedback_engine(context)
    try:
        judge = Judge(critic, known, context, REMEDY)
    except NothingUsableError:
        return _none(material, f"{critic.name} gives no answer that can be read about known prompts of a class")
    if judge.threshold.share_right < POOR:
        return _none(material, f"{critic.name} judges only {judge.threshold.share_right:.0%} of known prompts right")
    writer = Writer(critic, judge, prompts, context.constitution.requests(), context)
    asked = asks(context.constitution, prompts, number, context.seed)
    rows = [row for pool, mine in asked.items() for row in writer.write(pool, mine, needs_any=False)]
    return [
        Probe(
            principle_id=row.principle_id,
            case_id=probe_id(row.prompt),
            request=row.prompt,
            pool=row.pool,
            source="written",
        )
        for row in _that_test_their_principle(rows, material, critic)
    ]


def _that_test_their_principle(
    rows: Sequence[WrittenPrompt], material: Material, critic: Engine
) -> Sequence[WrittenPrompt]:
    context = material.context
    tested = find_tested(rows, context.constitution, material.prompts, critic, context, context.seed)
    named = f"it finds the principle of {tested.known.count} of {tested.known.total} known prompts"
    if not tested.knows:
        material.notes.append(
            f"adherence: nothing shows that the written requests test their principle; {critic.name} can't tell "
            f"({named}, guessing would find {tested.chance:.0%})."
        )
        return rows
    left = [row for row in rows if row.id in tested.fitting]
    if len(left) < len(rows):
        known = f" ({named})" if tested.known.total else ""
        material.notes.append(
            f"adherence: {len(rows) - len(left)} of {len(rows)} written requests are left out, because {critic.name} "
            f"finds another principle more fitting{known}."
        )
    return left


def _none(material: Material, why: str) -> list[Probe]:
    material.notes.append(f"adherence: no requests are written, because {why}; they are those of the evaluation.")
    return []


def known_prompts(prompts: Sequence[Prompt]) -> Known:
    """Training prompts of one turn, without those that a model wrote."""
    return Known.of([prompt for prompt in shown(prompts) if not prompt.id.startswith(WRITTEN)], CONFIG)


def asks(constitution: Constitution, prompts: Sequence[Prompt], number: int, seed: int) -> dict[Pool, list[WriteAsk]]:
    """Pool → the calls to the critic, for the principles of which the tags say that they are for this pool."""
    found: dict[Pool, list[WriteAsk]] = {}
    for pool in PROBED:
        rules = [rule for rule in constitution.principles if rule.weight > 0 and pool_of(rule) == pool]
        requests = sorted({prompt.request for prompt in shown(prompts) if prompt.pool == pool})
        if rules and requests:
            found[pool] = [
                ask
                for rule, scores in zip(rules, relevance(rules, requests), strict=True)
                for ask in probe_asks(rule, pool, _nearest(rule, scores, requests), number, CONFIG, seed)
            ]
    return found


def _nearest(rule: Principle, scores: NDArray, requests: Sequence[str]) -> list[str]:
    """The requests that share most words with a principle; ties are broken by hash."""
    ranked = sorted(zip(-scores.round(9), requests, strict=True), key=lambda p: (p[0], derive_seed(rule.id, p[1])))
    return [request for _, request in ranked[:NUM_NEAR]]


# --- Costs ---------------------------------------------------------------------------------------------------------


def cost(calls: Sequence[WriteAsk], prompts: Sequence[Prompt], engine: EngineConfig) -> Cost:
    """At most what the critic reads and writes."""
    known = known_prompts(prompts)
    num_wanted, num_rules = sum(ask.num_wanted for ask in calls), len({ask.principle_id for ask in calls})
    num_judged = num_wanted + sum(map(len, known.to_calibrate))
    num_compared = (1 + NUM_RIVALS) * (num_wanted + NUM_KNOWN * num_rules)
    example = about_tokens(*(turn["content"] for turn in known.query("", "").messages))
    writing = Cost(
        num_calls=len(calls),
        num_tokens_written=sum(ask.request.max_new_tokens for ask in calls),
        num_tokens_read=sum(about_tokens(*(turn["content"] for turn in ask.request.messages)) for ask in calls),
    )
    judging = cost_of_choices(engine, num_judged, example + CONFIG.max_prompt_tokens)
    comparing = cost_of_choices(engine, num_compared, 2 * CONFIG.max_prompt_tokens)
    return Cost.sum((writing, judging, comparing))


def cost_of_replies(num_requests: int, models: Sequence[str], max_reply_tokens: int) -> Cost:
    """At most what the models read and write."""
    num_replies = num_requests * len(models)
    return Cost(
        num_calls=num_replies,
        num_tokens_written=num_replies * max_reply_tokens,
        num_tokens_read=num_replies * CONFIG.max_prompt_tokens,
    )
