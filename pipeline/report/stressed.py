"""The tables of ``cai constitution stress``, and its page in Markdown."""

from __future__ import annotations

from typing import Any

from pipeline.evals.results import Estimate
from pipeline.explain.stress import Stress, sentences
from pipeline.report.wording import listed, markdown_table, p_value

Rows = list[dict[str, Any]]


def summary(stressed: Stress) -> str:
    """Who judged how many requests, in one sentence."""
    numbers = [f"{number} {source}" for source, number in stressed.num_requests.items()]
    lost = stressed.num_without_replies
    left_out = f"; {lost} without two different replies are left out" if lost else ""
    return (
        f"{stressed.constitution}, judged by {stressed.engine} ({stressed.labeller}) on {listed(numbers, 'and')} "
        f"requests{left_out}."
    )


def principle_rows(stressed: Stress) -> Rows:
    """One row for each principle: how many of its judgements turn, and with what. What was not asked has no column."""
    rows: Rows = [
        {
            "principle": rule.id,
            "judgements": rule.num_judgements,
            "unreadable": rule.num_unreadable,
            "turn with the order": rule.order_flips,
            "turn with the wording": rule.wording_flips,
            "turn for the opposite": rule.opposite_turns,
        }
        for rule in stressed.found.principles
    ]
    empty = {
        name for name in rows[0] if all(isinstance(row[name], Estimate) and row[name].value is None for row in rows)
    }
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]


def pair_rows(stressed: Stress) -> Rows:
    """One row for each pair, the pair that agrees least first."""
    ranked = sorted(stressed.found.pairs, key=lambda pair: pair.agreement.value or 0.0)
    return [
        {
            "first": pair.first,
            "second": pair.second,
            "prefer the same reply": pair.agreement,
            "agree as often as not (Holm)": p_value(pair.p_corrected),
        }
        for pair in ranked
    ]


def markdown(stressed: Stress) -> str:
    said = "\n".join(f"- {sentence}" for sentence in sentences(stressed))
    tables = [markdown_table(rows) for rows in (principle_rows(stressed), pair_rows(stressed))]
    return "\n\n".join(["# Principles under stress", summary(stressed), said, *filter(None, tables)]) + "\n"
