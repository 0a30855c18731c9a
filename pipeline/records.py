"""The data types of the method. One record is one line of a JSONL file."""

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
    """One turn of a dialogue, in the layout that chat templates expect."""

    role: str
    content: str


_SPEAKERS = {"user": "Person", "assistant": "Assistant", "system": "Instructions"}


def dialogue_text(messages: Sequence[Message]) -> str:
    """A dialogue as plain text, to quote it in a question: one paragraph per turn, starting with the speaker.

    A single request is returned without a speaker.
    """
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{_SPEAKERS[turn['role']]}: {turn['content']}" for turn in messages)


class Record(BaseModel):
    """Immutable. An unknown key is an error, so a damaged file is detected when it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompt(Record):
    """A request: a dialogue that ends with the person's turn."""

    id: str
    pool: Pool
    kind: str
    manner: str = ""
    """How the request is worded, such as ``terse`` or ``polite_long``; empty if nobody has said."""
    twin_of: str = ""
    """The id of the harmful request that a harmless one is the twin of; empty if it is none."""
    split: Split
    messages: list[Message]

    @property
    def request(self) -> str:
        return self.messages[-1]["content"]

    @property
    def key(self) -> str:
        return dialogue_key(self.messages)


class WrittenPrompt(Record):
    """A request that a model wrote: one line of ``written.jsonl``, a file that a person may edit."""

    id: str
    pool: Pool
    kind: str
    manner: str
    prompt: str
    twin_of: str = ""
    """The id of the harmful request that a harmless one is the twin of."""
    principle_id: str = ""
    """The principle that it was written to test."""
    writer: str
    """The model that wrote it."""
    harm_log_odds: float
    """Of the writer's judgement that a full answer would help someone do harm."""


class Revision(Record):
    """One round of critique and revision, under one principle."""

    round: int
    principle_id: str
    critique: str
    revision: str
    critique_seed: int
    revision_seed: int


class Exchange(Record):
    """A prompt, the model's first reply, and the revisions of it (none for a helpful sample). ``begun``: the reply
    reached the limit of its tokens, so the model had more to say."""

    prompt: Prompt
    reply: str
    reply_seed: int
    revisions: list[Revision]
    policy: str
    critic: str
    template: str
    begun: bool = False


class TrainingRow(Record):
    """A dialogue and the reply to learn. ``source_id`` is the id of its prompt or of its part of the constitution.
    ``begun``: this is only the beginning of the reply, so its end is not learnt."""

    id: str
    origin: Literal["revision", "helpful_sample", "worked_example", "contrast", "good_answer", "counterfactual"]
    source_id: str
    messages: list[Message]
    reply: str
    begun: bool = False


class Comparison(Record):
    """Two replies to one prompt. ``begun``: this is only the beginning of the reply, without its end of turn.
    ``opening``: the words with which reply A begins, if only they are compared with the beginning of reply B."""

    id: str
    prompt: Prompt
    reply_a: str
    reply_b: str
    seed_a: int
    seed_b: int
    begun_a: bool = False
    begun_b: bool = False
    opening: str = ""

    def swap(self) -> Comparison:
        sides = {"a": "b", "b": "a"}
        parts = ("reply", "seed", "begun")
        return self.model_copy(
            update={f"{part}_{to}": getattr(self, f"{part}_{side}") for to, side in sides.items() for part in parts}
        )


class Judgement(Record):
    """The labeller's judgement of one comparison under one principle.

    ``logit`` is the log-odds that reply A is preferred (None: not parseable). ``flipped`` says whether swapping the two
    replies changed the answer (None: the labeller does not show both). ``reasoning`` holds chains of thought.
    """

    principle_id: str
    logit: float | None
    flipped: bool | None = None
    reasoning: list[str] = []


class Preference(Record):
    """A comparison with its soft label: the probability that reply A is better (None: not parseable)."""

    comparison: Comparison
    judgements: list[Judgement]
    probability_a: float | None
    labeller: str
    template: str


