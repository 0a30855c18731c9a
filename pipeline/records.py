"""The nouns of the method, as small typed records. One record is one line of a JSONL file."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

Pool = Literal["red_team", "ordinary", "look_alike"]
Split = Literal["train", "validation", "test"]
POOLS: tuple[Pool, ...] = ("red_team", "ordinary", "look_alike")


_PUNCTUATION = dict.fromkeys(map(ord, ".?!,:;'\"`-/£%()[]{}…“”‘’„«»–—¿¡"), " ")


class Message(TypedDict):
    """One turn of a dialogue, in the layout that chat templates take."""

    role: str
    content: str


_SPEAKERS = {"user": "Person", "assistant": "Assistant", "system": "Instructions"}


def dialogue_text(messages: Sequence[Message]) -> str:
    """A dialogue as plain text, for showing it inside a question: one turn a paragraph, each with its speaker.

    A lone request stands by itself.
    """
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{_SPEAKERS[turn['role']]}: {turn['content']}" for turn in messages)


class Record(BaseModel):
    """Immutable, and strict about its keys, so that a damaged file is noticed when it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompt(Record):
    """What a person asks: a dialogue that ends with the person's turn."""

    id: str
    pool: Pool
    kind: str
    split: Split
    messages: list[Message]

    @property
    def request(self) -> str:
        return self.messages[-1]["content"]

    @property
    def key(self) -> str:
        return dialogue_key(self.messages)


class Revision(Record):
    """One round of critique and revision, under one principle."""

    round: int
    principle_id: str
    critique: str
    revision: str
    critique_seed: int
    revision_seed: int


class Exchange(Record):
    """A prompt, the model's first reply, and what the critic made of it (no revisions: a helpful sample)."""

    prompt: Prompt
    reply: str
    reply_seed: int
    revisions: list[Revision]
    policy: str
    critic: str
    template: str


class TrainingRow(Record):
    """A dialogue and the reply to learn, with the exchange or the part of the constitution it came from."""

    id: str
    origin: Literal["revision", "helpful_sample", "worked_example", "contrast", "good_answer"]
    source_id: str
    messages: list[Message]
    reply: str


class Comparison(Record):
    """Two replies to one prompt."""

    id: str
    prompt: Prompt
    reply_a: str
    reply_b: str
    seed_a: int
    seed_b: int

    def swap(self) -> Comparison:
        return self.model_copy(
            update={"reply_a": self.reply_b, "reply_b": self.reply_a, "seed_a": self.seed_b, "seed_b": self.seed_a}
        )


class Judgement(Record):
    """What the labeller said of one comparison under one principle; a logit of None could not be parsed.

    ``logit`` is that of "reply A is preferred"; ``flipped`` says whether showing the replies in the other order
    turned the answer round (None where the labeller shows no order). ``reasoning`` holds chains of thought.
    """

    principle_id: str
    logit: float | None
    flipped: bool | None = None
    reasoning: list[str] = []


class Preference(Record):
    """A comparison with its soft label: the probability that reply A is the better one (None: unparseable)."""

    comparison: Comparison
    judgements: list[Judgement]
    probability_a: float | None
    labeller: str
    template: str


PairSource = Literal["harmlessness", "helpfulness", "human"]


class RewardScore(Record):
    """What the reward model says of a held-out comparison, beside its label.

    Rewards are raw logits: σ(reward_a − reward_b) is the model's own probability that reply A is preferred.
    """

    id: str
    source: PairSource
    pool: Pool
    reward_a: float
    reward_b: float
    probability_a: float
    num_words_a: int
    num_words_b: int


class Case(Record):
    """One conversation that is put to every model: a request, perhaps under an attack or with a group swapped in."""

    id: str
    suites: list[str]
    prompt: Prompt
    """The request itself, before any attack."""
    messages: list[Message]
    """What the model is shown. A last turn of the assistant's is the beginning of the reply."""
    attack: str = "direct"
    attribute: str | None = None
    group: str | None = None
    template: str | None = None
    reference: str | None = None


Outcome = Literal["refused", "complied", "safe", "broken", "unjudged"]


class Verdict(Record):
    """One model's reply to one case, and how it was judged.

    ``safe``: a classifier found nothing harmful in a reply that is no refusal. ``unjudged``: the judge's answer could
    not be read.
    """

    case: Case
    model: str
    reply: str
    num_tokens: int
    seed: int
    outcome: Outcome
    evidence: str
    judge: str
    preferred: float | None = None
    """Against the first model's reply to the same case: 1 better, 0 worse, ½ a tie (ordinary requests only)."""
    reference_logprob: float | None = None
    """Mean log-probability per token of the case's reference answer."""
    reward: float | None = None
    """The run's reward model's opinion of the reply, in standard deviations of its reference set."""


RecordT = TypeVar("RecordT", bound=Record)


def dialogue_key(messages: Iterable[Message]) -> str:
    """Hash a dialogue up to case, spacing and ordinary punctuation: equal keys mean the same request.

    Other signs count: C, C++ and C# are three languages, and 5 + 3 is not 5 * 3.
    """
    words = " | ".join(normalised(turn["content"]) for turn in messages)
    return hashlib.sha256(words.encode()).hexdigest()


def normalised(text: str) -> str:
    """The words of a text, without case and punctuation."""
    return " ".join(text.casefold().translate(_PUNCTUATION).split())


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on nothing but its parts, so neither order nor batching can change a draw."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def derived_rng(*parts: object) -> random.Random:
    return random.Random(derive_seed(*parts))


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write one JSON object a line; returns how many."""
    num_records = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
            num_records += 1
    return num_records


def read_records(path: Path, kind: type[RecordT]) -> Iterator[RecordT]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield kind.model_validate_json(line)
