"""The requests that put each principle to the test: chosen by its tags and its words, or given in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from pipeline.constitution.schema import Constitution, Principle
from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.core.text import words
from pipeline.data.files import rows_of, source_content
from pipeline.data.near_duplicates import near_duplicates
from pipeline.data.sources import SourceConfig
from pipeline.evals.results import DIRECT
from pipeline.records import POOLS, Case, Message, Pool, Prompt, Record, derive_seed, dialogue_key, normalised

FILE = "probes.jsonl"
FIELD = "explain.adherence.probes"
Source = Literal["drawn", "written", "given"]


class Probe(Record):
    """A request that tests a principle: one line of ``probes.jsonl``, a file that a person may edit."""

    principle_id: str
    case_id: str
    """The conversation of the evaluation that asked it, or one that ``explain`` asks."""
    request: str
    pool: Pool
    source: Source = "drawn"
    """From the evaluation, written by the critic, or a person's own."""

    @property
    def case(self) -> Case:
        """The conversation, where the evaluation did not ask it."""
        turns = [Message(role="user", content=self.request)]
        prompt = Prompt(id=self.case_id, pool=self.pool, kind=self.source, split="test", messages=turns)
        return Case(id=self.case_id, suites=["probes"], prompt=prompt, messages=turns)


def probe_id(request: str) -> str:
    """The id of a conversation that the evaluation did not ask."""
    return f"probe-{dialogue_key([Message(role='user', content=request)])[:12]}"


def asked_directly(cases: Iterable[Case]) -> dict[str, Case]:
    """Id → case, of those without an attack and without a group that is swapped."""
    return {case.id: case for case in cases if case.attack == DIRECT and case.group is None}


# --- Choosing ------------------------------------------------------------------------------------------------------


def choose(constitution: Constitution, cases: Sequence[Case], num_probes: int) -> list[Probe]:
    """At most so many probes for each principle that is not turned off.

    They are from the pools for which the principle is used. Requests of a kind that is one of its tags come first, then
    those that share most words with it; ties are broken by hash.
    """
    fitting = {pool: {rule.id for rule in constitution.principles_for(pool)} for pool in POOLS}
    rules = [rule for rule in constitution.principles if rule.weight > 0]
    found = relevance(rules, [case.prompt.request for case in cases])
    probes = []
    for rule, near in zip(rules, found, strict=True):
        ranked = sorted(
            (case.prompt.kind not in rule.tags, -round(float(score), 9), derive_seed("probe", rule.id, case.id), place)
            for place, (case, score) in enumerate(zip(cases, near, strict=True))
            if rule.id in fitting[case.prompt.pool]
        )
        chosen = [cases[place] for *_, place in ranked[:num_probes]]
        probes += [_asked(rule.id, case) for case in chosen]
    return probes


def _asked(principle_id: str, case: Case) -> Probe:
    return Probe(principle_id=principle_id, case_id=case.id, request=case.prompt.request, pool=case.prompt.pool)


def fill(constitution: Constitution, first: Sequence[Probe], then: Sequence[Probe], num_probes: int) -> list[Probe]:
    """At most so many probes of each principle, those of ``first`` before those of ``then``."""
    return [
        probe
        for rule in constitution.principles
        for probe in [one for one in (*first, *then) if one.principle_id == rule.id][:num_probes]
    ]


def words_of(rule: Principle) -> str:
    """The title of a principle and its three requests."""
    return " ".join((rule.title, rule.critique_request, rule.revision_request, rule.preference_question))


