"""critique: first replies, then rounds of critique and revision, each under a newly sampled principle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny

from pipeline.constitution.critique import (
    TEMPLATE,
    critique_examples,
    critique_question,
    revision_examples,
    revision_question,
    tidy,
)
from pipeline.constitution.schema import Constitution, Principle
from pipeline.core import distributed
from pipeline.core.counts import warn_of_many, warn_of_share
from pipeline.core.settings import part
from pipeline.core.stage import Context, Cost, Memory, Metrics, Prepared, Stage, Use
from pipeline.core.text import about_tokens
from pipeline.data.drawing import PoolSizes
from pipeline.engines.base import ENGINES, Completion, Engine, EngineConfig, Request
from pipeline.engines.roles import feedback_engine, policy_engine
from pipeline.engines.worklist import generate_all
from pipeline.records import (
    Exchange,
    Message,
    Pool,
    Prompt,
    Revision,
    derive_seed,
    derived_rng,
    read_records,
    write_records,
)

if TYPE_CHECKING:
    from pipeline.chain.config import Config


class CritiqueConfig(PoolSizes):
    """Critique and revision (Bai et al. 2022, section 3)."""

    num_rounds: int = Field(ge=1)
    """Rounds of critique and revision, each under a new principle."""
    num_red_team: int = Field(ge=1)
    """Harmful requests."""
    num_few_shot: int = Field(ge=0)
    """The most worked examples of the constitution in the critic's prompt."""
    temperature: float = Field(ge=0, le=5)
    """Sampling temperature of replies, critiques and revisions; 0 is greedy."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus sampling (top-p) of replies, critiques and revisions; 1 turns it off."""
    max_reply_tokens: int = Field(ge=1)
    """The most tokens per first reply."""
    max_critique_tokens: int = Field(ge=1)
    """The most tokens per critique."""
    max_revision_tokens: int = Field(ge=1)
    """The most tokens per revision."""
    engine: Annotated[SerializeAsAny[EngineConfig] | None, BeforeValidator(ENGINES.parse_optional)] = None
    """The engine of the critic; null: that of ``engine``."""


class Critique(Stage):
    """First replies of the model, criticised and revised under the constitution's principles."""

    name, needs, outputs = "critique", ("prompts",), ("exchanges.jsonl",)
    version = 2

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        return {
            "seed": config.seed,
            "model": part(config.model, "path", "revision", "precision"),
            "policy_engine": config.policy_engine,
            "engine": config.feedback_engine("critique"),
            "constitution": part(
                constitution,
                "preamble",
                "revise",
                *(["worked_examples"] if config.critique.num_few_shot else []),
                *(f"principles.{name}" for name in ("id", "tags", "weight", "critique_request", "revision_request")),
            ),
            "template": TEMPLATE,
        }

    def check(self, prepared: Prepared) -> list[str]:
        asked, known = prepared.config.critique.num_few_shot, len(prepared.constitution.worked_examples)
        if asked <= known:
            return []
        return [
            f"critique.num_few_shot is {asked} but the constitution has only {known} worked examples; all are used."
        ]

    def engines(self, config: Config) -> dict[str, EngineConfig]:
        return config.feedback_engines("critique")

    def uses(self, prepared: Prepared) -> list[Use]:
        config = prepared.config.critique
        prompts = [prompt.messages for prompt in config.training_prompts(prepared.prompts)]
        return [Use(what="critique: first replies", dialogues=prompts, reply_tokens=config.max_reply_tokens)]

    def cost(self, prepared: Prepared) -> Cost:
        config, constitution = prepared.config.critique, prepared.constitution
        prompts = config.by_pool(prepared.prompts)
        num_replies = sum(map(len, prompts.values()))
        policy = Cost(
            num_calls=num_replies,
            num_tokens_written=num_replies * config.max_reply_tokens,
            num_tokens_read=sum(about_tokens(_text(p.messages)) for some in prompts.values() for p in some),
        )
        critic = Cost.sum(_cost_of_rounds(config, constitution, pool, prompts[pool]) for pool in constitution.revise)
        [field] = prepared.config.feedback_engines("critique")
        return Cost.of_roles({"policy_engine": policy, field: critic})

    def memory(self, prepared: Prepared) -> Memory:
        from pipeline.training.footprint import of_generation

        return of_generation(prepared)

    def run(self, config: CritiqueConfig, context: Context) -> Metrics:
        prompts = read_records(context.folder("prompts") / "prompts.jsonl", Prompt)
        everyone = config.training_prompts(prompts, "critique")
        policy = policy_engine(context, context.model.path, "base")
        shared = policy if context.engine == context.policy_engine else None
        rounds = _Rounds(config, context)
        replies = rounds.first_replies(policy, everyone)
        policy_name = policy.name
        del policy  # another critic needs the room that its model takes
        rounds.critic = critic = feedback_engine(context, shared)
        _warn_of_missing_replies(everyone, replies, context)
        revisions: dict[str, list[Revision]] = {prompt.id: [] for prompt in everyone}
        revised_pools = context.constitution.revise
        asked = [prompt for prompt in everyone if prompt.pool in revised_pools and replies[prompt.id].text]
        current = {prompt.id: replies[prompt.id].text for prompt in asked}
        for number in range(1, config.num_rounds + 1):
            for prompt_id, revision in rounds.critique_and_revise(number, asked, current).items():
                revisions[prompt_id].append(revision)
                current[prompt_id] = revision.revision
        rounds.warn_of_unusable_answers()
        rounds.warn_of_losses()

        exchanges = [
            Exchange(
                prompt=prompt,
                reply=replies[prompt.id].text,
                reply_seed=rounds.seed(prompt, 0, "reply"),
                revisions=revisions[prompt.id],
                policy=policy_name,
                critic=critic.name,
                template=TEMPLATE,
            )
            for prompt in everyone
            if replies[prompt.id].text and (revisions[prompt.id] or prompt.pool not in revised_pools)
        ]
        if distributed.is_main():
            write_records(context.out / "exchanges.jsonl", exchanges)
            _show(exchanges, context)
        return {
            "num_exchanges": len(exchanges),
            "num_revisions": sum(len(exchange.revisions) for exchange in exchanges),
            "num_helpful_samples": sum(not exchange.revisions for exchange in exchanges),
            "num_texts": rounds.num_texts,
            "num_empty": rounds.num_empty,
            "num_shortened": rounds.num_shortened,
            "num_too_long_for_the_context": rounds.num_too_long,
            "num_refused_by_the_server": rounds.num_refused,
            "num_failed_requests": rounds.num_failed,
            "num_unusable_answers_of_the_critic": rounds.unusable.total(),
            "num_unchanged_revisions": sum(
                revision.revision == before
                for exchange in exchanges
                for before, revision in zip(
                    [exchange.reply, *(r.revision for r in exchange.revisions)], exchange.revisions, strict=False
                )
            ),
            "num_distinct_critiques": len({r.critique for exchange in exchanges for r in exchange.revisions}),
        }


