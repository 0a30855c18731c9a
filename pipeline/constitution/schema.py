"""The schema of a constitution, and the selection of principles and examples."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.core.text import first_words
from pipeline.records import Message, Pool, Prompt, derive_seed, normalised

SLUG = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


def _slug(text: str) -> str:
    if not re.fullmatch(SLUG, text):
        raise ValueError("use letters, digits, '-', '_' and '.', and begin with a letter or digit")
    return text


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1)]
Slug = Annotated[str, AfterValidator(_slug)]

# As in the paper, harmlessness principles are for red-team prompts, and the others for all other prompts.
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
    """The id that critiques and labels refer to."""
    title: Text
    """A short heading; four labellers quote it."""
    tags: list[Tag] = []
    """Topics; harmlessness, honesty, helpfulness and style decide for which pools it is used."""
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """How often it is drawn, relative to the others; 0 turns it off."""
    critique_request: Text
    """Asks in which ways the assistant's last reply violates the principle."""
    revision_request: Text
    """Asks for a rewritten reply without these faults."""
    preference_question: Text
    """Asks which of two replies is better."""


class WorkedExample(_Part):
    """A poor reply and its correction, used in the critic's prompt and as a training row."""

    id: Slug
    """The id that training rows refer to."""
    tags: list[Tag] = []
    """Topics; it illustrates the principle with which it shares most tags."""
    request: Text
    """What the person asks."""
    poor_reply: Text
    """A poor reply."""
    critique: Text
    """What is wrong with that reply."""
    revision: Text
    """The corrected reply."""


class GoodAnswer(_Part):
    """A harmless request with an answer that follows the constitution."""

    id: Slug
    """The id that training rows refer to."""
    tags: list[Tag] = []
    """Topics of the request."""
    request: Text
    """What the person asks."""
    reply: Text
    """How the assistant should answer."""


class Contrast(_Part):
    """A harmful request with the right reply, and a harmless twin in nearly the same words."""

    id: Slug
    """The id that training rows refer to."""
    tags: list[Tag] = []
    """Kinds of harm."""
    request: Text
    """The harmful request."""
    revision: Text
    """The right reply to the harmful request."""
    twin: Text
    """The harmless request, which the model answers in its own words."""


def is_same_reply(revision: str, reply: str) -> bool:
    """Whether a revision changes nothing but spaces, upper case and punctuation."""
    return normalised(revision) == normalised(reply)


PartT = TypeVar("PartT", bound=WorkedExample | Contrast | GoodAnswer)


