"""The replies that are compared: two for each prompt, sampled from the SFT model and the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipeline.constitution.critique import tidy
from pipeline.core.counts import warn_of_share
from pipeline.engines.base import Completion, Engine, Request
from pipeline.engines.roles import BASE, policy_engine
from pipeline.engines.worklist import generate_all
from pipeline.labellers.base import TEMPLATE
from pipeline.records import Comparison, Preference, Prompt, derive_seed

if TYPE_CHECKING:
    from pipeline.core.stage import Context

HARMFUL = "red_team"  # the pool whose requests should be declined
Replies = dict[str, tuple[str, bool]]
"""prompt id → reply, and whether it is only a beginning"""


class Sampler:
    """Samples the two replies of each pair, and counts the pairs that are dropped.

    Args:
        config: the settings of ``preferences``.
    """

    def __init__(self, config: Any, context: Context) -> None:
        self._config, self._context = config, context
        self.num_empty = self.num_identical = self.num_unanswered = 0
        self._unanswered = set[str]()  # prompts without one of the two replies
        self._open: tuple[str, Engine] | None = None  # the model that is loaded, or has a server

    @property
    def num_dropped(self) -> int:
        return self.num_empty + self.num_identical + self.num_unanswered

    def sampled_pairs(self, prompts: Sequence[Prompt]) -> list[Comparison]:
        """Two samples of the SFT model (Bai et al. 2022, section 4.1)."""
        a, b = (self._whole("sft", prompts, side) for side in ("a", "b"))
        return self._pairs(prompts, a, b)

    def contrast_pairs(self, prompts: Sequence[Prompt]) -> list[Comparison]:
        """A is a reply of the SFT model with the start of a refusal as prefill; B is a reply of the base model. Each
        pair thus has a refusal and an answer: one is wrong for harmful requests, the other for harmless ones."""
        return self._pairs(prompts, self._refusals(prompts), self._whole(BASE, prompts, "b"))

    def opening_pairs(
        self, prompts: Sequence[Prompt], refusals: Mapping[str, str] = MappingProxyType({})
    ) -> list[Comparison]:
        """What a decision needs of ``contrast_pairs``: A is the opening of the constitution's refusals, and B the
        beginning of the base model's likeliest reply.

        Args:
            refusals: prompt id → a whole refusal. It takes the place of the opening if it begins with it.
        """
        opening = self._context.constitution.opening()
        a: Replies = {prompt.id: (opening, True) for prompt in prompts}
        a |= {row_id: (text, False) for row_id, text in refusals.items() if text.startswith(opening)}
        pairs = self._pairs(prompts, a, self._beginnings(prompts))
        return [pair.model_copy(update={"opening": opening}) for pair in pairs]

    def worked_pairs(self, openings: bool) -> list[Comparison]:
        """Two pairs per contrast of the constitution, for the harmful request and for its harmless twin. A is the
        written refusal in both; B is a reply of the base model. With ``openings`` as in ``opening_pairs``; only the
        harmful request then has the whole refusal, so that its words are learnt."""
        contrasts = self._context.constitution.contrast_prompts(self._config.num_contrasts)
        prompts = [prompt for _, harmful, twin in contrasts for prompt in (harmful, twin)]
        if not prompts:
            return []
        if openings:
            return self.opening_pairs(prompts, {harmful.id: contrast.revision for contrast, harmful, _ in contrasts})
        refusals = {prompt.id: (contrast.revision, False) for contrast, *both in contrasts for prompt in both}
        return self._pairs(prompts, refusals, self._whole(BASE, prompts, "b"))

    def release(self) -> Engine | None:
        """Let go of the open model. Returns its engine if it is the base model."""
        who, engine = self._open or ("", None)
        self._open = None
        return engine if who == BASE else None

    def warn_of_losses(self, num_kept: int) -> None:
        """Warn if many pairs are left out. Raises StageError if all are."""
        missing = f", {self.num_unanswered} without one of the replies" if self.num_unanswered else ""
        warn_of_share(
            self.num_dropped,
            num_kept + self.num_dropped,
            f"pairs are left out ({self.num_empty} with an empty reply or one without a whole sentence, "
            f"{self.num_identical} with two equal replies{missing})",
            "raise preferences.max_reply_tokens or preferences.temperature",
        )

    # --- Replies -------------------------------------------------------------------------------------------------

    def _whole(self, who: str, prompts: Sequence[Prompt], side: str) -> Replies:
        kept = self._replies(who, prompts, side, f"replies of {who}")
        return {prompt_id: (_tidied(reply), False) for prompt_id, reply in kept.items()}

    def _refusals(self, prompts: Sequence[Prompt]) -> Replies:
        """Whole refusals by the SFT model, which begin as those of the constitution do."""
        begun = self._context.constitution.opening()
        kept = self._replies("sft", prompts, "a", "replies of sft that decline", prefix=begun)
        return {prompt_id: (_tidied(reply, begun), False) for prompt_id, reply in kept.items()}

    def _beginnings(self, prompts: Sequence[Prompt]) -> Replies:
        """How the base model's likeliest replies begin."""
        kept = self._replies(
            BASE,
            prompts,
            "b",
            "how replies of base begin",
            max_new_tokens=self._config.max_opening_tokens,
            temperature=0.0,
        )
        return {prompt_id: (reply.text, reply.finish == "length") for prompt_id, reply in kept.items()}

    def _replies(
        self, who: str, prompts: Sequence[Prompt], side: str, label: str, **settings: Any
    ) -> dict[str, Completion]:
        """Prompt id → what a model says. ``settings``: of the requests, where they differ from ``preferences``."""
        config = self._config
        usual = {
            "max_new_tokens": config.max_reply_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
        }
        requests = [
            Request(
                id=f"{prompt.id}/{side}", messages=prompt.messages, seed=self._seed(prompt, side), **usual | settings
            )
            for prompt in prompts
        ]
        done = generate_all(self._engine(who), label, requests, self._context, "replies")
        kept = {request.id.rpartition("/")[0]: done[request.id] for request in requests}
        self._unanswered |= {prompt_id for prompt_id, reply in kept.items() if reply.why_unanswered}
        return kept

    def _engine(self, who: str) -> Engine:
        if self._open is None or self._open[0] != who:
            self._open = None  # it needs room for the next one
            path = self._context.model.path if who == BASE else str(self._context.folder("sft") / "model")
            self._open = (who, policy_engine(self._context, path, who))
        return self._open[1]

    def _seed(self, prompt: Prompt, side: str) -> int:
        return derive_seed(self._context.seed, prompt.key, "preference", side)

    def _pairs(self, prompts: Sequence[Prompt], a: Replies, b: Replies) -> list[Comparison]:
        comparisons = []
        for prompt in prompts:
            (reply_a, begun_a), (reply_b, begun_b) = a[prompt.id], b[prompt.id]
            if prompt.id in self._unanswered:
                self.num_unanswered += 1
            elif not reply_a or not reply_b:
                self.num_empty += 1
            elif reply_a == reply_b:
                self.num_identical += 1
            else:
                comparisons.append(
                    Comparison(
                        id=prompt.id,
                        prompt=prompt,
                        reply_a=reply_a,
                        reply_b=reply_b,
                        seed_a=self._seed(prompt, "a"),
                        seed_b=self._seed(prompt, "b"),
                        begun_a=begun_a,
                        begun_b=begun_b,
                    )
                )
        return comparisons


def _tidied(reply: Completion, begun: str = "") -> str:
    return tidy(f"{begun} {reply.text}".strip(), cut_off=reply.finish == "length") if reply.text else ""


def filed(comparison: Comparison, labeller: str) -> Preference:
    """The label that the pool of the prompt gives: a refusal (reply A) if it is harmful, an answer (B) if not."""
    return Preference(
        comparison=comparison,
        judgements=[],
        probability_a=1.0 if comparison.prompt.pool == HARMFUL else 0.0,
        labeller=labeller,
        template=TEMPLATE,
    )
