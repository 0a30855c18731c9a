"""Collect the cases, questions and labelled pairs of the selected suites."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.evals.config import EvaluateConfig
from pipeline.evals.suites.base import SUITES, Questions
from pipeline.records import Case, Comparison, Prompt


def build_cases(config: EvaluateConfig, held_out: Sequence[Prompt], notes: list[str]) -> list[Case]:
    """All cases of the selected suites. ``Case.suites`` names every suite that counts the case.

    Args:
        held_out: the run's own prompts of the evaluated split, which the built-in suites include.
        notes: notes for the report, such as dropped rows, are appended to it.
    """
    cases: list[Case] = []
    for name in SUITES:
        if counting := config.counting(name):
            cases += [_marked(case, counting) for case in config.suite(name).cases(held_out, notes)]
    if missing := [name for name in SUITES if name not in config.suites]:
        notes.append(f"Suites not run: {', '.join(missing)}.")
    return list({case.id: case for case in cases}.values())


def _marked(case: Case, counting: list[str]) -> Case:
    return case.model_copy(update={"id": f"{counting[-1]}/{case.id}", "suites": counting})


def build_questions(config: EvaluateConfig, notes: list[str]) -> dict[str, Questions]:
    """Suite → its questions. Suites without questions are left out."""
    found = {suite.name: suite.questions(notes) for suite in config.selected}
    return {name: questions for name, questions in found.items() if questions is not None}


def build_comparisons(config: EvaluateConfig, notes: list[str]) -> dict[str, list[Comparison]]:
    """Suite → its pairs that people decided. Suites without pairs are left out."""
    found = {suite.name: suite.comparisons(notes) for suite in config.selected}
    return {name: comparisons for name, comparisons in found.items() if comparisons}