class Constitution(_Part):
    """How an assistant should behave: principles, and examples that follow them."""

    name: Slug
    """The name of the constitution."""
    version: Text
    """Three numbers such as 1.0.0; increase it when a text changes."""
    description: Text
    """The purpose in one sentence."""
    provenance: Text
    """Who wrote it, and from which sources."""
    preamble: Text
    """Who the assistant is: the system text for the critic and the labeller."""
    revise: Annotated[list[Pool], Field(min_length=1)] = ["red_team"]
    """Pools whose first replies are criticised and revised; first replies of the others are trained on unchanged."""
    principles: Annotated[list[Principle], Field(min_length=1)]
    """The rules; one is drawn at a time."""
    worked_examples: list[WorkedExample] = []
    """Poor replies and their corrections; in the file a list, or the path of a YAML file with a list."""
    good_answers: list[GoodAnswer] = []
    """Harmless requests with good answers."""
    contrasts: list[Contrast] = []
    """Harmful requests, each with a harmless twin; in the file a list, or the path of a YAML file with a list."""

    @model_validator(mode="after")
    def _some_weight(self) -> Constitution:
        if not any(principle.weight for principle in self.principles):
            raise ValueError(
                "every principle has weight 0, so none can be sampled; give at least one a positive weight"
            )
        return self

    def first(self, max_principles: int | None) -> Constitution:
        """A copy with only the first principles (None: all)."""
        return self.model_copy(update={"principles": self.principles[:max_principles]})

    def without(self, ids: Sequence[str]) -> Constitution:
        """A copy without these principles.

        Raises:
            ConfigError: one of them is not in it, or none would be left.
        """
        known = [principle.id for principle in self.principles]
        for name in ids:
            if name not in known:
                raise ConfigError(
                    f"constitution.without has {name!r}, which is no principle of {self.name!r}"
                    f"{did_you_mean(name, known)}."
                )
        left = [principle for principle in self.principles if principle.id not in ids]
        if not left:
            raise ConfigError("constitution.without names every principle; keep at least one.")
        return self.model_copy(update={"principles": left})

    def principle(self, principle_id: str) -> Principle:
        return next(principle for principle in self.principles if principle.id == principle_id)

    def principles_for(self, pool: Pool) -> list[Principle]:
        """The principles whose tags fit a pool of prompts, or all if none fits; without those of weight 0."""
        fitting = [p for p in self.principles if p.weight > 0 and POOL_TAGS[pool] & set(p.tags)]
        return fitting or [p for p in self.principles if p.weight > 0]

    def notes(self) -> list[str]:
        """What is valid, and probably not meant."""
        return [*self.tag_notes(), *self._example_notes()]

    def _example_notes(self) -> list[str]:
        """A sentence for each worked example that corrects nothing."""
        return [
            f"worked example {example.id!r} has a revision with the words of its poor_reply, so it teaches to "
            "change nothing; write the corrected reply."
            for example in self.worked_examples
            if is_same_reply(example.revision, example.poor_reply)
        ]

    def tag_notes(self) -> list[str]:
        """A sentence for each tag that is nearly one of those that decide, and for each pool without a principle."""
        deciding = sorted(frozenset().union(*POOL_TAGS.values()))
        misspelt = [
            f"principle {principle.id!r} has the tag {tag!r}; did you mean {near[0]!r}? It decides for which pools the "
            "principle is used."
            for principle in self.principles
            for tag in principle.tags
            if tag not in deciding
            and (near := get_close_matches(tag, deciding, n=1, cutoff=0.75))
            and near[0] not in principle.tags
        ]
        used = {tag for principle in self.principles if principle.weight > 0 for tag in principle.tags}
        without: dict[frozenset[str], list[str]] = {}
        for pool, tags in POOL_TAGS.items():
            if not tags & used:
                without.setdefault(tags, []).append(pool)
        return misspelt + [
            f"no principle is tagged for {' and '.join(pools)} ({', '.join(sorted(tags))}), so all principles are used "
            "there."
            for tags, pools in without.items()
        ]

    def sample(self, pool: Pool | None, num_principles: int, rng: random.Random) -> list[Principle]:
        """Draw principles by weight, without repetition until all have been drawn; for no pool (None), from all."""
        candidates = [p for p in self.principles if p.weight > 0] if pool is None else self.principles_for(pool)
        drawn: list[Principle] = []
        urn: list[Principle] = []
        for _ in range(num_principles):
            urn = urn or list(candidates)
            pick = rng.choices(urn, weights=[principle.weight for principle in urn])[0]
            urn.remove(pick)
            drawn.append(pick)
        return drawn

    def examples_for(self, pool: Pool, num_examples: int) -> list[WorkedExample]:
        """The first worked examples; those that illustrate a principle for this pool come before the others."""
        fitting = {principle.id for principle in self.principles_for(pool)}
        ranked = sorted(self.worked_examples, key=lambda example: self.principle_for(example).id not in fitting)
        return ranked[:num_examples]

    def principle_for(self, example: WorkedExample) -> Principle:
        """The principle that an example illustrates: it shares most tags with the example."""
        return max(self.principles, key=lambda principle: len(set(principle.tags) & set(example.tags)))

    def requests(self) -> list[list[Message]]:
        """All requests in the constitution, each as a dialogue. No evaluation may use them."""
        parts: list[WorkedExample | GoodAnswer] = [*self.worked_examples, *self.good_answers]
        texts = [part.request for part in parts]
        texts += [text for contrast in self.contrasts for text in (contrast.request, contrast.twin)]
        return [[Message(role="user", content=text)] for text in texts]

    def contrast_prompts(self, num_contrasts: int | None = None) -> list[tuple[Contrast, Prompt, Prompt]]:
        """(contrast, harmful prompt, harmless prompt) of the first contrasts by hash (None: all)."""
        if num_contrasts == 0:
            return []  # a stage that uses none does not declare that it reads them
        drawn = sorted(self.contrasts, key=lambda contrast: derive_seed("contrast", contrast.id))[:num_contrasts]
        return [(contrast, *_as_prompts(contrast)) for contrast in drawn]

    def declined(self, tags: Sequence[str], num_examples: int) -> list[tuple[str, str]]:
        """(request, reply) of harmful requests; those that share most tags with ``tags`` come first.

        They are the contrasts, and the worked examples of principles that are tagged harmlessness: nothing says of
        another example that its request is harmful.
        """
        parts: list[WorkedExample | Contrast] = [*self._worked(about_harm=True), *self.contrasts]
        return [(part.request, part.revision) for part in _by_tags(parts, tags)[:num_examples]]

    def answered(self, tags: Sequence[str], num_examples: int) -> list[tuple[str, str]]:
        """(request, reply) of harmless requests, in the same order."""
        return [(part.request, part.reply) for part in _by_tags(self.good_answers, tags)[:num_examples]]

    def corrected(self, tags: Sequence[str], num_examples: int) -> list[WorkedExample]:
        """Worked examples of principles about something else than harm, in the same order."""
        return _by_tags(self._worked(about_harm=False), tags)[:num_examples]

    def _worked(self, about_harm: bool) -> list[WorkedExample]:
        """The worked examples of principles that are tagged harmlessness, or of all others that are not turned off."""
        fitting = {
            p.id for p in self.principles if p.weight > 0 and bool(POOL_TAGS["red_team"] & set(p.tags)) is about_harm
        }
        return [example for example in self.worked_examples if self.principle_for(example).id in fitting]

    def opening(self) -> str:
        """The first two words of the constitution's refusals, if most of them begin alike; otherwise ""."""
        texts = [reply for _, reply in self.declined([], len(self.worked_examples) + len(self.contrasts))]
        openings = Counter(first_words(text, 2) for text in texts)
        common, number = openings.most_common(1)[0] if openings else ("", 0)
        return common if number >= max(2, len(texts) / 2) else ""


def _by_tags(parts: Sequence[PartT], tags: Sequence[str]) -> list[PartT]:
    return sorted(parts, key=lambda part: -len(set(part.tags) & set(tags)))


def _as_prompts(contrast: Contrast) -> tuple[Prompt, Prompt]:
    def prompt(side: str, pool: Pool, text: str) -> Prompt:
        messages = [Message(role="user", content=text)]
        return Prompt(id=f"contrast-{contrast.id}-{side}", pool=pool, kind="contrast", split="train", messages=messages)

    return prompt("harm", "red_team", contrast.request), prompt("twin", "look_alike", contrast.twin)
