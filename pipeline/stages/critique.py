"""critique: first replies, then rounds of critique and revision, each under a newly sampled principle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.constitution.critique import (
    TEMPLATE,
    critique_examples,
    revision_examples,
)
from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.counts import warn_of_share
from pipeline.core.settings import part
from pipeline.core.stage import Context, Cost, Memory, Metrics, Prepared, Stage, Use
from pipeline.core.text import about_tokens, count_of
from pipeline.critique.config import CritiqueConfig
from pipeline.critique.rounds import Rounds, why_unusable
from pipeline.data.counterfactuals import CounterfactualSet, counterfactual_sets
from pipeline.engines.base import Completion, EngineConfig
from pipeline.engines.roles import feedback_engine, policy_engine
from pipeline.evals.counterfactuals import refuse_evaluated
from pipeline.records import (
    Exchange,
    Message,
    Pool,
    Prompt,
    Revision,
    read_records,
    write_records,
)

if TYPE_CHECKING:
    from pipeline.chain.config import Config


class Critique(Stage):
    """First replies of the model, criticised and revised under the constitution's principles."""

    name, needs, outputs = "critique", ("prompts",), ("exchanges.jsonl",)
    version = 4

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
            **({"counterfactuals": _sets(config)} if config.sft.num_counterfactuals else {}),
        }

    def check(self, prepared: Prepared) -> list[str]:
        refuse_evaluated(_sets(prepared.config), prepared)
        asked, known = prepared.config.critique.num_few_shot, len(prepared.constitution.worked_examples)
        if asked <= known:
            return []
        shown = f"only {count_of(known, 'worked example')}; all are shown" if known else "no worked examples to show"
        return [f"critique.num_few_shot is {asked} but the constitution has {shown}."]

    def engines(self, config: Config) -> dict[str, EngineConfig]:
        return config.feedback_engines("critique")

    def uses(self, prepared: Prepared) -> list[Use]:
        config = prepared.config.critique
        asked = [*config.training_prompts(prepared.prompts), *_neutral(_sets(prepared.config))]
        prompts = [prompt.messages for prompt in asked]
        return [Use(what="critique: first replies", dialogues=prompts, reply_tokens=config.max_reply_tokens)]

    def cost(self, prepared: Prepared) -> Cost:
        config, constitution = prepared.config.critique, prepared.constitution
        prompts = config.by_pool(prepared.prompts)
        for prompt in _neutral(_sets(prepared.config)):
            prompts[prompt.pool] = [*prompts[prompt.pool], prompt]
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
        everyone += _neutral(context.counterfactuals) if context.has("counterfactuals") else []
        policy = policy_engine(context, context.model.path, "base")
        shared = policy if context.engine == context.policy_engine else None
        rounds = Rounds(config, context)
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
                begun=replies[prompt.id].finish == "length",
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
            **rounds.counts(),
            "num_unchanged_revisions": sum(
                revision.revision == before
                for exchange in exchanges
                for before, revision in zip(
                    [exchange.reply, *(r.revision for r in exchange.revisions)], exchange.revisions, strict=False
                )
            ),
            "num_distinct_critiques": len({r.critique for exchange in exchanges for r in exchange.revisions}),
        }


def _sets(config: Config) -> list[CounterfactualSet]:
    """The counterfactual templates that SFT trains on; the model replies to the prompt that names no group."""
    return counterfactual_sets(config.data, config.sft.num_counterfactuals)


def _neutral(sets: Sequence[CounterfactualSet]) -> list[Prompt]:
    return [each.neutral for each in sets]


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


def _warn_of_missing_replies(prompts: Sequence[Prompt], replies: Mapping[str, Completion], context: Context) -> None:
    """Warn if many first replies can't be used. Raises StageError if none can, or none of those to be revised."""
    revised = [prompt for prompt in prompts if prompt.pool in context.constitution.revise]
    others = [prompt for prompt in prompts if prompt.pool not in context.constitution.revise]
    for some, purpose in ((revised, "to be revised"), (others, "to be trained on")):
        bad = Counter(why_unusable(replies[prompt.id]) for prompt in some if not replies[prompt.id].text)
        reasons = ", ".join(f"{number} {reason}" for reason, number in bad.items())
        what = f"first replies {purpose} can't be used ({reasons})"
        warn_of_share(
            bad.total(), len(some), what, "raise critique.max_reply_tokens, or use shorter prompts", context.work
        )


def _show(exchanges: Sequence[Exchange], context: Context) -> None:
    rows = [
        (exchange.prompt.request, exchange.reply, r.principle_id, r.critique, r.revision)
        for exchange in exchanges
        for r in exchange.revisions
    ]
    context.tracker.table("critique/samples", ("prompt", "reply", "principle", "critique", "revision"), rows[:50])
