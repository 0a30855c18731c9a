"""Put pairs of principles under stress: do they prefer the same reply where they may pull apart?

The requests are the idea of Zhang et al. 2025 (arXiv 2510.07686), who compare models on them. Here one labeller judges
the same two replies under each of the two principles, in both orders and in other words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.constitution.critique import tidy
from pipeline.constitution.schema import Constitution, Principle
from pipeline.core.counts import warn_of_share
from pipeline.core.errors import ConfigError
from pipeline.engines.base import Engine, Request, chooser
from pipeline.engines.worklist import Logbook, generate_all
from pipeline.evals.label_accuracy import described
from pipeline.explain.principle_counts import Pair
from pipeline.explain.stress_counts import LEAST, OPPOSITE, OWN, Counted, Judged, count
from pipeline.explain.tradeoffs import Tradeoff
from pipeline.labellers.base import LABELLERS, OPPOSITE_WORDS, LabellerConfig
from pipeline.labellers.declining import DecliningLabeller
from pipeline.labellers.label import Known, label_drawn, placeholders
from pipeline.records import Comparison, Judgement, Message, Preference, Prompt, derive_seed

NUM_TRIED = 40  # requests: enough to see that nearly all judgements turn with the order
_HELLO = Prompt(id="", pool="ordinary", kind="", split="train", messages=[Message(role="user", content="Hello.")])
SPECIMEN = Comparison(id="specimen", prompt=_HELLO, reply_a="One.", reply_b="Two.", seed_a=0, seed_b=0)


class Stress(BaseModel):
    """What the trade-off requests showed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    constitution: str
    engine: str
    labeller: str
    num_requests: dict[str, int]
    """Source (written, drawn, given) → requests."""
    num_without_replies: int
    """Requests to which there are no two different replies."""
    found: Counted


# --- What the labeller is asked ------------------------------------------------------------------------------------


def worded(rule: Principle) -> dict[str, Principle]:
    """How a principle is put: by its own question, title or revision request, and its opposite."""
    by_title = f"Which of these replies keeps better to the rule “{rule.title}”?"
    by_revision = f"Which of these replies needs this change less: “{rule.revision_request}”?"
    against = {name: text.format(getattr(rule, name)) for name, text in OPPOSITE_WORDS.items()}
    texts: dict[str, dict[str, str]] = {
        OWN: {},
        "title": {"preference_question": by_title},
        "revision": {"preference_question": by_revision, "title": rule.revision_request},
        OPPOSITE: against,
    }
    return {how: rule.model_copy(update={"id": f"{rule.id}~{how}", **text}) for how, text in texts.items()}


def read_wordings(config: LabellerConfig, constitution: Constitution) -> list[str]:
    """The wordings that the labeller does not ask alike.

    Raises:
        ConfigError: it does not read the words of a principle.
    """
    labeller = LABELLERS[config.kind](config, constitution, 0)
    asked: dict[str, str] = {}
    for how, principle in worded(constitution.principles[0]).items():
        requests, queries = placeholders(labeller, [(SPECIMEN, principle)])
        shown = repr([(ask.messages, getattr(ask, "reply", "")) for ask in (*requests, *queries)])
        if shown not in asked.values():
            asked[how] = shown
    reads_no_rule = isinstance(labeller, DecliningLabeller) or getattr(labeller, "knows_only_declining", False)
    if OPPOSITE not in asked or reads_no_rule:
        raise ConfigError(
            f"preferences.labeller.kind is {config.kind!r}, which does not decide by the words of a principle, so it "
            "can't tell two principles apart; use preferences=ab, cot or pointwise."
        )
    return list(asked)


# --- The replies that are compared ---------------------------------------------------------------------------------


def compared(
    tradeoffs: Sequence[Tradeoff],
    constitution: Constitution,
    engine: Engine,
    sampling: Any,
    seed: int,
    logbook: Logbook,
) -> list[Comparison]:
    """The given replies to each request, or one sampled under each principle. Requests without two different replies
    are left out.

    Args:
        sampling: settings with ``temperature``, ``top_p`` and ``max_reply_tokens``.
    """
    asks: dict[str, Request] = {}
    for row in tradeoffs:
        for name in row.ids if not row.reply_first else ():
            row_id = f"{name}/{derive_seed(row.request):x}"
            preamble = constitution.preamble.strip()
            rule = f"{preamble}\nThe rule that matters most here: {constitution.principle(name).title}."
            asks[row_id] = Request(
                id=row_id,
                messages=[Message(role="system", content=rule), Message(role="user", content=row.request)],
                seed=derive_seed(seed, "stress", row_id),
                max_new_tokens=sampling.max_reply_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
            )
    found = generate_all(engine, "replies under each principle", list(asks.values()), logbook, "replies")
    texts = {row_id: tidy(reply.text, cut_off=reply.finish == "length") for row_id, reply in found.items()}
    comparisons = []
    for row in tradeoffs:
        replies = [row.reply_first, row.reply_second]
        if not row.reply_first:
            replies = [texts[f"{name}/{derive_seed(row.request):x}"] for name in row.ids]
        if all(replies) and replies[0] != replies[1]:
            comparisons.append(_comparison(row, *replies))
    return comparisons