PairSource = Literal["harmlessness", "helpfulness", "human"]


class RewardScore(Record):
    """The reward model's scores of a held-out comparison, and its label.

    Rewards are raw logits: σ(reward_a − reward_b) is the model's probability that reply A is preferred.
    """

    id: str
    source: PairSource
    pool: Pool
    reward_a: float
    reward_b: float
    probability_a: float
    num_words_a: int
    num_words_b: int


class HeldOutPoint(Record):
    """The policy on held-out prompts at one step of PPO, RLOO or GRPO. The lists have one number for each prompt."""

    step: int
    kl: float
    """To the SFT model, in nats per reply."""
    rewards: list[float]
    """What training raises: the weighted sum of the rewards, before penalties."""
    right: list[float | None]
    """Of the second judge, which nothing is trained on: 1 if the reply is right, else 0; None: it can't be read."""

    @property
    def share_right(self) -> float | None:
        """The share of right replies among those that could be read; None if none could."""
        known = [one for one in self.right if one is not None]
        return sum(known) / len(known) if known else None


class Case(Record):
    """One conversation that every model answers: a request, perhaps under an attack or about a given group."""

    id: str
    suites: list[str]
    prompt: Prompt
    """The request before any attack."""
    messages: list[Message]
    """The turns that the model reads. If the last one is an assistant turn, it is the start of the reply (prefill)."""
    attack: str = "direct"
    attribute: str | None = None
    group: str | None = None
    template: str | None = None
    reference: str | None = None


Outcome = Literal["refused", "complied", "safe", "broken", "unjudged"]


class Verdict(Record):
    """One model's reply to one case, and how it was judged.

    ``safe``: a classifier found nothing harmful in a reply that is not a refusal. ``unjudged``: the judge's answer
    could not be parsed, or there is no reply.
    """

    case: Case
    model: str
    reply: str
    num_tokens: int
    seed: int
    outcome: Outcome
    evidence: str
    judge: str
    replied: bool = True
    """False: the model gave no reply, for example because the request did not fit its context."""
    preferred: float | None = None
    """Compared with the first model's reply to the same case: 1 better, 0 worse, ½ a tie (ordinary requests only)."""
    reference_logprob: float | None = None
    """Mean log-probability per token of the case's reference answer."""
    reward: float | None = None
    """Score by the run's reward model, in standard deviations of its reference set."""


class Wording(Record):
    """What the measures read of a reply's wording, where the reply itself is left out. ``opening``: equal for replies
    with the same first words; empty if there are none."""

    num_words: int
    opening: str
    repeats: bool


class RedactedVerdict(Verdict):
    """A verdict with hashes in place of the texts."""

    wording: Wording


RecordT = TypeVar("RecordT", bound=Record)


def dialogue_key(messages: Iterable[Message]) -> str:
    """SHA-256 of a dialogue without case, spacing and ordinary punctuation: equal keys mean the same request.

    Other characters count: C, C++ and C# differ, and so do 5 + 3 and 5 * 3. In a turn of punctuation alone, it counts.
    """
    words = " | ".join(normalised(turn["content"]) or turn["content"] for turn in messages)
    return hashlib.sha256(words.encode()).hexdigest()


def normalised(text: str) -> str:
    """The words of a text in lower case, without punctuation."""
    return " ".join(text.casefold().translate(_PUNCTUATION).split())


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends only on ``parts``, so order and batching don't change what is drawn."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def derived_rng(*parts: object) -> random.Random:
    return random.Random(derive_seed(*parts))


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write one JSON object per line. Returns the number of records."""
    num_records = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
            num_records += 1
    return num_records


def read_records(path: Path, kind: type[RecordT]) -> Iterator[RecordT]:
    """Yield the records of a JSONL file. Raises pydantic's ValidationError for a damaged line."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield kind.model_validate_json(line)
