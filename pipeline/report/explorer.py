"""The data of the transcript explorer: one list of entries per collection, with each text stored once.

An entry refers to a text by its index in ``texts``. ``explorer.js`` reads only this data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.evals.judges.base import is_right
from pipeline.records import Case, Exchange, Preference, Prompt, Verdict
from pipeline.report.build import Report
from pipeline.report.diff import word_diff

Entry = dict[str, Any]

SEPARATOR = ": "  # between the group and the value of a facet: "aligned: refused"
_REPLY_FACETS = ("suite", "kind", "attack", "group", "verdict")
_EXCHANGE_FACETS = ("kind", "principle", "verdict")
_PREFERENCE_FACETS = ("kind", "principle", "verdict")
_EVEN = 0.1  # a label within this distance of one half prefers neither reply


class Texts:
    """Gives each distinct text a number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def each(self, texts: Iterable[str]) -> list[int]:
        return [self(text) for text in texts]

    def all(self) -> list[str]:
        return list(self._numbers)


def explorer_data(report: Report) -> dict[str, Any]:
    texts = Texts()
    rows: dict[str, list[str]] = defaultdict(list)
    for row in report.rows:
        rows[row.source_id].append(row.id)
    titles = {p.id: p.title for p in report.constitution.principles} if report.constitution else {}
    folders = report.folders
    collections = [
        {
            "id": "replies",
            "title": "Replies",
            "facets": _REPLY_FACETS,
            "entries": [
                _replies(verdicts, report.results.models, rows, folders, texts) for verdicts in by_case(report.verdicts)
            ],
        },
        {
            "id": "critique",
            "title": "Critique and revision",
            "facets": _EXCHANGE_FACETS,
            "entries": [_exchange(exchange, rows, folders, texts) for exchange in report.exchanges],
        },
        {
            "id": "labels",
            "title": "Labels",
            "facets": _PREFERENCE_FACETS,
            "entries": [
                _preference(preference, _file(folders, report.newest("preferences"), "preferences.jsonl"), texts)
                for preference in report.preferences
            ],
        },
    ]
    return {
        "models": report.results.models,
        "principles": titles,
        "collections": [collection for collection in collections if collection["entries"]],
        "texts": texts.all(),
    }


def by_case(verdicts: Iterable[Verdict]) -> list[list[Verdict]]:
    """The verdicts on each case, in the order in which the cases first appear."""
    cases: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        cases[verdict.case.id].append(verdict)
    return list(cases.values())


def is_good(verdict: Verdict) -> bool | None:
    """Whether the outcome is good; None if it was not judged or if only several replies together can show it."""
    if verdict.outcome != "broken" and verdict.case.attribute:
        return None
    return is_right(verdict.outcome, verdict.case.prompt.pool == "red_team")


def conversation(case: Case) -> list[tuple[str, str]]:
    """The (role, text) turns that the model was given; empty if they are only the request."""
    turns = [(turn["role"], turn["content"]) for turn in case.messages]
    return [] if turns == [("user", case.prompt.request)] else turns


# --- One entry of each collection ------------------------------------------------------------------------------------


def _replies(
    verdicts: Sequence[Verdict],
    models: Sequence[str],
    rows: dict[str, list[str]],
    folders: dict[str, str],
    texts: Texts,
) -> Entry:
    case = verdicts[0].case
    group = f"{case.attribute}{SEPARATOR}{case.group}" if case.attribute and case.group else case.attribute
    facets = [case.suites, [case.prompt.kind], [case.attack], [group] if group else [], _outcomes(verdicts, models)]
    return {
        "id": f"r:{case.id}",
        "request": texts(case.prompt.request),
        "facets": [texts.each(values) for values in facets],
        "turns": [[role, texts(text)] for role, text in conversation(case)],
        "reference": texts(case.reference) if case.reference else None,
        "replies": [
            [
                texts(v.model),
                texts(v.reply),
                texts(v.outcome),
                {True: 1, False: -1, None: 0}[is_good(v)],
                texts(v.evidence),
                texts(v.judge),
                v.num_tokens,
                None if v.reward is None else round(v.reward, 2),
            ]
            for v in verdicts
        ],
        "lineage": _lineage(
            texts,
            _prompt_lineage(case.prompt),
            [("case", case.id), ("template", case.template)],
            [(f"seed of {v.model}", v.seed) for v in verdicts],
            [("file", _file(folders, "evaluate", "verdicts.jsonl"))],
            _row_lineage(rows, case.prompt, folders),
        ),
    }


