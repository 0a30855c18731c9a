"""What a guard learns from, and the held-out requests on which its threshold is set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pipeline.constitution.schema import Constitution
from pipeline.engines.base import Request
from pipeline.evals.judges.refusal import judge_reply
from pipeline.evals.probe import group_of, is_harmful
from pipeline.evals.results import DIRECT
from pipeline.guard.families import attacked, attacks_of
from pipeline.guard.labels import Labels
from pipeline.records import POOLS, Message, Pool, Prompt, derive_seed


@dataclass(frozen=True)
class Row:
    """A request, perhaps under an attack, and a reply to it ("": none is read)."""

    id: str
    messages: list[Message]
    """The last turn is the person's, or the start of a reply."""
    request: str
    harmful: bool
    group: str
    """The same for all rows of a request and its twins: no fold may be tested on a request that it has learned."""
    pool: Pool
    attack: str = DIRECT
    reply: str = ""
    complied: bool = False

    def answered(self, reply: str) -> Row:
        """The row with a reply, judged by its wording after what an attack prefilled."""
        whole = f"{split_reply(self.messages)[1]} {reply}".strip() if reply else ""
        return replace(self, reply=reply, complied=judge_reply(whole, self.request)[0] == "complied")


def learned_prompts(prompts: Sequence[Prompt], constitution: Constitution, num: int, seed: int) -> list[Prompt]:
    """At most ``num`` prompts of each pool, by hash: of the training split, and the constitution's contrasts."""
    contrasts = [prompt for _, *pair in constitution.contrast_prompts() for prompt in pair]
    unique = {prompt.key: prompt for prompt in [*contrasts, *prompts] if prompt.split == "train"}
    chosen: list[Prompt] = []
    for pool in POOLS:
        mine = [prompt for prompt in unique.values() if prompt.pool == pool]
        chosen += sorted(mine, key=lambda p: (derive_seed(seed, "guard", own_group(p)), p.id))[:num]
    return chosen


def learned_rows(prompts: Sequence[Prompt], labels: Labels, families: Sequence[str], seed: int) -> list[Row]:
    """Each prompt as it is and, in turn, under one of the attacks, with a reply that the run compared.

    For a harmful request the reply declines or complies by turns; for a harmless one it answers.
    """
    rows: list[Row] = []
    attacks = attacks_of(families)
    for number, prompt in enumerate(prompts):
        harmful, _ = labels.of_prompt(prompt)
        versions = [(DIRECT, prompt.messages)]
        if attacks:
            attack = attacks[number % len(attacks)]
            versions.append((attack, attacked(prompt, attack)))
        for attack, messages in versions:
            row = _row(prompt, attack, messages, harmful)
            if sides := labels.replies.get(prompt.key):
                declines = harmful and derive_seed(seed, "side", row.id) % 2 == 0
                row = replace(row, reply=sides.declining if declines else sides.answering, complied=not declines)
            rows.append(row)
    return rows


def held_out_rows(prompts: Sequence[Prompt]) -> list[Row]:
    """The validation prompts. Of harmless twins of one request only one is taken, because the bound needs requests
    that don't depend on each other."""
    rows: dict[tuple[bool, str], Row] = {}
    for prompt in sorted(prompts, key=lambda p: derive_seed("held out", p.id)):
        if prompt.split == "validation":
            row = _row(prompt, DIRECT, prompt.messages, is_harmful(prompt))
            rows.setdefault((row.harmful, row.group), row)
    return list(rows.values())


def num_harmless(rows: Iterable[Row]) -> int:
    return sum(not row.harmful for row in rows)


def answered_anew(rows: Sequence[Row], num: int, seed: int) -> list[Row]:
    """At most ``num`` rows, by hash, half of them harmful if there are so many."""
    by_hash = sorted(rows, key=lambda row: derive_seed(seed, "answered", row.id))
    harmful = [row for row in by_hash if row.harmful][: num - num // 2]
    return harmful + [row for row in by_hash if not row.harmful][: num - len(harmful)]


def as_request(row: Row, max_tokens: int, seed: int) -> Request:
    """The request for a greedy reply."""
    before, begun = split_reply(row.messages)
    return Request(
        id=row.id,
        messages=before,
        prefix=begun,
        seed=derive_seed(seed, row.id, "guard"),
        max_new_tokens=max_tokens,
        temperature=0.0,
    )


def split_reply(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """The turns up to the reply, and the start of the reply ("" if there is none)."""
    *before, last = messages
    return (before, last["content"]) if last["role"] == "assistant" else (list(messages), "")


def own_group(prompt: Prompt) -> str:
    """As ``group_of``; both sides of a contrast are one group."""
    return prompt.id.rpartition("-")[0] if prompt.kind == "contrast" else group_of(prompt)


def _row(prompt: Prompt, attack: str, messages: list[Message], harmful: bool) -> Row:
    return Row(
        id=f"{prompt.split}/{prompt.id}/{attack}",
        messages=messages,
        request=prompt.request,
        harmful=harmful,
        group=own_group(prompt),
        pool=prompt.pool,
        attack=attack,
    )
