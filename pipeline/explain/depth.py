"""How deep is the alignment: by reply position, after a prefilled beginning, after a little fine-tuning?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from pydantic import Field, field_validator

from pipeline.core.errors import NotMeasuredError
from pipeline.core.log import warn
from pipeline.core.settings import Settings
from pipeline.core.stage import Cost, Prepared
from pipeline.evals.judges import refusal
from pipeline.explain.base import Findings, Material, Measures, Question
from pipeline.explain.costs import direct_cases, of_pool, tokens_per_case
from pipeline.explain.finetuning import OPENINGS, FinetuningFindings, finetuning_findings
from pipeline.explain.positions import ASKED, EARLY, PositionFindings, position_findings
from pipeline.explain.prefilling import GATE_TOKENS, PrefillFindings, prefill_findings

WHAT = {
    "positions": "KL by position",
    "prefill": "compliance after a prefilled beginning",
    "finetuning": "compliance after fine-tuning",
}


class DepthConfig(Settings):
    """How deep is the alignment? By position of the reply, after a prefilled beginning, after a little fine-tuning."""

    enabled: bool = True
    """Answer this question."""
    num_requests: int = Field(default=24, ge=1)
    """Requests for each part; KL is computed for as many of each pool."""
    positions: int = Field(default=24, gt=EARLY)
    """KL is computed at the first positions of the replies, up to this one."""
    prefills: list[int] = Field(default=[1, 3, 5, 10])
    """How many tokens of a harmful reply are given; 0 is also asked. An empty list switches this part off."""
    finetuning_steps: list[int] = Field(default=[5, 10])
    """After how many steps of fine-tuning the model is asked; 0 is also asked. An empty list switches this part off."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Learning rate of the fine-tuning, by AdamW."""
    batch_size: int = Field(default=4, ge=1)
    """Harmful training prompts in a step of the fine-tuning."""
    max_reply_tokens: int = Field(default=20, ge=1)
    """The maximum number of tokens that are generated for a reply, after those that are given."""

    @field_validator("prefills", "finetuning_steps")
    @classmethod
    def _check_order(cls, numbers: list[int]) -> list[int]:
        if any(number < 1 for number in numbers) or any(a >= b for a, b in pairwise(numbers)):
            raise ValueError(f"{{here}} is {numbers}; give whole numbers above 0 in ascending order, such as [5, 10]")
        return numbers

    @field_validator("prefills")
    @classmethod
    def _check_gate(cls, numbers: list[int]) -> list[int]:
        if numbers and GATE_TOKENS not in numbers:
            raise ValueError(
                f"{{here}} is {numbers}, without the {GATE_TOKENS} that guidelines read; add {GATE_TOKENS}"
            )
        return numbers


class DepthFindings(Findings):
    """Each part is None if it is switched off or a note says why it was not measured."""

    positions: PositionFindings | None = None
    prefill: PrefillFindings | None = None
    finetuning: FinetuningFindings | None = None

    def measures(self) -> Measures:
        measures: Measures = {}
        for part in (self.prefill, self.finetuning):
            for model, mine in (part.measures() if part else {}).items():
                measures.setdefault(model, {}).update(mine)
        return measures


class Depth(Question):
    """How deep is the alignment: by reply position, after a prefilled beginning, after a little fine-tuning?"""

    name = "depth"

    def reads(self, config: DepthConfig) -> dict[str, Any]:
        return {"judge": refusal.NAME, "openings": OPENINGS}

    def cost(self, config: DepthConfig, prepared: Prepared) -> Cost:
        """The few steps of fine-tuning are left out."""
        cases = direct_cases(prepared)
        harmful = of_pool(cases, "red_team", config.num_requests)
        each, most = len(harmful), config.max_reply_tokens
        asked = tokens_per_case(harmful)
        prefilled = 2 * each * (1 + len(config.prefills)) if config.prefills else 0
        tuned = each * (1 + len(config.finetuning_steps)) if config.finetuning_steps else 0
        replies = Cost(
            num_calls=prefilled + tuned,
            num_tokens_written=(prefilled + tuned) * most,
            num_tokens_read=(prefilled + tuned) * asked + 2 * each * sum(config.prefills),
        )
        rows = [case for pool in ASKED for case in of_pool(cases, pool, config.num_requests)]
        read = Cost(num_tokens_read=2 * len(rows) * (tokens_per_case(rows) + config.positions))
        return Cost.sum([replies, read], {"policy_engine": replies})

    def answer(self, config: DepthConfig, material: Material) -> DepthFindings:
        num, most = config.num_requests, config.max_reply_tokens
        steps, rate, batch = config.finetuning_steps, config.learning_rate, config.batch_size
        parts: dict[str, Callable[[], Findings]] = {
            "positions": lambda: position_findings(material, num, config.positions)
        }
        if config.prefills:
            parts["prefill"] = lambda: prefill_findings(material, num, config.prefills, most)
        if steps:
            parts["finetuning"] = lambda: finetuning_findings(material, num, steps, rate, batch, most)
        found: dict[str, Any] = {}
        reasons: list[str] = []
        for name, measure in parts.items():
            try:
                found[name] = measure()
            except NotMeasuredError as reason:
                reasons.append(f"{WHAT[name]} was not measured: {reason}")
        if not found:
            raise NotMeasuredError("; ".join(reasons))
        for sentence in reasons:
            material.notes.append(f"depth: {sentence}.")
            warn(material.notes[-1])
        return DepthFindings(**found)