def _exchange(exchange: Exchange, rows: dict[str, list[str]], folders: dict[str, str], texts: Texts) -> Entry:
    replies = [exchange.reply, *(revision.revision for revision in exchange.revisions)]
    changed = "revised" if replies[-1] != replies[0] else "revised to the same words"
    return {
        "id": f"c:{exchange.prompt.id}",
        "request": texts(exchange.prompt.request),
        "facets": [
            texts.each([exchange.prompt.kind]),
            texts.each(dict.fromkeys(revision.principle_id for revision in exchange.revisions)),
            texts.each([changed if exchange.revisions else "kept as a helpful sample"]),
        ],
        "turns": _earlier_turns(exchange.prompt, texts),
        "reply": texts(exchange.reply),
        "rounds": [
            [
                revision.round,
                texts(revision.principle_id),
                texts(revision.critique),
                [[sign, texts(piece)] for sign, piece in word_diff(before, revision.revision)],
            ]
            for before, revision in zip(replies, exchange.revisions, strict=False)
        ],
        "lineage": _lineage(
            texts,
            _prompt_lineage(exchange.prompt),
            [("policy", exchange.policy), ("critic", exchange.critic), ("template", exchange.template)],
            [("seed of the reply", exchange.reply_seed)],
            [
                (f"seed of {step} {revision.round}", seed)
                for revision in exchange.revisions
                for step, seed in (("critique", revision.critique_seed), ("revision", revision.revision_seed))
            ],
            [("file", _file(folders, "critique", "exchanges.jsonl"))],
            _row_lineage(rows, exchange.prompt, folders),
        ),
    }


def _preference(preference: Preference, file: str, texts: Texts) -> Entry:
    comparison = preference.comparison
    return {
        "id": f"l:{comparison.id}",
        "request": texts(comparison.prompt.request),
        "facets": [
            texts.each([comparison.prompt.kind]),
            texts.each(dict.fromkeys(judgement.principle_id for judgement in preference.judgements)),
            texts.each(_leanings(preference)),
        ],
        "turns": _earlier_turns(comparison.prompt, texts),
        "a": texts(comparison.reply_a),
        "b": texts(comparison.reply_b),
        "probability": None if preference.probability_a is None else round(preference.probability_a, 4),
        "judgements": [
            [
                texts(j.principle_id),
                None if j.logit is None else round(j.logit, 3),
                j.flipped,
                texts.each(j.reasoning),
            ]
            for j in preference.judgements
        ],
        "lineage": _lineage(
            texts,
            _prompt_lineage(comparison.prompt),
            [("labeller", preference.labeller), ("template", preference.template)],
            [("seed of A", comparison.seed_a), ("seed of B", comparison.seed_b)],
            [("file", file)],
        ),
    }


def _outcomes(verdicts: Sequence[Verdict], models: Sequence[str]) -> list[str]:
    """One value per model, and whether the outcomes of the first and the last model differ."""
    values = [f"{verdict.model}{SEPARATOR}{verdict.outcome}" for verdict in verdicts]
    found = {verdict.model: verdict.outcome for verdict in verdicts}
    if len(models) > 1 and models[0] in found and models[-1] in found:
        changed = "changed" if found[models[0]] != found[models[-1]] else "the same"
        values.append(f"{models[0]} → {models[-1]}{SEPARATOR}{changed}")
    return list(dict.fromkeys(values))


def _leanings(preference: Preference) -> list[str]:
    label = preference.probability_a
    if label is None:
        values = ["no label"]
    elif abs(label - 0.5) <= _EVEN:
        values = ["about even"]
    else:
        values = ["A preferred" if label > 0.5 else "B preferred"]
    return values + ["depends on the order"] * any(judgement.flipped for judgement in preference.judgements)


def _earlier_turns(prompt: Prompt, texts: Texts) -> list[list[Any]]:
    return [[turn["role"], texts(turn["content"])] for turn in prompt.messages] if len(prompt.messages) > 1 else []


def _prompt_lineage(prompt: Prompt) -> list[tuple[str, str]]:
    return [("prompt", prompt.id), ("pool", prompt.pool), ("split", prompt.split)]


def _row_lineage(rows: dict[str, list[str]], prompt: Prompt, folders: dict[str, str]) -> list[tuple[str, str]]:
    file = _file(folders, "sft", "rows.jsonl")
    return [("training row", f"{row} in {file}") for row in rows.get(prompt.id, [])]


def _file(folders: dict[str, str], task: str, name: str) -> str:
    return f"{folders[task]}/{name}" if task in folders else name


def _lineage(texts: Texts, *parts: Sequence[tuple[str, Any]]) -> list[list[int]]:
    """(name, value) pairs as text numbers, without missing values. Seeds are text: JavaScript lacks 63-bit integers."""
    return [[texts(name), texts(str(value))] for part in parts for name, value in part if value is not None]
