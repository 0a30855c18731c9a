"""A written constitution: its parts, and which of them a stage draws or shows."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from pipeline.records import Message, Pool, Prompt, derive_seed


def _slug(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        raise ValueError("use letters, digits, '-', '_' and '.', and begin with a letter or digit")
    return text


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Slug = Annotated[str, AfterValidator(_slug)]

# The paper's division of labour: harmlessness principles judge red-team prompts, the others judge the rest.
POOL_TAGS: dict[Pool, frozenset[str]] = {
    "red_team": frozenset({"harmlessness"}),
    "ordinary": frozenset({"helpfulness", "honesty", "style"}),
    "look_alike": frozenset({"helpfulness", "honesty", "style"}),
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Principle(_Part):
    """One rule, as three requests: what to criticise, how to revise, and which of two replies to prefer."""

    id: Slug
    """The principle's own name, by which critiques and labels refer to it."""
    title: Text
    """A short heading for people; two labellers quote it."""
    tags: list[Text] = []
    """What it is about; harmlessness, honesty, helpfulness and style decide which pools it judges."""
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """How often it is drawn, relative to the others; 0 switches it off."""
    critique_request: Text
    """It asks in what ways the assistant's last reply falls short."""
    revision_request: Text
    """It asks to rewrite the reply so that it no longer does."""
    preference_question: Text
    """It asks which of two replies is the better one."""


class WorkedExample(_Part):
    """A poor reply, put right: what the critic is shown, and what the constitution itself can teach."""

    id: Slug
    """The example's own name, by which a training row refers to it."""
    tags: list[Text] = []
    """It illustrates the principle with which it shares most of these."""
    request: Text
    """What the person asks."""
    poor_reply: Text
    """A reply that falls short."""
    critique: Text
    """What is wrong with that reply."""
    revision: Text
    """The reply as it should be."""


class GoodAnswer(_Part):
    """A harmless request, answered as the constitution would have it."""

    id: Slug
    """The answer's own name, by which a training row refers to it."""
    tags: list[Text] = []
    """What the request is about."""
    request: Text
    """What the person asks."""
    reply: Text
    """How the assistant should answer."""


class Contrast(_Part):
    """A harmful request with what to say to it, beside a harmless twin in nearly the same words."""

    id: Slug
    """The contrast's own name, by which a training row refers to it."""
    tags: list[Text] = []
    """What kind of harm it is about."""
    request: Text
    """The harmful request."""
    revision: Text
    """What to say to the harmful request."""
    twin: Text
    """The harmless request, which the model answers in its own way."""


PartT = TypeVar("PartT", WorkedExample | Contrast, GoodAnswer)


