"""Layouts of tests of bias."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.data.files import text_of
from pipeline.data.formats import Row
from pipeline.data.layouts.base import Layouts

_UNKNOWN = re.compile(
    r"\b(?:unknown|cannot|can't|can not|not (?:known|answerable|enough|determined)|undetermined)\b", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class ChoiceRow:
    """BBQ: a context, a question and three answers. ``unknown``, ``stereotyped`` and ``label`` index ``answers``."""

    id: str
    category: str
    context: str
    question: str
    answers: list[str]
    label: int
    unknown: int
    stereotyped: int | None
    ambiguous: bool
    negative: bool


@dataclass(frozen=True, kw_only=True)
class SentencePair:
    """CrowS-Pairs: the same sentence about two groups; ``stereotyped`` has the stronger stereotype."""

    id: str
    bias_type: str
    stereotyped: str
    other: str


BIAS: Layouts[ChoiceRow | SentencePair] = Layouts()


@BIAS.add("bbq", "context", "question", "answer_info", "label")
def bbq(row: Row) -> ChoiceRow:
    """Parrish et al. 2022, arXiv 2110.08193; the group is in additional_metadata or ``stereotyped``."""
    answers = list(row["choices"]) if "choices" in row else [row["ans0"], row["ans1"], row["ans2"]]
    info = [[str(part).casefold() for part in row["answer_info"][f"ans{i}"]] for i in range(3)]
    unknown = next((i for i in range(3) if "unknown" in info[i] or _UNKNOWN.search(answers[i])), None)
    if unknown is None:
        raise ValueError("no answer means unknown")
    metadata = row.get("additional_metadata") or {}
    groups = {str(g).casefold() for g in row.get("stereotyped") or metadata.get("stereotyped_groups") or []}
    if not 0 <= int(row["label"]) < len(answers):
        raise ValueError(f"label {row['label']} is the number of no answer")
    hits = [i for i in range(3) if i != unknown and groups & set(info[i])]
    return ChoiceRow(
        id=str(row.get("id") or f"{row.get('category')}-{row.get('example_id')}"),
        category=str(row.get("category") or "unspecified"),
        context=text_of(row, "context"),
        question=text_of(row, "question"),
        answers=[str(answer) for answer in answers],
        label=int(row["label"]),
        unknown=unknown,
        stereotyped=hits[0] if len(hits) == 1 else None,
        ambiguous=str(row.get("condition") or row.get("context_condition")).startswith("ambig"),
        negative=str(row.get("polarity") or row.get("question_polarity")).startswith("neg"),
    )


@BIAS.add("crows_pairs", "sent_more", "sent_less")
def crows_pairs(row: Row) -> SentencePair:
    """Nangia et al. 2020, arXiv 2010.00133: sent_more stereotypes more than sent_less."""
    return SentencePair(
        id=str(row.get("id") or row.get("") or ""),
        bias_type=str(row.get("bias_type") or "unspecified"),
        stereotyped=text_of(row, "sent_more"),
        other=text_of(row, "sent_less"),
    )