def _cost_of_rounds(config: CritiqueConfig, constitution: Constitution, pool: Pool, prompts: Sequence[Prompt]) -> Cost:
    """Of the critic for the prompts of a pool. The examples stand before every question of a pool."""
    number, num_examples = len(prompts) * config.num_rounds, config.num_few_shot
    rules = constitution.principles_for(pool)
    shown = about_tokens(
        _text(critique_examples(constitution, pool, num_examples)),
        _text(revision_examples(constitution, pool, num_examples)),
    )
    asked = sum(about_tokens(rule.critique_request, rule.revision_request) for rule in rules) // len(rules)
    replies = 2 * max(config.max_reply_tokens, config.max_revision_tokens) + config.max_critique_tokens
    requests = sum(about_tokens(_text(prompt.messages)) for prompt in prompts) * config.num_rounds
    return Cost(
        num_calls=2 * number,
        num_tokens_written=number * (config.max_critique_tokens + config.max_revision_tokens),
        num_tokens_read=number * (shown + asked + replies) + 2 * requests,
        num_tokens_repeated=number * shown,
    )


def _text(messages: Sequence[Message]) -> str:
    return "".join(turn["content"] for turn in messages)


class _Rounds:
    """The steps of the method over all prompts at once. Each prompt and step has its own seed."""

    critic: Engine
    """Set after the first replies: its model may need the room of the policy's."""

    def __init__(self, config: CritiqueConfig, context: Context) -> None:
        self._config, self._context = config, context
        constitution, number = context.constitution, config.num_few_shot
        self._critique_examples = {pool: critique_examples(constitution, pool, number) for pool in constitution.revise}
        self._revision_examples = {pool: revision_examples(constitution, pool, number) for pool in constitution.revise}
        self.num_texts = self.num_empty = self.num_shortened = self.num_too_long = self.num_refused = 0
        self.num_failed = 0
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
        """One round: prompt id → revision. A prompt with an empty critique or revision is left out."""
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
        self._count(revised)
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
            if revised[prompt.id].text
        }

    def _count(self, answers: Mapping[str, Completion]) -> None:
        self.num_asked += len(answers)
        self.unusable.update(_why_unusable(answer) for answer in answers.values() if not answer.text)
        if self.unusable.total() == self.num_asked:
            self.warn_of_unusable_answers()  # it stops before the next round is paid for

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


def _warn_of_missing_replies(prompts: Sequence[Prompt], replies: Mapping[str, Completion], context: Context) -> None:
    """Warn if many first replies can't be used. Raises StageError if none can, or none of those to be revised."""
    revised = [prompt for prompt in prompts if prompt.pool in context.constitution.revise]
    others = [prompt for prompt in prompts if prompt.pool not in context.constitution.revise]
    for some, purpose in ((revised, "to be revised"), (others, "to be trained on")):
        bad = Counter(_why_unusable(replies[prompt.id]) for prompt in some if not replies[prompt.id].text)
        reasons = ", ".join(f"{number} {reason}" for reason, number in bad.items())
        what = f"first replies {purpose} can't be used ({reasons})"
        warn_of_share(
            bad.total(), len(some), what, "raise critique.max_reply_tokens, or use shorter prompts", context.work
        )


def _why_unusable(answer: Completion) -> str:
    if answer.finish == "too_long":
        return "too long for its context"
    without_answer = {"refused": "refused by the server", "failed": "without an answer of the server"}
    return without_answer.get(answer.finish, "empty or without a whole sentence")


def _asked(examples: list[Message], question: str) -> list[Message]:
    return [*examples, Message(role="user", content=question)]


def _show(exchanges: Sequence[Exchange], context: Context) -> None:
    rows = [
        (exchange.prompt.request, exchange.reply, r.principle_id, r.critique, r.revision)
        for exchange in exchanges
        for r in exchange.revisions
    ]
    context.tracker.table("critique/samples", ("prompt", "reply", "principle", "critique", "revision"), rows[:50])