def _comparison(row: Tradeoff, reply_a: str, reply_b: str) -> Comparison:
    """The id has the texts, so an edited row is judged again. Which reply is A is drawn."""
    row_id = f"{row.first}+{row.second}/{derive_seed(row.request, reply_a, reply_b):x}"
    messages = [Message(role="user", content=row.request)]
    prompt = Prompt(id=row_id, pool="ordinary", kind=row.source, split="train", messages=messages)
    made = Comparison(id=row_id, prompt=prompt, reply_a=reply_a, reply_b=reply_b, seed_a=0, seed_b=0)
    return made.swap() if derive_seed("side", row_id) % 2 else made


# --- Judging -------------------------------------------------------------------------------------------------------


def stress(
    tradeoffs: Sequence[Tradeoff],
    constitution: Constitution,
    engine: Engine,
    labeller: LabellerConfig,
    sampling: Any,
    seed: int,
    logbook: Logbook,
    confidence: float,
) -> tuple[Stress, list[Preference]]:
    """Judge all requests. A few are tried first: where the order of the replies decides, the rest is not asked.

    Raises:
        ConfigError: the labeller does not read the words of a principle.
        StageError: no request has two different replies, or no judgement can be read.
    """
    wordings = read_wordings(labeller, constitution)
    rules = {name: constitution.principle(name) for row in tradeoffs for name in row.ids}
    titles = {rule.id: rule.title for rule in constitution.principles if rule.id in rules}

    def ask(made: Sequence[Comparison], purpose: str, hows: Sequence[str]) -> list[Preference]:
        drawn = [(one, worded(rules[name])[how]) for one in made for name in _ids(one) for how in hows]
        return label_drawn(drawn, engine, labeller, constitution, seed, logbook, purpose, Known())

    tried = tradeoffs[:: max(1, len(tradeoffs) // NUM_TRIED)]
    for rows in [tried, tradeoffs] if len(tried) < len(tradeoffs) else [tradeoffs]:
        comparisons = compared(rows, constitution, engine, sampling, seed, logbook)
        judged = ask(comparisons, "judgements", [OWN])
        found = count(_by_comparison(judged), titles, confidence)
        if found.decided_by_order and (found.order_flips.low or 0) > 0.5:
            break
    lost = len(rows) - len(comparisons)
    warn_of_share(lost, len(rows), f"requests have no two different replies ({engine.name})", "use a larger engine")
    num_unread = sum(rule.num_unreadable for rule in found.principles)
    warn_of_share(num_unread, 2 * len(comparisons), f"judgements of {engine.name} can't be read", "use another engine")
    if not found.decided_by_order:
        judged += ask(comparisons, "other-wordings", [how for how in wordings if how != OWN])
        found = count(_by_comparison(judged), titles, confidence)
    sources = [row.source for row in rows]
    return (
        Stress(
            constitution=f"{constitution.name} {constitution.version}",
            engine=chooser(engine),
            labeller=described(labeller.model_copy(update={"num_principles": 1})),  # each pair has two of its own
            num_requests={source: sources.count(source) for source in dict.fromkeys(sources)},
            num_without_replies=lost,
            found=found,
        ),
        judged,
    )


def _ids(comparison: Comparison) -> list[str]:
    return comparison.id.partition("/")[0].split("+")


def _by_comparison(judged: Sequence[Preference]) -> list[Judged]:
    found: dict[str, dict[tuple[str, str], Judgement]] = defaultdict(dict)
    for preference in judged:
        for judgement in preference.judgements:
            name, _, how = judgement.principle_id.partition("~")
            found[preference.comparison.id][name, how] = judgement
    return [Judged(by) for by in found.values()]


# --- In words ------------------------------------------------------------------------------------------------------


def sentences(stressed: Stress) -> list[str]:
    """What stands out, or that nothing does."""
    found = stressed.found
    if found.decided_by_order:
        return [
            f"The order of the replies decides the judgements of {stressed.engine}: {found.order_flips} of them turn "
            "when the replies are swapped, and a coin's would in 50 %. So nothing can be said about the principles; "
            "use a larger engine (engine.path=FOLDER_OR_ID, or engine=server)."
        ]
    said = []
    agreement = {(pair.first, pair.second): pair for pair in found.pairs}
    for one, other in found.contradictions:
        said.append(
            f"{one} and {other} contradict each other: they prefer the same reply to {_of(agreement[one, other])}."
        )
    for one, other in found.near_duplicates:
        said.append(f"{one} and {other} are near-duplicates: they agree on {_of(agreement[one, other])}.")
    said += [
        f"{rule.id}: no evidence that more than the order of the replies decides; {rule.order_flips} of its judgements "
        "turn with it, and a coin's would in 50 %."
        for rule in found.principles
        if rule.id in found.only_order
    ]
    if found.ignores_words:
        said.append(
            f"The words of a principle decide little for {stressed.engine}: its opposite prefers the other reply in "
            f"{found.opposite_turns} only. So principles that agree are not called near-duplicates."
        )
    few = [pair for pair in found.pairs if pair.agreement.total < LEAST]
    if len(few) == len(found.pairs):
        said.append(f"No two principles prefer a reply to {LEAST} requests both, so no near-duplicates can be named.")
    return said or ["No contradiction, no near-duplicate, and no principle that only the order decides was found."]


def _of(pair: Pair) -> str:
    return f"{pair.agreement.count} of {pair.agreement.total} requests"