class Constitution(_Part):
    """What an assistant should be like: principles, and examples of keeping to them."""

    name: Slug
    """The constitution's own name."""
    version: Text
    """Three numbers such as 1.0.0; raise it when a text changes."""
    description: Text
    """What it is for, in one sentence."""
    provenance: Text
    """Who wrote it, and from what."""
    preamble: Text
    """Who the assistant is: the system text for the critic and the labeller."""
    revise: Annotated[list[Pool], Field(min_length=1)] = ["red_team"]
    """Pools whose first replies are criticised and revised; replies to the others are taught as they are."""
    principles: Annotated[list[Principle], Field(min_length=1)]
    """The rules, of which one is drawn at a time."""
    worked_examples: list[WorkedExample] = []
    """Poor replies, put right."""
    good_answers: list[GoodAnswer] = []
    """Harmless requests, answered well."""
    contrasts: list[Contrast] = []
    """Harmful requests, each beside a harmless twin; in the file a list, or the path of a YAML file with one."""

    @field_validator("version", mode="before")
    @classmethod
    def _version_is_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value  # YAML reads 1.0 as a number

    @model_validator(mode="after")
    def _some_weight(self) -> Constitution:
        if not any(principle.weight for principle in self.principles):
            raise ValueError(
                "every principle has weight 0, so none can be sampled; give at least one a positive weight"
            )
        return self

    def first(self, max_principles: int | None) -> Constitution:
        """The same text with only its first principles (all of them for None)."""
        return self.model_copy(update={"principles": self.principles[:max_principles]})

    def principle(self, principle_id: str) -> Principle:
        return next(principle for principle in self.principles if principle.id == principle_id)

    def principles_for(self, pool: Pool) -> list[Principle]:
        """The principles whose tags fit a pool of prompts; all of them where none does."""
        fitting = [p for p in self.principles if p.weight > 0 and POOL_TAGS[pool] & set(p.tags)]
        return fitting or [p for p in self.principles if p.weight > 0]

    def sample(self, pool: Pool, num_principles: int, rng: random.Random) -> list[Principle]:
        """Draw principles by weight without repetition, starting over when all have been used."""
        drawn: list[Principle] = []
        urn: list[Principle] = []
        for _ in range(num_principles):
            urn = urn or list(self.principles_for(pool))
            pick = rng.choices(urn, weights=[principle.weight for principle in urn])[0]
            urn.remove(pick)
            drawn.append(pick)
        return drawn

    def examples_for(self, pool: Pool, num_examples: int) -> list[WorkedExample]:
        """The first worked examples that illustrate a principle for this pool; the others only after them."""
        fitting = {principle.id for principle in self.principles_for(pool)}
        ranked = sorted(self.worked_examples, key=lambda example: self.principle_for(example).id not in fitting)
        return ranked[:num_examples]

    def principle_for(self, example: WorkedExample) -> Principle:
        """The principle an example illustrates: the one that shares most tags with it."""
        return max(self.principles, key=lambda principle: len(set(principle.tags) & set(example.tags)))

    def requests(self) -> list[list[Message]]:
        """Every request this text contains: what must not be evaluated on."""
        parts: list[WorkedExample | GoodAnswer] = [*self.worked_examples, *self.good_answers]
        texts = [part.request for part in parts]
        texts += [text for contrast in self.contrasts for text in (contrast.request, contrast.twin)]
        return [[Message(role="user", content=text)] for text in texts]

    def contrast_prompts(self, num_contrasts: int | None = None) -> list[tuple[Contrast, Prompt, Prompt]]:
        """Contrasts in the order of their hash, with harmful request and twin as prompts of their pools."""
        drawn = sorted(self.contrasts, key=lambda contrast: derive_seed("contrast", contrast.id))[:num_contrasts]
        return [(contrast, *_as_prompts(contrast)) for contrast in drawn]

    def declined(self, tags: Sequence[str], num_examples: int) -> list[tuple[str, str]]:
        """Harmful requests and what to say to them, those that share most tags first: (request, reply)."""
        fitting = {principle.id for principle in self.principles_for("red_team")}
        worked = [example for example in self.worked_examples if self.principle_for(example).id in fitting]
        parts: list[WorkedExample | Contrast] = [*worked, *self.contrasts]
        return [(part.request, part.revision) for part in _by_tags(parts, tags)[:num_examples]]

    def answered(self, tags: Sequence[str], num_examples: int) -> list[tuple[str, str]]:
        """Harmless requests and their answers, in the same order."""
        return [(part.request, part.reply) for part in _by_tags(self.good_answers, tags)[:num_examples]]

    def opening(self) -> str:
        """How this constitution's refusals begin: the two words that most of them have in common ("" without any)."""
        texts = [contrast.revision for contrast in self.contrasts]
        texts += [example.revision for example in self.examples_for("red_team", 10)]
        openings = Counter(" ".join(text.split()[:2]) for text in texts)
        return openings.most_common(1)[0][0] if openings else ""


def _by_tags(parts: Sequence[PartT], tags: Sequence[str]) -> list[PartT]:
    return sorted(parts, key=lambda part: -len(set(part.tags) & set(tags)))


def _as_prompts(contrast: Contrast) -> tuple[Prompt, Prompt]:
    def prompt(side: str, pool: Pool, text: str) -> Prompt:
        messages = [Message(role="user", content=text)]
        return Prompt(id=f"contrast-{contrast.id}-{side}", pool=pool, kind="contrast", split="train", messages=messages)

    return prompt("harm", "red_team", contrast.request), prompt("twin", "look_alike", contrast.twin)
