"""Which principle did the work: a sentence, bars, the table of agreement, and tables."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.evals.results import Estimate
from pipeline.explain.principles import Principle, PrinciplesFindings
from pipeline.report.explained.section import Section, Table
from pipeline.report.wording import interval, listed, percent, value

Row = tuple[str, list[Estimate | None]]
MOST_NAMED = 3  # in a sentence
LEAST_REVISIONS = 5  # of a principle that is named for them
LEVEL = 0.05  # of the test whether critiques differ
REVISIONS = ["share of the words that a revision changes", "answers that a revision turns into a refusal"]
TURNED = ["labels that turn without the principle"]


def section(found: PrinciplesFindings, models: list[str]) -> Section:
    """The section, for models of which the first is that before training and the last is explained."""
    sentences = [_labels_said(found), _critiques_said(found), *_standing_out(found)]
    return Section(
        name="principles",
        title="Which principle did the work?",
        said=" ".join(filter(None, sentences)),
        is_warning=bool(found.at_random or found.contradictions),
        tables={"principles": [_row(rule) for rule in found.principles], "principle_pairs": _pairs(found)},
        findings=found,
    )


# --- The sentence --------------------------------------------------------------------------------------------------


def _labels_said(found: PrinciplesFindings) -> str:
    if not found.num_labels:
        given = [
            f"{number:,} {what}"
            for number, what in (
                (found.num_labels_by_pool, "follow from the file in which the prompt stands"),
                (found.num_labels_by_constitution, "are written in the constitution"),
                (found.num_labels_by_counterfactuals, "are written beside a template about groups"),
            )
            if number
        ]
        return f"No principle labelled a pair of replies: {listed([*given], 'and') or 'there are no labels'}."
    shared = [rule for rule in found.principles if rule.labels and rule.labels.turned.total]
    if not shared:
        return (
            f"An AI gave {found.num_labels:,} labels, each by one principle alone, so nothing shows which label would "
            "be another without it."
        )
    known = sorted(filter(lambda rule: _num_shared(rule) >= found.min_labels, shared), key=_turned, reverse=True)
    counted = f"An AI gave {found.num_labels:,} labels"
    if not known:
        return (
            f"{counted}. No principle shares {found.min_labels} of them with others, too few to say which decided most."
        )
    if not _turned(known[0]):
        return f"{counted}. None of them would prefer another reply without any one of the principles that they share."
    return (
        f"{counted}. The largest share that depends on one principle is that of “{known[0].title}”: without it, "
        f"{_turned_said(known[0])} of its labels prefer another reply, or none"
        + (f"; the smallest is that of “{known[-1].title}”: {_turned_said(known[-1])}." if len(known) > 1 else ".")
    )


def _num_shared(rule: Principle) -> int:
    return rule.labels.turned.total if rule.labels else 0


def _turned_said(rule: Principle) -> str:
    return f"{value(rule.labels.turned)} {interval(rule.labels.turned)}" if rule.labels else ""


def _turned(rule: Principle) -> float:
    return (rule.labels.turned.value or 0.0) if rule.labels else 0.0


def _critiques_said(found: PrinciplesFindings) -> str:
    asked = [rule for rule in found.principles if rule.critiques]
    if not asked:
        return "There are no critiques." if found.num_exchanges == 0 else ""
    number = sum(rule.critiques.num_revisions for rule in asked if rule.critiques)
    turned = [rule.critiques.turned_to_refusal for rule in asked if rule.critiques]
    complied = sum(estimate.total for estimate in turned)
    became = "no reply was an answer before it was revised"
    if complied:
        share = percent(sum(estimate.count or 0 for estimate in turned) / complied)
        became = f"{share} of the {complied:,} answers became refusals"
    said = f"In {number:,} revisions under {len(asked)} of {len(found.principles)} principles, {became}."
    if found.critiques_differ_p is None:
        return said
    if found.critiques_differ_p >= LEVEL:
        return f"{said} There is no evidence that critiques under one principle change more than under another."
    often = [rule for rule in asked if rule.critiques and rule.critiques.num_revisions >= LEAST_REVISIONS]
    if len(often) < 2:
        return f"{said} Critiques under some principles change more than under others."
    most, least = max(often, key=_edited), min(often, key=_edited)
    return (
        f"{said} Critiques under “{most.title}” changed the replies most ({percent(_edited(most))} of the words), and "
        f"under “{least.title}” least ({percent(_edited(least))})."
    )


def _edited(rule: Principle) -> float:
    return (rule.critiques.share_edited.value or 0.0) if rule.critiques else 0.0


def _standing_out(found: PrinciplesFindings) -> list[str]:
    def named(ids: Sequence[str]) -> str:
        return _few([f"“{found.titled(name)}”" for name in ids])

    def both(pairs: Sequence[tuple[str, str]]) -> str:
        return _few([f"“{found.titled(a)}” and “{found.titled(b)}”" for a, b in pairs], "; ")

    said = []
    if found.contradictions:
        said.append(f"These contradict each other: {both(found.contradictions)}.")
    if found.at_random:
        verb = "labels" if len(found.at_random) == 1 else "label"
        said.append(f"{named(found.at_random)} {verb} no better than a coin, by the other principles.")
    if found.near_duplicates:
        said.append(f"These nearly always agree, so one of each two may do: {both(found.near_duplicates)}.")
    if found.never_decisive:
        said.append(f"No label turns without {named(found.never_decisive)}.")
    if found.never_drawn:
        said.append(f"Never used: {named(found.never_drawn)}.")
    return said


def _few(parts: Sequence[str], separator: str = ", ") -> str:
    rest = len(parts) - MOST_NAMED
    return separator.join(parts[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


# --- Pictures ------------------------------------------------------------------------------------------------------


def revision_rows(found: PrinciplesFindings) -> list[Row]:
    """(title, [share of words changed, share of answers turned into refusals]) of the principles with critiques."""
    return [
        (rule.title, [rule.critiques.share_edited, rule.critiques.turned_to_refusal])
        for rule in found.principles
        if rule.critiques
    ]


def turned_rows(found: PrinciplesFindings) -> list[Row]:
    """(title, [share of labels that turn without it]) of the principles that share labels; most decisive first."""
    shared = [rule for rule in found.principles if rule.labels and rule.labels.turned.total]
    ranked = sorted(shared, key=_turned, reverse=True)
    return [(rule.title, [rule.labels.turned]) for rule in ranked if rule.labels]


def heat(found: PrinciplesFindings) -> list[tuple[str, list[Estimate | None]]]:
    """(title, agreement with each principle) of the principles that share comparisons; None: they share none."""
    agreement = {(pair.first, pair.second): pair.agreement for pair in found.pairs}
    met = {name for pair in agreement for name in pair}
    rules = [rule for rule in found.principles if rule.id in met]
    return [(a.title, [agreement.get((a.id, b.id)) or agreement.get((b.id, a.id)) for b in rules]) for a in rules]


# --- Tables --------------------------------------------------------------------------------------------------------


def _row(rule: Principle) -> dict[str, object]:
    asked, labels = rule.critiques, rule.labels
    none = Estimate(value=None)
    return {
        "principle": rule.title,
        "revisions": asked.num_revisions if asked else 0,
        "words_edited": asked.words_edited if asked else none,
        "turned_to_refusal": asked.turned_to_refusal if asked else none,
        "labels": labels.num_labels if labels else 0,
        "labels_alone": labels.num_alone if labels else 0,
        "unreadable": labels.num_unreadable if labels else 0,
        "mean_logit": labels.mean_logit if labels else none,
        "prefers_a": labels.prefers_a if labels else none,
        "agrees_with_others": labels.with_others if labels else none,
        "labels_that_turn_without_it": labels.turned if labels else none,
    }


def _pairs(found: PrinciplesFindings) -> Table:
    return [
        {
            "principle": found.titled(pair.first),
            "other": found.titled(pair.second),
            "agreement": pair.agreement,
            "p_corrected": pair.p_corrected,
        }
        for pair in sorted(found.pairs, key=lambda pair: pair.agreement.value or 0)
    ]
