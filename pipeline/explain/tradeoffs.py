"""Requests on which two principles may pull apart: written by an engine, drawn from what is there, or from a file."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

from pipeline.constitution.schema import Constitution, Principle
from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.data.files import rows_of, text_of
from pipeline.data.near_duplicates import NearIndex
from pipeline.data.sources import SourceConfig
from pipeline.engines.base import Engine
from pipeline.engines.worklist import Logbook, generate_all
from pipeline.explain.probes import relevance, words_of
from pipeline.records import POOLS, Pool, Prompt, Record, derive_seed, normalised
from pipeline.writing.asks import read_list, shown, tradeoff_asks
from pipeline.writing.config import WriteConfig

FIELD = "--requests"
Two = tuple[Principle, Principle]
"""Two principles, in the order of the constitution."""
Ids = tuple[str, str]


class Tradeoff(Record):
    """A request for two principles: one line of ``requests.jsonl``, a file that a person may edit."""

    first: str
    second: str
    """The ids of the principles."""
    request: str
    source: Literal["written", "drawn", "given"] = "given"
    reply_first: str = ""
    reply_second: str = ""
    """The replies to compare; empty: one is sampled under each principle."""

    @property
    def ids(self) -> Ids:
        return self.first, self.second


# --- Pairs of principles -------------------------------------------------------------------------------------------


def shared_pools(constitution: Constitution, two: Two) -> list[Pool]:
    """The pools of prompts for which both principles are used."""
    return [pool for pool in POOLS if set(_ids(two)) <= {rule.id for rule in constitution.principles_for(pool)}]


def choose_pairs(constitution: Constitution, num_pairs: int) -> list[Two]:
    """At most so many pairs of principles that are used for the same prompts.

    The pair with the most alike words comes first, then the one with the least alike words (TF-IDF, cosine), and so on
    in turn. Pairs whose principles are in fewer pairs so far come before others, so all principles are looked at.

    Raises:
        ConfigError: there is no such pair.
    """
    rules = [rule for rule in constitution.principles if rule.weight > 0]
    if len(rules) < 2:
        raise ConfigError(
            f"FILE: {constitution.name} has only one principle with a weight above 0; add another one to compare."
        )
    left = [two for two in combinations(rules, 2) if shared_pools(constitution, two)]
    if not left:
        raise ConfigError(
            f"FILE: no two principles of {constitution.name} are used for the same prompts; their tags decide "
            "(constitutions/README.md)."
        )
    alike = relevance(rules, [words_of(rule) for rule in rules])
    place = {rule.id: number for number, rule in enumerate(rules)}
    uses: Counter[str] = Counter()
    chosen: list[Two] = []
    while left and len(chosen) < num_pairs:
        sign = 1 if len(chosen) % 2 else -1

        def rank(two: Two, sign: int = sign) -> tuple[int, float, int]:
            one, other = _ids(two)
            near = round(float(alike[place[one], place[other]]), 9)
            return uses[one] + uses[other], sign * near, derive_seed("pair", one, other)

        chosen.append(best := min(left, key=rank))
        left.remove(best)
        uses.update(_ids(best))
    return sorted(chosen, key=lambda two: [place[name] for name in _ids(two)])


def _ids(two: Two) -> Ids:
    return two[0].id, two[1].id


# --- Requests that are there ---------------------------------------------------------------------------------------


def draw(constitution: Constitution, pairs: Sequence[Two], prompts: Sequence[Prompt]) -> dict[Ids, list[str]]:
    """Two ids → requests, the most relevant first, from the training prompts and the constitution's own requests.

    A request is as relevant to a pair as to the principle that it has fewer words in common with. Prompts are from the
    pools for which both principles are used.
    """
    pools: dict[str, Pool | None] = {dialogue[-1]["content"]: None for dialogue in constitution.requests()}
    pools |= {prompt.request: prompt.pool for prompt in shown(prompts)}
    for _, harmful, twin in constitution.contrast_prompts():
        pools |= {prompt.request: prompt.pool for prompt in (harmful, twin)}
    rules = list({rule.id: rule for two in pairs for rule in two}.values())
    found = relevance(rules, list(pools))
    place = {rule.id: number for number, rule in enumerate(rules)}
    drawn = {}
    for two in pairs:
        one, other = _ids(two)
        fitting = {None, *shared_pools(constitution, two)}
        least = found[[place[one], place[other]]].min(axis=0).round(9)
        ranked = sorted(
            (-float(score), derive_seed("tradeoff", one, other, text), text)
            for (text, pool), score in zip(pools.items(), least, strict=True)
            if pool in fitting
        )
        drawn[one, other] = [text for *_, text in ranked]
    return drawn


# --- Requests that an engine writes --------------------------------------------------------------------------------


def write(
    pairs: Sequence[Two],
    drawn: Mapping[Ids, Sequence[str]],
    number: int,
    engine: Engine,
    config: WriteConfig,
    seed: int,
    logbook: Logbook,
) -> list[Tradeoff]:
    """``number`` requests for each pair: what the engine writes and repeats nothing, then the drawn ones.

    The most relevant drawn requests are the examples. Lines without a number, long ones and those that are near to an
    example or to another written request are left out.
    """
    examples = {ids: texts[: 2 * config.num_few_shot] for ids, texts in drawn.items()}
    asks = [ask for two in pairs for ask in tradeoff_asks(*two, examples[_ids(two)], number, config, seed)]
    answers = generate_all(engine, "writing trade-off requests", [ask.request for ask in asks], logbook, "requests")
    written: dict[str, list[str]] = defaultdict(list)
    for ask in asks:
        written[ask.kind] += read_list(ask, answers[ask.request.id])
    rows = []
    for two in pairs:
        one, other = _ids(two)
        known = NearIndex({f"example {place}": text for place, text in enumerate(examples[one, other])})
        kept: list[str] = []
        for text in written[f"{one}+{other}"]:
            if known.closest(text) is None:
                known.add(text, text)
                kept.append(text)
        rest = drawn[one, other][: max(0, number - len(kept))]
        rows += [Tradeoff(first=one, second=other, request=text, source="written") for text in kept]
        rows += [Tradeoff(first=one, second=other, request=text, source="drawn") for text in rest]
    return rows


# --- Requests of a file --------------------------------------------------------------------------------------------


def read_tradeoffs(path: str, constitution: Constitution) -> list[Tradeoff]:
    """The requests of a file. Each row needs ``first``, ``second`` and ``request``.

    Raises:
        ConfigError: there is no such file, no such principle, or no request in it.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"{FIELD}: there is no file {file}; give an existing one, or leave {FIELD} out.")
    ids = [rule.id for rule in constitution.principles]
    found: dict[tuple[str, ...], Tradeoff] = {}
    for place, row, _ in rows_of(FIELD, SourceConfig(source="path", path=str(file)), Path()):
        try:
            texts = {name: text_of(row, name) for name in ("first", "second", "request")}
        except (KeyError, ValueError) as error:
            reason = f"there is no column {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{place}: {reason}; each row needs first, second and request.") from None
        for name in ("first", "second"):
            if texts[name] not in ids:
                raise ConfigError(f"{place}: no principle has the id {texts[name]!r}{did_you_mean(texts[name], ids)}.")
        if texts["first"] == texts["second"]:
            raise ConfigError(f"{place}: first and second are both {texts['first']!r}; name two principles.")
        replies = {name: str(row.get(name) or "").strip() for name in ("reply_first", "reply_second")}
        if any(replies.values()) and (not all(replies.values()) or len(set(replies.values())) == 1):
            raise ConfigError(f"{place}: give two different replies, or none.")
        source = row.get("source")
        made = Tradeoff(**texts, **replies, source=source if source in ("written", "drawn") else "given")
        found.setdefault((made.first, made.second, normalised(made.request), *replies.values()), made)
    if not found:
        raise ConfigError(f"{FIELD}: {file} holds no request; add rows with first, second and request.")
    return list(found.values())
