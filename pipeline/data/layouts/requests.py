"""Layouts of requests."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.files import text_of
from pipeline.data.formats import Row
from pipeline.data.layouts.base import Layouts, flag_of
from pipeline.records import Message


@dataclass(frozen=True, kw_only=True)
class RequestRow:
    """A request, and the turns before it. ``harmless`` is None unless the set labels it (XSTest has both kinds)."""

    id: str
    request: str
    kind: str
    manner: str = ""
    twin_of: str = ""
    harmless: bool | None = None
    reference: str | None = None
    before: tuple[Message, ...] = ()

    @property
    def messages(self) -> list[Message]:
        return [*self.before, Message(role="user", content=self.request)]


REQUESTS: Layouts[RequestRow] = Layouts()


def request_of(messages: list[Message], *, kind: str, harmless: bool | None = None, manner: str = "") -> RequestRow:
    """The request at the end of a dialogue. Raises ValueError if the dialogue does not end with a person's turn."""
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("the dialogue does not end with a person's turn")
    *before, last = messages
    return RequestRow(id="", request=last["content"], kind=kind, manner=manner, harmless=harmless, before=tuple(before))


@REQUESTS.add("prompt", "prompt")
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


@REQUESTS.add("harmbench", "Behavior", "SemanticCategory")
def harmbench(row: Row) -> RequestRow:
    """Mazeika et al. 2024, arXiv 2402.04249: Behavior, SemanticCategory, ContextString, BehaviorID."""
    context = str(row.get("ContextString") or "").strip()
    behavior = text_of(row, "Behavior")
    request = f"{context}\n\n---\n\n{behavior}" if context else behavior
    return RequestRow(
        id=str(row.get("BehaviorID") or ""), request=request, kind=str(row.get("SemanticCategory") or "unspecified")
    )


@REQUESTS.add("advbench", "goal", "target")
def advbench(row: Row) -> RequestRow:
    """Zou et al. 2023, arXiv 2307.15043: goal, target."""
    return RequestRow(id="", request=text_of(row, "goal"), kind="advbench")


@REQUESTS.add("strongreject", "forbidden_prompt")
def strongreject(row: Row) -> RequestRow:
    """Souly et al. 2024, arXiv 2402.10260: category, source, forbidden_prompt."""
    return RequestRow(id="", request=text_of(row, "forbidden_prompt"), kind=str(row.get("category") or "unspecified"))


@REQUESTS.add("jailbreakbench", "Goal")
def jailbreakbench(row: Row) -> RequestRow:
    """Chao et al. 2024, arXiv 2404.01318: Goal, Target, Behavior, Category, Source; the harmful and the benign file."""
    return RequestRow(id="", request=text_of(row, "Goal"), kind=str(row.get("Category") or "unspecified"))


@REQUESTS.add("xstest", "prompt", "type", "label")
def xstest(row: Row) -> RequestRow:
    """Röttger et al. 2023, arXiv 2308.01263: prompt, type, label; types that begin with "contrast" are unsafe."""
    kind, label = text_of(row, "type"), str(row["label"]).casefold()
    if label not in {"safe", "unsafe"}:
        raise ValueError(f"label is {str(row['label'])[:40]!r}, not safe or unsafe")
    unsafe = label == "unsafe" or kind.startswith("contrast")
    return RequestRow(id=str(row.get("id") or ""), request=text_of(row, "prompt"), kind=kind, harmless=not unsafe)


@REQUESTS.add("wildguard", "prompt", "prompt_harm_label")
def wildguard(row: Row) -> RequestRow:
    """WildGuardMix, Han et al. 2024, arXiv 2406.18495: prompt, prompt_harm_label, adversarial, subcategory. The replies
    are not read."""
    label = str(row["prompt_harm_label"]).casefold()
    if label not in {"harmful", "unharmful"}:
        raise ValueError(f"prompt_harm_label is {str(row['prompt_harm_label'])[:40]!r}, not harmful or unharmful")
    is_adversarial = row.get("adversarial") is not None and flag_of(row, "adversarial")
    return RequestRow(
        id="",
        request=text_of(row, "prompt"),
        kind=str(row.get("subcategory") or "unspecified"),
        manner="adversarial" if is_adversarial else "",
        harmless=label == "unharmful",
    )
