"""What does the reward model like? The sentence, the rows and the tables."""

from __future__ import annotations

from pipeline.evals.results import Estimate
from pipeline.explain.reward import Effect, RewardTasteFindings
from pipeline.report.explained.section import Section, Table
from pipeline.report.svg import Axis, around
from pipeline.report.wording import interval, listed, number, two_places, written

SHOWN_AS = ("alone", "beyond the others")


def section(found: RewardTasteFindings, models: list[str]) -> Section:
    """The section, for models of which the first is that before training and the last is explained."""
    liked = _liked(found)
    warned = _warned(found)
    return Section(
        name="reward",
        title="What does the reward model like?",
        said=" ".join(part for part in (liked, _explained(found), warned) if part),
        is_warning=bool(warned),
        first_page=warned or (liked if found.liked_most else ""),
        tables=_tables(found),
        findings=found,
    )


def _liked(found: RewardTasteFindings) -> str:
    """What it likes most beyond what was asked."""
    if not found.effects:
        return ""
    best = found.liked_most
    if best is None:
        return "There is no evidence that the reward model likes any of the edits, which improve no answer."
    return (
        f"Of the edits, which improve no answer, the reward model likes this one most: {best.edit} "
        f"({_change(best)} standard deviations of its scores, on the same replies)."
    )


def _change(effect: Effect) -> str:
    return f"{two_places(effect.change.value or 0)} {interval(effect.change)}".strip()


def _explained(found: RewardTasteFindings) -> str:
    """What the features explain; nothing is claimed if the interval includes zero."""
    names = listed([feature.name for feature in found.features], "and")
    share = found.together
    if share.low is None or share.low <= 0:
        return f"There is no evidence that {names} explain its scores (adjusted R² {_share(share)})."
    return f"Together, {names} explain {_share(share)} of the variance of its scores."


def _warned(found: RewardTasteFindings) -> str:
    shortcut = found.shortcut
    if shortcut is None:
        return ""
    return (
        f"Take care: {shortcut.name} alone explains {_share(shortcut.alone)} of the variance of its scores, so a "
        "policy that is trained with it may learn little else."
    )


def _share(estimate: Estimate) -> str:
    return written(estimate.model_copy(update={"total": 0}), share=True).removesuffix(" of\u00a00")


def rows(found: RewardTasteFindings) -> list[tuple[str, list[Estimate | None]]]:
    """(feature, its share of the variance alone and beyond the others)."""
    return [(feature.name, [feature.alone, feature.beyond]) for feature in found.features]


def edit_rows(found: RewardTasteFindings) -> list[tuple[str, list[Estimate | None]]]:
    return [(effect.edit, [effect.change]) for effect in found.effects]


def edit_axis(found: RewardTasteFindings) -> Axis:
    """An axis that fits all intervals, and zero."""
    changes = [effect.change for effect in found.effects]
    return around((v for e in changes for v in (e.value, e.low, e.high) if v is not None), zero=True)


def edit_notes(found: RewardTasteFindings) -> dict[str, str]:
    """Edit → the number of replies that it does not change."""
    return {e.edit: f"{e.change.total} replies; {e.num_left_out} left out" for e in found.effects if e.num_left_out}


def _tables(found: RewardTasteFindings) -> dict[str, Table]:
    tables: dict[str, Table] = {
        "reward_variance": [
            {"feature": feature.name, "alone": feature.alone, "beyond the others": feature.beyond}
            for feature in found.features
        ],
        "reward_edits": [
            {"edit": effect.edit, "change": effect.change, "replies left out": effect.num_left_out}
            for effect in found.effects
        ],
        "reward_words": [
            {"word": row.word, "occurrences": row.effect.total, "effect": row.effect} for row in found.words
        ],
    }
    return {name: table for name, table in tables.items() if table}


def words_said(found: RewardTasteFindings) -> list[tuple[str, str]]:
    """(word, its effect and the number of its occurrences)."""
    return [(row.word, f"{number(row.effect.value)} ({row.effect.total} ×)") for row in found.words]
