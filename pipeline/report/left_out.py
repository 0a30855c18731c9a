"""What the stages shortened, left out or could not read: from their metrics, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.core.stage import stage_of
from pipeline.report.build import Report

# stage → metric → what happened, why, and the metric that counts what could have been affected
LOSSES: dict[str, dict[str, tuple[str, str, str]]] = {
    "prompts": {
        "num_empty_dropped": ("left out", "the row is empty", "num_prompts"),
        "num_duplicates_dropped": ("left out", "the request is there twice", "num_prompts"),
        "num_malformed_dropped": ("left out", "the row is not as the layout of its public set says", "num_prompts"),
        "num_other_class_dropped": ("left out", "the public set files the request in the other class", "num_prompts"),
        "num_mended": ("changed", "half characters or NUL are replaced by U+FFFD", "num_prompts"),
    },
    "critique": {
        "num_shortened": ("shortened", "cut after the last whole sentence, or before a repetition", "num_texts"),
        "num_empty": ("left out", "the reply, critique or revision is empty or has no whole sentence", "num_texts"),
        "num_copies_or_loops": (
            "left out",
            "the revision copies the request or the instruction, or repeats a phrase",
            "num_texts",
        ),
        "num_too_long_for_the_context": ("left out", "it does not fit the model's context", "num_texts"),
        "num_refused_by_the_server": ("left out", "the server refuses it", "num_texts"),
        "num_failed_requests": ("left out", "the server did not answer", "num_texts"),
    },
    "sft": {
        "num_rows_cut": ("shortened", "the row is longer than sft.max_length_tokens", "num_rows"),
        "num_rows_left_out": ("left out", "the prompt alone has sft.max_length_tokens or more tokens", "num_rows"),
    },
    "preferences": {
        "num_empty_dropped": (
            "left out",
            "one of the replies is empty or has no whole sentence",
            "num_pairs_asked",
        ),
        "num_unanswered_dropped": (
            "left out",
            "one of the replies is missing: it does not fit the context, is refused or has no answer",
            "num_pairs_asked",
        ),
        "num_identical_dropped": ("left out", "both replies are the same, or nearly", "num_pairs_asked"),
        "num_replies_cut": (
            "shortened",
            "the reply is longer than preferences.max_reply_tokens; its end is not learnt",
            "",
        ),
        "num_parse_failures": ("without a label", "the labeller's answer can't be read", "num_judgements"),
        "num_refused_by_the_server": ("without a label", "the server refuses the question", "num_judgements"),
        "num_failed_requests": ("without a label", "the server did not answer the question", "num_judgements"),
    },
    "reward": {
        "num_unusable": ("left out", "the pair has no usable label", ""),
        "num_left_out_by_ratio": ("left out", "reward.helpful_ratio limits the pairs of harmless requests", ""),
        "num_texts_cut": ("shortened", "the text is longer than reward.max_length_tokens", ""),
    },
    "align": {
        "num_rows_cut": ("shortened", "the row is longer than align.max_length_tokens", "num_rows"),
        "num_rows_left_out": ("left out", "the prompt alone has align.max_length_tokens or more tokens", "num_rows"),
        "num_rows_equal": ("left out", "both replies have the same tokens where they are compared", "num_rows"),
        "num_unreadable_rewards": ("with reward 0", "no answer of the constitution's judge can be read", ""),
    },
    "evaluate": {
        "num_unanswered": (
            "in no rate",
            "the request does not fit the context, or has no answer",
            "num_requests",
        ),
        "num_unjudged": ("in no rate", "the judge's answer can't be read, or there is no reply", "num_requests"),
        "num_unreadable_comparisons": ("no win counts it", "the pair judge's answer can't be read", ""),
    },
}


@dataclass(frozen=True)
class Loss:
    """``asked``: how many could have been affected; None: the stage does not say."""

    stage: str
    number: int
    asked: int | None
    effect: str
    why: str


def losses(report: Report) -> list[Loss]:
    """Everything that a stage of the run did not use as it was, without zeros."""
    found = []
    for task, manifest in report.manifests.items():
        for name, (effect, why, of) in LOSSES.get(stage_of(task), {}).items():
            if number := _total(manifest.metrics.get(name)):
                asked = _total(manifest.metrics.get(of))
                found.append(Loss(task, number, asked or None, effect, why))
    return found


def _total(value: Any) -> int:
    """A metric that may be counted by pool."""
    return sum(value.values()) if isinstance(value, dict) else int(value or 0)
