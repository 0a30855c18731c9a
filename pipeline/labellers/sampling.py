"""The replies that are compared: two or more for each prompt, sampled from the policy and the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipeline.constitution.critique import tidy
from pipeline.core.counts import warn_of_share
from pipeline.data.near_duplicates import shingles, similarity
from pipeline.engines.base import Completion, Engine, Request
from pipeline.engines.roles import BASE, policy_engine
from pipeline.engines.worklist import generate_all
from pipeline.labellers.base import TEMPLATE
from pipeline.records import Comparison, Preference, Prompt, derive_seed

if TYPE_CHECKING:
    from pipeline.core.stage import Context

HARMFUL = "red_team"  # the pool whose requests should be declined
NEARLY_EQUAL = 0.9  # Jaccard similarity of the sequences of five characters: about one word in forty differs
Reply = tuple[str, bool]
"""reply, and whether it is only a beginning"""
Replies = dict[str, Reply]
"""prompt id → reply"""


class Sampler:
    """Samples the replies of each pair, and counts the pairs that are dropped.

    Args:
        config: the settings of ``preferences``.
    """

    def __init__(self, config: Any, context: Context) -> None:
        self._config, self._context = config, context
        self.num_empty = self.num_identical = self.num_unanswered = 0
        self.num_cut = 0  # whole replies that were asked for, and reached max_reply_tokens
        self._unanswered = set[str]()  # requests without a reply
        self._open: tuple[str, Engine] | None = None  # the model that is loaded, or has a server

    @property
    def num_dropped(self) -> int:
        return self.num_empty + self.num_identical + self.num_unanswered

    def sampled_pairs(self, prompts: Sequence[Prompt]) -> list[Comparison]:
        """Samples of the policy in pairs (Bai et al. 2022, section 4.1), half as many pairs as samples.

        Each sample is in one pair at most, so labels are independent and every reply counts once. In all six pairs of
        four samples, each reply would be judged and trained on three times.
        """
        policy, sides = self._context.policy, _sides(self._config.num_samples)
        return self.pairs(prompts, *(self.whole(policy, prompts, side) for side in sides))

    def contrast_pairs(self, prompts: Sequence[Prompt]) -> list[Comparison]:
        """A is a reply of the SFT model with the start of a refusal as prefill; B is a reply of the base model. Each
        pair thus has a refusal and an answer: one is wrong for harmful requests, the other for harmless ones."""
        return self.pairs(prompts, self.refusals(prompts), self.whole(BASE, prompts, "b"))

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
        pairs = self.pairs(prompts, a, self.beginnings(prompts))
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
        return self.pairs(prompts, refusals, self.whole(BASE, prompts, "b"))

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
            f"{self.num_identical} with equal or nearly equal replies{missing})",
            "raise preferences.max_reply_tokens or preferences.temperature",
        )

    # --- Replies -------------------------------------------------------------------------------------------------

    def whole(self, who: str, prompts: Sequence[Prompt], side: str) -> Replies:
        """Whole replies of a model. ``side``: part of their seeds."""
        kept = self._replies(who, prompts, side, f"replies of {who}")
        return self._tidied(kept)

    def refusals(self, prompts: Sequence[Prompt]) -> Replies:
        """Whole refusals by the SFT model, which begin as those of the constitution do."""
        begun = self._context.constitution.opening()
        policy = self._context.policy
        kept = self._replies(policy, prompts, "a", f"replies of {policy} that decline", prefix=begun)
        return self._tidied(kept, begun)

    def _tidied(self, replies: Mapping[str, Completion], begun: str = "") -> Replies:
        """Whole sentences. A reply that reached the limit is a beginning, so its end is not learnt."""
        cut = {prompt_id: reply.finish == "length" for prompt_id, reply in replies.items()}
        self.num_cut += sum(cut.values())
        return {
            prompt_id: (
                tidy(f"{begun} {reply.text}".strip(), cut_off=cut[prompt_id]) if reply.text else "",
                cut[prompt_id],
            )
            for prompt_id, reply in replies.items()
        }

    def beginnings(self, prompts: Sequence[Prompt]) -> Replies:
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
                id=f"{prompt.id}/{side}", messages=prompt.messages, seed=self.seed(prompt, side), **usual | settings
            )
            for prompt in prompts
        ]
        done = generate_all(self._engine(who), label, requests, self._context, "replies")
        self._unanswered |= {request.id for request in requests if done[request.id].why_unanswered}
        return {request.id.rpartition("/")[0]: done[request.id] for request in requests}

    def _engine(self, who: str) -> Engine:
        if self._open is None or self._open[0] != who:
            self._open = None  # it needs room for the next one
            path = self._context.model.path if who == BASE else str(self._context.folder("sft") / "model")
            self._open = (who, policy_engine(self._context, path, who))
        return self._open[1]

    def seed(self, prompt: Prompt, side: str) -> int:
        """Of the reply to a prompt on one side of its pair."""
        return derive_seed(self._context.seed, prompt.key, "preference", side)

    def pairs(self, prompts: Sequence[Prompt], *replies: Replies) -> list[Comparison]:
        """All pairs of replies that are neither missing nor alike; the others are counted.

        Args:
            replies: the first replies to all prompts, the second ones, …
        """
        sides = _sides(len(replies))
        return [
            pair
            for prompt in prompts
            for pair in self._pairs_of(prompt, dict(zip(sides, (each[prompt.id] for each in replies), strict=True)))
        ]

    def _pairs_of(self, prompt: Prompt, replies: Mapping[str, Reply]) -> list[Comparison]:
        """Disjoint pairs of the unlike replies to one prompt, in their order. ``replies``: side → reply."""
        answered = [side for side in replies if f"{prompt.id}/{side}" not in self._unanswered]
        whole = [side for side in answered if replies[side][0]]
        unlike = _unlike({side: replies[side][0] for side in whole}, exactly=len(replies) == 2)
        self.num_unanswered += len(replies) // 2 - len(answered) // 2
        self.num_empty += len(answered) // 2 - len(whole) // 2
        self.num_identical += len(whole) // 2 - len(unlike) // 2
        return [
            Comparison(
                id=prompt.id if number == 1 else f"{prompt.id}/pair-{number}",
                prompt=prompt,
                reply_a=replies[a][0],
                reply_b=replies[b][0],
                seed_a=self.seed(prompt, a),
                seed_b=self.seed(prompt, b),
                begun_a=replies[a][1],
                begun_b=replies[b][1],
            )
            for number, (a, b) in enumerate(zip(unlike[::2], unlike[1::2], strict=False), start=1)
        ]


def _sides(number: int) -> list[str]:
    """Names of so many replies to one prompt: they are in the ids of requests, and in their seeds."""
    return ["a", "b", *map(str, range(3, number + 1))]


def _unlike(replies: Mapping[str, str], exactly: bool) -> list[str]:
    """The sides of the replies that differ from all before them.

    Args:
        exactly: only equal replies are alike. Of two replies, no other one could take the place of a similar one.
    """
    kept: dict[str, frozenset[str]] = {}
    for side, reply in replies.items():
        parts = frozenset([reply]) if exactly else shingles(reply)
        if all(similarity(parts, other) < NEARLY_EQUAL for other in kept.values()):
            kept[side] = parts
    return list(kept)


def filed(comparison: Comparison, labeller: str) -> Preference:
    """The label that the pool of the prompt gives: a refusal (reply A) if it is harmful, an answer (B) if not."""
    return Preference(
        comparison=comparison,
        judgements=[],
        probability_a=1.0 if comparison.prompt.pool == HARMFUL else 0.0,
        labeller=labeller,
        template=TEMPLATE,
    )
