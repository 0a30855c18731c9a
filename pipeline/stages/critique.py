"""critique: first replies, then rounds of critique and revision, each under a freshly sampled principle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.chain.config import CritiqueConfig
from pipeline.constitution.critique import (
    TEMPLATE,
    critique_examples,
    critique_question,
    revision_examples,
    revision_question,
    tidy,
)
from pipeline.constitution.schema import Principle
from pipeline.core import distributed
from pipeline.data.drawing import take
from pipeline.engines.base import Completion, Engine, Request, generate_all
from pipeline.engines.models import feedback_engine, local_engine
from pipeline.records import Exchange, Message, Prompt, Revision, derive_seed, derived_rng, read_records, write_records
from pipeline.stages.base import Inputs, Metrics

VERSION = 1


def run(cfg: CritiqueConfig, inputs: Inputs, out: Path) -> Metrics:
    prompts = list(read_records(inputs.folders["prompts"] / "prompts.jsonl", Prompt))
    chosen = {
        pool: take([p for p in prompts if p.pool == pool and p.split == "train"], number, f"critique.num_{pool}")
        for pool, number in (
            ("red_team", cfg.num_red_team),
            ("ordinary", cfg.num_ordinary),
            ("look_alike", cfg.num_look_alike),
        )
    }
    policy = local_engine(inputs.model.path, inputs.model, inputs.launch, name=inputs.model.name)
    critic = feedback_engine(inputs.engine, inputs.model, inputs.launch, policy)
    rounds = _Rounds(cfg, inputs, out, critic)

    everyone = [prompt for pool in chosen.values() for prompt in pool]
    replies = rounds.first_replies(policy, everyone)
    revisions: dict[str, list[Revision]] = {prompt.id: [] for prompt in everyone}
    revised_pools = inputs.constitution.revise
    asked = [prompt for prompt in everyone if prompt.pool in revised_pools and replies[prompt.id].text]
    current = {prompt.id: replies[prompt.id].text for prompt in asked}
    for number in range(1, cfg.num_rounds + 1):
        for prompt_id, revision in rounds.critique_and_revise(number, asked, current).items():
            revisions[prompt_id].append(revision)
            current[prompt_id] = revision.revision

    exchanges = [
        Exchange(
            prompt=prompt,
            reply=replies[prompt.id].text,
            reply_seed=rounds.seed(prompt, 0, "reply"),
            revisions=revisions[prompt.id],
            policy=policy.name,
            critic=critic.name,
            template=TEMPLATE,
        )
        for prompt in everyone
        if replies[prompt.id].text and (revisions[prompt.id] or prompt.pool not in revised_pools)
    ]
    if distributed.is_main():
        write_records(out / "exchanges.jsonl", exchanges)
    _show(exchanges, inputs)
    return {
        "num_exchanges": len(exchanges),
        "num_revisions": sum(len(exchange.revisions) for exchange in exchanges),
        "num_helpful_samples": sum(not exchange.revisions for exchange in exchanges),
        "num_empty": rounds.num_empty,
        "num_shortened": rounds.num_shortened,
        "num_too_long_for_the_context": rounds.num_too_long,
        "num_unchanged_revisions": sum(
            revision.revision == before
            for exchange in exchanges
            for before, revision in zip(
                [exchange.reply, *(r.revision for r in exchange.revisions)], exchange.revisions, strict=False
            )
        ),
        "num_distinct_critiques": len({r.critique for exchange in exchanges for r in exchange.revisions}),
    }


class _Rounds:
    """The steps of the method over all prompts at once, each drawn from a seed of its own."""

    def __init__(self, cfg: CritiqueConfig, inputs: Inputs, out: Path, critic: Engine) -> None:
        self._cfg, self._inputs, self._out, self._critic = cfg, inputs, out, critic
        constitution, number = inputs.constitution, cfg.num_few_shot
        self._critique_examples = {pool: critique_examples(constitution, pool, number) for pool in constitution.revise}
        self._revision_examples = {pool: revision_examples(constitution, pool, number) for pool in constitution.revise}
        self.num_empty = self.num_shortened = self.num_too_long = 0

    def seed(self, prompt: Prompt, number: int, step: str) -> int:
        return derive_seed(self._inputs.seed, prompt.key, number, step)

    def first_replies(self, policy: Engine, prompts: Sequence[Prompt]) -> dict[str, Completion]:
        asks = {prompt.id: prompt.messages for prompt in prompts}
        return self._ask(policy, "first replies", prompts, asks, 0, "reply", self._cfg.max_reply_tokens)

    def critique_and_revise(
        self, number: int, prompts: Sequence[Prompt], current: dict[str, str]
    ) -> dict[str, Revision]:
        """One round. A prompt whose critique or revision came out empty is left out of the result."""
        drawn = {prompt.id: self._principle(prompt, number) for prompt in prompts}
        asks = {
            p.id: _asked(self._critique_examples[p.pool], critique_question(p.messages, current[p.id], drawn[p.id]))
            for p in prompts
        }
        label = f"critiques, round {number}"
        critiques = self._ask(self._critic, label, prompts, asks, number, "critique", self._cfg.max_critique_tokens)
        prompts = [prompt for prompt in prompts if critiques[prompt.id].text]
        asks = {
            p.id: _asked(
                self._revision_examples[p.pool],
                revision_question(p.messages, current[p.id], critiques[p.id].text, drawn[p.id]),
            )
            for p in prompts
        }
        label = f"revisions, round {number}"
        revised = self._ask(self._critic, label, prompts, asks, number, "revision", self._cfg.max_revision_tokens)
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

    def _principle(self, prompt: Prompt, number: int) -> Principle:
        """A principle for this round that no earlier round of this prompt has used (while there are such)."""
        rng = derived_rng(self._inputs.seed, prompt.key, "principles")
        return self._inputs.constitution.sample(prompt.pool, number, rng)[-1]

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
                temperature=self._cfg.temperature,
                top_p=self._cfg.top_p,
            )
            for prompt in prompts
        ]
        log = self._inputs.log(self._out, f"{number}-{step}")
        done = generate_all(engine, label, requests, log, self._inputs.watch)
        return {prompt.id: self._tidy(done[request.id]) for prompt, request in zip(prompts, requests, strict=True)}

    def _tidy(self, completion: Completion) -> Completion:
        text = tidy(completion.text, cut_off=completion.finish == "length")
        self.num_shortened += text != completion.text
        self.num_too_long += completion.finish == "too_long"
        self.num_empty += not text and completion.finish != "too_long"
        return Completion(**{**vars(completion), "text": text})


def _asked(examples: list[Message], question: str) -> list[Message]:
    return [*examples, Message(role="user", content=question)]


def _show(exchanges: Sequence[Exchange], inputs: Inputs) -> None:
    if distributed.is_main():
        rows = [
            (exchange.prompt.request, exchange.reply, r.principle_id, r.critique, r.revision)
            for exchange in exchanges
            for r in exchange.revisions
        ]
        inputs.tracker.table("critique/samples", ("prompt", "reply", "principle", "critique", "revision"), rows[:50])
