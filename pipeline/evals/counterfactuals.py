"""Counterfactual prompts: none may be near to an evaluated one, how replies about groups are compared, and which
attributes a run was trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context, Prepared
from pipeline.data.counterfactuals import FIELD, CounterfactualSet, attribute_of, may_train_on
from pipeline.data.near_duplicates import NearIndex
from pipeline.evals.cases import build_cases
from pipeline.evals.judges import refusal
from pipeline.evals.suites.bias import bias_cases
from pipeline.labellers.counterfactual import consistency_pairs, same_pairs
from pipeline.labellers.sampling import Sampler
from pipeline.records import Comparison, Preference, Prompt, TrainingRow, read_records


def outcome(reply: str, request: str) -> refusal.Outcome:
    """Whether a reply declines, by its wording."""
    return refusal.judge_reply(reply, request)[0]


def compare_groups(pairs: str, sampler: Sampler, context: Context) -> tuple[list[Comparison], int]:
    """Comparisons of counterfactual prompts.

    Args:
        pairs: the setting ``preferences.pairs``. With ``sampled`` (and where the constitution does not show how a
            refusal begins), there are comparisons only where the policy declines for some groups alone.

    Returns:
        the comparisons, and how many are left out because the base declines the harmless prompt that names no group.
    """
    sets, opening = context.counterfactuals, context.constitution.opening() if pairs != "sampled" else ""
    if opening:
        return same_pairs(sampler, sets, opening, pairs == "openings", outcome)
    return consistency_pairs(sampler, context.policy, sets, outcome), 0


def refuse_evaluated(sets: Sequence[CounterfactualSet], prepared: Prepared) -> None:
    """Refuse counterfactual prompts that nearly equal a prompt that is held out, that this run evaluates, or that the
    suite ``bias`` may ask another time.

    Raises:
        ConfigError: gives the first one.
    """
    if not sets:
        return
    held_out = [prompt for prompt in prepared.prompts if prompt.split != "train"]
    asked = [case.prompt for case in (*build_cases(prepared.config.evaluate, held_out, []), *bias_cases(None))]
    index = NearIndex({prompt.id: prompt.request for prompt in (*held_out, *asked)})
    for each in sets:
        for prompt in each.prompts:
            if near := index.closest(prompt.request):
                raise ConfigError(
                    f"{FIELD}: template {each.template!r} for {each.attribute!r} ({prompt.request[:60]!r}) nearly "
                    f"equals the held-out prompt {near[0]}; reword the template."
                )


def attributes_said(trained: Collection[str], evaluated: Collection[str]) -> str:
    """Which of the evaluated attributes were trained on, and which never are, for a reader who trains no models."""
    held_out = [name for name in sorted(evaluated) if name not in trained and not may_train_on(name)]
    never = (
        f"No counterfactual prompt is ever about {_listed(held_out, 'or')}."
        if held_out
        else "No attribute is held out."
    )
    if not trained:
        return f"The run trained on no counterfactual prompts. {never}"
    both = [name for name in sorted(evaluated) if name in trained]
    seen = f"is asked about {_listed(both)} too, with other templates" if both else "is asked about none of them"
    return f"The run trained on counterfactual prompts about {_listed(sorted(trained))}. It {seen}. {never}"


def _listed(names: Sequence[str], word: str = "and") -> str:
    *others, last = (name.replace("_", " ") for name in names)
    return f"{', '.join(others)} {word} {last}" if others else last


def trained_attributes(folders: Mapping[str, Path]) -> list[str]:
    """The attributes about whose groups counterfactual prompts were trained on, sorted.

    Args:
        folders: stage → folder, of the stages that ran.
    """
    ids: set[str] = set()
    if "sft" in folders:
        ids |= {row.source_id for row in read_records(folders["sft"] / "rows.jsonl", TrainingRow)}
    for stage, name in (("preferences", "preferences.jsonl"), ("reward", "rows.jsonl")):
        if stage in folders:
            ids |= {row.comparison.prompt.id for row in read_records(folders[stage] / name, Preference)}
    if "align" in folders and (folders["align"] / "prompts.jsonl").exists():  # only online methods have it
        ids |= {prompt.id for prompt in read_records(folders["align"] / "prompts.jsonl", Prompt)}
    return sorted({attribute for prompt_id in ids if (attribute := attribute_of(prompt_id))})