def relevance(principles: Sequence[Principle], requests: Sequence[str]) -> NDArray:
    """The word overlap of each principle with each request: the cosine of their TF-IDF vectors, (principles, requests).

    The words of a principle are its title and its three requests; English words such as "the" don't count.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [words_of(rule) for rule in principles]
    vectoriser = TfidfVectorizer(tokenizer=words, token_pattern=None, stop_words="english", sublinear_tf=True)
    vectors = vectoriser.fit_transform([*texts, *requests])
    return (vectors[: len(texts)] @ vectors[len(texts) :].T).toarray()


# --- A file that a person edited -----------------------------------------------------------------------------------


def probes_content(path: str) -> Any:
    """The content of the file, for cache keys. Raises ConfigError if there is none."""
    return source_content(FIELD, _source(path), Path())


def read_probes(
    path: str, constitution: Constitution, cases: Mapping[str, Case], prompts: Iterable[Prompt]
) -> list[Probe]:
    """The probes of a file. Each row needs ``principle_id`` and ``request``; one that the evaluation does not ask needs
    ``pool``, too, and ``explain`` asks it.

    Args:
        cases: id → case that the evaluation asks directly.
        prompts: those of the run; a request of the training split or of the constitution is no probe.

    Raises:
        ConfigError: there is no such file, it has no rows, no such principle, or such a request can't be asked.
    """
    by_request = {normalised(case.prompt.request): case for case in cases.values()}
    trained = {normalised(text) for text in _trained(constitution, prompts)}
    ids = [rule.id for rule in constitution.principles]
    found: dict[tuple[str, str], Probe] = {}
    pools: dict[str, Pool] = {}
    for place, row, _ in rows_of(FIELD, _source(path), Path()):
        principle_id, request = str(row.get("principle_id") or ""), str(row.get("request") or "").strip()
        if principle_id not in ids:
            raise ConfigError(f"{place}: no principle has the id {principle_id!r}{did_you_mean(principle_id, ids)}.")
        own = cases.get(str(row.get("case_id")))
        case = own if own and own.prompt.request == request else by_request.get(normalised(request))
        if case is None and normalised(request) in trained:
            raise ConfigError(f"{place}: “{request}” is trained on; take another request.")
        probe = _asked(principle_id, case) if case else _given(place, principle_id, request, row)
        if (named := row.get("pool") or probe.pool) != pools.setdefault(probe.case_id, probe.pool):
            raise ConfigError(
                f"{place}: the pool of “{request}” is {named!r} here, and {pools[probe.case_id]!r} in the evaluation "
                "or in an earlier row; a request has one pool."
            )
        found.setdefault((principle_id, probe.case_id), probe)
    if not found:
        raise ConfigError(f"{FIELD}: {path} has no rows; give a file with probes, or null.")
    return list(found.values())


def nearly_trained(probes: Iterable[Probe], constitution: Constitution, prompts: Iterable[Prompt]) -> list[str]:
    """A warning if probes of a file, which the evaluation does not ask, nearly repeat what the models learn from."""
    known = {str(place): text for place, text in enumerate(_trained(constitution, prompts))}
    near = near_duplicates({probe.request: probe.request for probe in probes if probe.source != "drawn"}, known)
    if not near:
        return []
    return [
        f"{FIELD}: {len(near)} requests nearly repeat training prompts or examples of the constitution "
        f"(“{near[0].id}”: “{known[near[0].other_id]}”), so they say little of others; reword them."
    ]


def _trained(constitution: Constitution, prompts: Iterable[Prompt]) -> list[str]:
    trained = [prompt.request for prompt in prompts if prompt.split == "train"]
    return trained + [turns[-1]["content"] for turns in constitution.requests()]


def _given(place: str, principle_id: str, request: str, row: Mapping[str, Any]) -> Probe:
    """A probe that the evaluation does not ask."""
    if not request:
        raise ConfigError(f"{place}: the row has no request; each row needs principle_id and request.")
    if row.get("source") == "drawn":
        raise ConfigError(
            f"{place}: the evaluation does not ask “{request}” without an attack; raise evaluate.red_team.num_requests "
            "and the like, or remove source from the row, and the models will be asked this text alone."
        )
    pool = str(row.get("pool") or "")
    if pool not in POOLS:
        known = f"its pool is {pool!r}" if pool else "it has no pool"
        raise ConfigError(
            f"{place}: the evaluation does not ask “{request}” without an attack, so the models will be asked, and the "
            f"row must say what it is, but {known}; add pool: {', '.join(POOLS[:-1])} or {POOLS[-1]}."
        )
    is_written = row.get("source") == "written" and row.get("case_id") == probe_id(request)  # nobody changed its words
    source: Source = "written" if is_written else "given"
    return Probe(principle_id=principle_id, case_id=probe_id(request), request=request, pool=pool, source=source)


def _source(path: str) -> SourceConfig:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"{FIELD}: there is no file {file}; give an existing one, or null.")
    return SourceConfig(source="path", path=str(file))
