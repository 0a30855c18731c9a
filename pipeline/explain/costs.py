"""What the questions of ``explain`` cost, for ``cai plan``: upper bounds, from the requests of the evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.stage import Prepared
from pipeline.evals.cases import build_cases
from pipeline.evals.checkpoints import MODELS
from pipeline.explain.probes import asked_directly
from pipeline.records import Case, Message, Pool, Prompt

CHARS_PER_TOKEN = 4
SPECIMEN = Prompt(
    id="", pool="ordinary", kind="", split="test", messages=[Message(role="user", content="Hello.")]
)  # to count the questions about a reply


def models_of(prepared: Prepared) -> list[str]:
    return list(prepared.config.evaluate.checkpoints or MODELS)


def direct_cases(prepared: Prepared) -> list[Case]:
    """What the evaluation asks without an attack and without a swapped group."""
    suites = prepared.config.evaluate
    held_out = [prompt for prompt in prepared.prompts if prompt.split == suites.split]
    return list(asked_directly(build_cases(suites, held_out, [])).values())


def of_pool(cases: Sequence[Case], pool: Pool, most: int) -> list[Case]:
    return [case for case in cases if case.prompt.pool == pool][:most]


def tokens_per_case(cases: Sequence[Case]) -> int:
    """Mean tokens of a request, estimated from its characters."""
    characters = sum(len(turn["content"]) for case in cases for turn in case.messages)
    return characters // CHARS_PER_TOKEN // max(len(cases), 1)
