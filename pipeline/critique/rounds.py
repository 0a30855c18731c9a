"""Rounds of critique and revision over all prompts at once (Bai et al. 2022, section 3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.constitution.critique import (
    critique_examples,
    critique_question,
    revision_examples,
    revision_question,
    tidy,
)
from pipeline.constitution.schema import Principle
from pipeline.core.copies import copies_instruction, repeats_itself, repeats_request
from pipeline.core.counts import warn_of_many, warn_of_share
from pipeline.core.stage import Context
from pipeline.critique.config import CritiqueConfig
from pipeline.engines.base import Completion, Engine, Request
from pipeline.engines.worklist import generate_all
from pipeline.records import Message, Prompt, Revision, derive_seed, derived_rng


class Rounds:
    """The steps of the method over all prompts at once. Each prompt and step has its own seed."""

    critic: Engine
    """Set after the first replies: its model may need the room of the policy's."""

    def __init__(self, config: CritiqueConfig, context: Context) -> None:
        self._config, self._context = config, context
        constitution, number = context.constitution, config.num_few_shot
        self._critique_examples = {pool: critique_examples(constitution, pool, number) for pool in constitution.revise}
        self._revision_examples = {pool: revision_examples(constitution, pool, number) for pool in constitution.revise}
        self.num_texts = self.num_empty = self.num_shortened = self.num_too_long = self.num_refused = 0
        self.num_failed = self.num_copies_or_loops = 0
        self.num_asked = 0  # critiques and revisions
        self.unusable = Counter[str]()  # why → how many critiques and revisions can't be used

    def seed(self, prompt: Prompt, number: int, step: str) -> int:
        return derive_seed(self._context.seed, prompt.key, number, step)

    def first_replies(self, policy: Engine, prompts: Sequence[Prompt]) -> dict[str, Completion]:
        asks = {prompt.id: prompt.messages for prompt in prompts}
        return self._ask(policy, "first replies", prompts, asks, 0, "reply", self._config.max_reply_tokens)

    def critique_and_revise(
        self, number: int, prompts: Sequence[Prompt], current: dict[str, str]
    ) -> dict[str, Revision]:
        """One round: prompt id → revision. A prompt whose critique or revision can't be used is left out."""
        drawn = {prompt.id: self._principle(prompt, number) for prompt in prompts}
        asks = {
            p.id: _asked(self._critique_examples[p.pool], critique_question(p.messages, current[p.id], drawn[p.id]))
            for p in prompts
        }
        label = f"critiques, round {number}"
        critiques = self._ask(self.critic, label, prompts, asks, number, "critique", self._config.max_critique_tokens)
        self._count(critiques)
        prompts = [prompt for prompt in prompts if critiques[prompt.id].text]
        asks = {
            p.id: _asked(
                self._revision_examples[p.pool],
                revision_question(p.messages, current[p.id], critiques[p.id].text, drawn[p.id]),
            )
            for p in prompts
        }
        label = f"revisions, round {number}"
        revised = self._ask(self.critic, label, prompts, asks, number, "revision", self._config.max_revision_tokens)
        wrong = {p.id: why_no_revision(revised[p.id].text, p.request, drawn[p.id]) for p in prompts}
        self.num_copies_or_loops += sum(map(bool, wrong.values()))
        self._count(revised, wrong)
        return {
            prompt.id: Revision(
                round=number,
                principle_id=drawn[prompt.id].id,
                critique=critiques[prompt.id].text,
                revision=revised[prompt.id].text,
                critique_seed=self.seed(prompt, number, "critique"),
                revision_seed=self.seed(prompt, number, "revision"),
            )
            for prompt in prompts
            if revised[prompt.id].text and not wrong[prompt.id]
        }

    def _count(self, answers: Mapping[str, Completion], wrong: Mapping[str, str] | None = None) -> None:
        """Count answers, and those that can't be used: without text, or ``wrong`` (prompt id → why, or "")."""
        self.num_asked += len(answers)
        reasons = (
            (wrong or {}).get(prompt_id, "") if answer.text else why_unusable(answer)
            for prompt_id, answer in answers.items()
        )
        self.unusable.update(filter(None, reasons))
        if self.unusable.total() == self.num_asked:
            self.warn_of_unusable_answers()  # it stops before the next round is paid for

    def counts(self) -> dict[str, int]:
        """What was shortened, left out or could not be read, for the metrics."""
        return {
            "num_texts": self.num_texts,
            "num_empty": self.num_empty,
            "num_copies_or_loops": self.num_copies_or_loops,
            "num_shortened": self.num_shortened,
            "num_too_long_for_the_context": self.num_too_long,
            "num_refused_by_the_server": self.num_refused,
            "num_failed_requests": self.num_failed,
            "num_unusable_answers_of_the_critic": self.unusable.total(),
        }

    def warn_of_unusable_answers(self) -> None:
        """Warn if many critiques and revisions can't be used. Raises StageError if none can."""
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.unusable.items())
        warn_of_share(
            self.unusable.total(),
            self.num_asked,
            f"answers of the critic {self.critic.name} can't be used ({reasons})",
            "use another critic (engine) or, where answers are cut, raise critique.max_critique_tokens and "
            "critique.max_revision_tokens",
            kept=self._context.work,
        )

    def warn_of_losses(self) -> None:
        """Warn if many replies, critiques and revisions are shortened or empty."""
        shortened = "replies, critiques and revisions are shortened to whole sentences or before a repetition"
        raised = "raise critique.max_reply_tokens, critique.max_critique_tokens or critique.max_revision_tokens"
        warn_of_many(self.num_shortened, self.num_texts, shortened, f"to keep them whole, {raised}")
        empty = "replies, critiques and revisions are left out, because they are empty or have no whole sentence"
        warn_of_many(self.num_empty, self.num_texts, empty, raised)

    def _principle(self, prompt: Prompt, number: int) -> Principle:
        """A principle that no earlier round of this prompt used, as long as there are unused ones."""
        rng = derived_rng(self._context.seed, prompt.key, "principles")
        return self._context.constitution.sample(prompt.pool, number, rng)[-1]

    def _ask(
        self,
        engine: Engine,
        label: str,
        prompts: Sequence[Prompt],
        asks: dict[str, list[Message]],
        number: int,
        step: str,
        max_tokens: int,
    ) -> dict[str, Completion]:
        requests = [
            Request(
                id=f"{prompt.id}/{number}/{step}",
                messages=asks[prompt.id],
                seed=self.seed(prompt, number, step),
                max_new_tokens=max_tokens,
                temperature=self._config.temperature,
                top_p=self._config.top_p,
            )
            for prompt in prompts
        ]
        done = generate_all(engine, label, requests, self._context, f"{number}-{step}")
        return {prompt.id: self._tidy(done[request.id]) for prompt, request in zip(prompts, requests, strict=True)}

    def _tidy(self, completion: Completion) -> Completion:
        text = tidy(completion.text, cut_off=completion.finish == "length")
        self.num_texts += 1
        self.num_shortened += bool(text) and text != completion.text
        self.num_too_long += completion.finish == "too_long"
        self.num_refused += completion.finish == "refused"
        self.num_failed += completion.finish == "failed"
        self.num_empty += not text and not completion.why_unanswered
        return Completion(**{**vars(completion), "text": text})


def why_unusable(answer: Completion) -> str:
    """Why an answer without text can't be used, in words that follow its number."""
    if answer.finish == "too_long":
        return "too long for its context"
    without_answer = {"refused": "refused by the server", "failed": "without an answer of the server"}
    return without_answer.get(answer.finish, "empty or without a whole sentence")


def why_no_revision(text: str, request: str, principle: Principle) -> str:
    """Why a text is no revision of a reply, in words that follow its number; "" if it may be one.

    A small critic sometimes copies what it was asked, or repeats a phrase until its length limit. A policy that is
    trained on such texts learns to do the same.
    """
    if repeats_request(text, request):
        return "only a copy of the request"
    if copies_instruction(text, principle.revision_request):
        return "with a copy of the instruction"
    return "that repeat a phrase" if repeats_itself(text) else ""


def _asked(examples: list[Message], question: str) -> list[Message]:
    return [*examples, Message(role="user", content=question)]
