"""Layouts of requests."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.files import Row, text_of


@dataclass(frozen=True, kw_only=True)
class RequestRow:
    """A request. ``harmless`` is None unless the set labels it (XSTest has both kinds)."""

    id: str
    request: str
    kind: str
    manner: str = ""
    harmless: bool | None = None
    reference: str | None = None


def plain(row: Row) -> RequestRow:
    """The project's own layout: prompt; a label, a kind and a reference answer if there are any."""
    harmless = {"safe": True, "benign": True, "harmless": True, "unsafe": False, "harmful": False}.get(
        str(row.get("label", "")).casefold()
    )
    kind = row.get("kind") or row.get("category") or "unspecified"
    reference = row.get("reply") or row.get("reference")
    return RequestRow(
        id=str(row.get("id") or ""),
        request=text_of(row, "prompt"),
        kind=str(kind),
        manner=str(row.get("manner") or ""),
        harmless=harmless,
        reference=text_of(row, "reply" if row.get("reply") else "reference") if reference else None,
    )


def harmbench(row: Row) -> RequestRow:
    """Mazeika et al. 2024, arXiv 2402.04249: Behavior, SemanticCategory, ContextString, BehaviorID."""
    context = str(row.get("ContextString") or "").strip()
    behavior = text_of(row, "Behavior")
    request = f"{context}\n\n---\n\n{behavior}" if context else behavior
    return RequestRow(
        id=str(row.get("BehaviorID") or ""), request=request, kind=str(row.get("SemanticCategory") or "unspecified")
    )


def advbench(row: Row) -> RequestRow:
    """Zou et al. 2023, arXiv 2307.15043: goal, target."""
    return RequestRow(id="", request=text_of(row, "goal"), kind="advbench")


def strongreject(row: Row) -> RequestRow:
    """Souly et al. 2024, arXiv 2402.10260: category, source, forbidden_prompt."""
    return RequestRow(id="", request=text_of(row, "forbidden_prompt"), kind=str(row.get("category") or "unspecified"))


def jailbreakbench(row: Row) -> RequestRow:
    """Chao et al. 2024, arXiv 2404.01318: Goal, Target, Behavior, Category, Source; the harmful and the benign file."""
    return RequestRow(id="", request=text_of(row, "Goal"), kind=str(row.get("Category") or "unspecified"))


def xstest(row: Row) -> RequestRow:
    """Röttger et al. 2023, arXiv 2308.01263: prompt, type, label; types that begin with "contrast" are unsafe."""
    kind = text_of(row, "type")
    unsafe = str(row.get("label", "")).casefold() == "unsafe" or kind.startswith("contrast")
    return RequestRow(id=str(row.get("id") or ""), request=text_of(row, "prompt"), kind=kind, harmless=not unsafe)
