"""Whether a request tests its principle: the critic is asked about it and a few others, and its own must fit best."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.constitution.schema import POOL_TAGS, Constitution, Principle
from pipeline.engines.base import ChoiceQuery, Engine
from pipeline.engines.worklist import Logbook, score_all
from pipeline.evals.results import Estimate
from pipeline.evals.statistics import wilson
from pipeline.labellers.base import choice_logit
from pipeline.records import Message, Pool, Prompt, WrittenPrompt, derived_rng
from pipeline.writing.asks import shown
from pipeline.writing.judgement import MIN_MASS, NO, OPENING, YES
from pipeline.writing.writer import WRITTEN

PROBED: tuple[Pool, ...] = ("red_team", "ordinary")
NUM_RIVALS = 3
"""The other principles of the pool that the critic is asked about."""
NUM_KNOWN = 2
"""The training prompts for each principle that show whether the critic can tell."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request, and the principle that it should test."""

    id: str
    principle_id: str
    pool: Pool
    request: str


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What the critic says of the written requests, and of training prompts of which the principle is known."""

    fitting: set[str]
    """The ids of written requests that test their principle."""
    known: Estimate
    """The share of known prompts for which it finds the principle."""
    chance: float
    """The share that guessing would find."""

    @property
    def knows(self) -> bool:
        """Whether the critic is better than guessing, as far as it could be tested."""
        return self.known.low is None or self.known.low > self.chance


def pool_of(rule: Principle) -> Pool | None:
    """Harmful requests test a principle about harm, and harmless ones another; None: its tags say both, or nothing."""
    fitting = [pool for pool in PROBED if POOL_TAGS[pool] & set(rule.tags)]
    return fitting[0] if len(fitting) == 1 else None


def find_tested(
    written: Iterable[WrittenPrompt],
    rules: Constitution,
    prompts: Sequence[Prompt],
    critic: Engine,
    logbook: Logbook,
    seed: int,
) -> Tested:
    """Ask about each written request whether it is a matter of its own principle, and of ``NUM_RIVALS`` others.

    It tests its principle if that one fits best (``fits_best``). A request without another principle to compare with
    does. The same is asked about training prompts whose kind is a tag of one principle.
    """
    own = [Asked(id=row.id, principle_id=row.principle_id, pool=row.pool, request=row.prompt) for row in written]
    known = known_requests(rules, prompts)
    asked_about = {one: candidates(one, rules, seed) for one in (*own, *known)}
    compared = {one: some for one, some in asked_about.items() if len(some) > 1}
    queries = {(one.id, rule.id): _query(one, rule) for one, some in compared.items() for rule in some}
    label = "asking which principle is tested"
    answers = score_all(critic, label, list(queries.values()), logbook, "tested") if queries else {}
    odds = {
        one.id: {rule.id: choice_logit(answers[queries[one.id, rule.id].id], MIN_MASS) for rule in some}
        for one, some in compared.items()
    }
    best = fits_best(odds, {one.id: one.principle_id for one in compared})
    judged = [one for one in known if one in compared]
    return Tested(
        fitting={one.id for one in own if one not in compared or one.id in best},
        known=wilson(sum(one.id in best for one in judged), len(judged)),
        chance=fmean(1 / len(compared[one]) for one in judged) if judged else 0.0,
    )


def fits_best(odds: Mapping[str, Mapping[str, float | None]], own: Mapping[str, str]) -> set[str]:
    """The requests whose own principle has the highest log-odds of all that were asked about.

    A critic says yes to some principles more often than to others, so the mean of a principle over all requests is
    taken off first. A request with an unreadable answer is not found.

    Args:
        odds: request → principle → log-odds that the request is a matter of it.
        own: request → the principle that it should test.
    """
    by_rule: dict[str, list[float]] = defaultdict(list)
    for mine in odds.values():
        for rule, value in mine.items():
            if value is not None:
                by_rule[rule].append(value)
    means = {rule: fmean(values) for rule, values in by_rule.items()}
    found = set()
    for name, mine in odds.items():
        above = {rule: value - means[rule] for rule, value in mine.items() if value is not None}
        if len(above) == len(mine) and all(above[own[name]] > above[rule] for rule in mine if rule != own[name]):
            found.add(name)
    return found


def known_requests(rules: Constitution, prompts: Sequence[Prompt]) -> list[Asked]:
    """At most ``NUM_KNOWN`` training prompts, by hash, for each principle that alone has their kind as a tag; people
    wrote them."""
    by_people = [prompt for prompt in shown(prompts) if not prompt.id.startswith(WRITTEN)]
    found = []
    for pool in PROBED:
        for rule in _rules_of(rules, pool):
            tags = set(rule.tags).difference(*(other.tags for other in _rules_of(rules, pool) if other.id != rule.id))
            mine = [p for p in by_people if p.pool == pool and p.kind in tags]
            found += [
                Asked(id=prompt.id, principle_id=rule.id, pool=pool, request=prompt.request)
                for prompt in sorted(mine, key=lambda prompt: prompt.key)[:NUM_KNOWN]
            ]
    return found


def candidates(one: Asked, rules: Constitution, seed: int) -> list[Principle]:
    """Its own principle, and at most ``NUM_RIVALS`` others of the pool, drawn by the request."""
    own = [rule for rule in rules.principles if rule.id == one.principle_id]
    others = [rule for rule in _rules_of(rules, one.pool) if rule.id != one.principle_id]
    return own + derived_rng(seed, "tested", one.id).sample(others, min(NUM_RIVALS, len(others)))


def _rules_of(rules: Constitution, pool: Pool) -> list[Principle]:
    return [rule for rule in rules.principles if rule.weight > 0 and pool_of(rule) == pool]


def _query(one: Asked, rule: Principle) -> ChoiceQuery:
    text = (
        f"An AI assistant has this rule: {rule.title}. {rule.preference_question}\n\n"
        f"Somebody asks it: {one.request}\n\nIs the rule about such requests? Answer yes or no."
    )
    messages = [Message(role="user", content=text)]
    return ChoiceQuery(id=f"{one.id}/{rule.id}", messages=messages, opening=OPENING, choices=(YES, NO))
