"""Counterfactual prompts for training: the same request about each group of an attribute (Garg et al. 2019, arXiv
1809.10610; as training data: Lu et al. 2018, arXiv 1807.11714).

Attributes are split by the hash of their names: some may be trained on, the others never are. So the evaluation can ask
about attributes whose groups no template of training has named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.core.errors import ConfigError
from pipeline.core.yaml_files import Problem, load_yaml
from pipeline.data.splits import split_of
from pipeline.records import Message, Prompt, derive_seed

SHIPPED = Path(__file__).with_name("counterfactuals.yaml")
FIELD = "data.counterfactuals"
PERSON, NOUN = "{person}", "{noun}"
ORIGIN = "counterfactual"
TRAINED_SHARE = 0.5  # of the attributes, on average


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Group(_Part):
    name: str
    person: str
    """The phrase for one person of the group; ``{noun}`` stands for the template's noun."""


class Attribute(_Part):
    groups: Annotated[list[Group], Field(min_length=2)]
    neutral: str = "a {noun}"
    """The phrase that names no group."""


class Template(_Part):
    id: str
    harmful: bool
    text: str
    noun: str = "person"
    manner: str = ""


class CounterfactualFile(_Part):
    """Attribute → groups, and templates that contain ``{person}``."""

    attributes: Annotated[dict[str, Attribute], Field(min_length=1)]
    templates: Annotated[list[Template], Field(min_length=1)]


class CounterfactualSet(_Part):
    """One template for one attribute: a prompt for each group, and one that names no group. The id of a prompt is
    ``counterfactual/ATTRIBUTE/TEMPLATE/GROUP``, that of the neutral one is without the group."""

    attribute: str
    template: str
    prompts: list[Prompt]
    """In the order of the groups."""
    persons: list[str]
    """The phrase of each group in its prompt."""
    neutral: Prompt
    neutral_person: str

    @property
    def is_harmful(self) -> bool:
        return self.neutral.pool == "red_team"


def may_train_on(attribute: str) -> bool:
    """Whether counterfactual prompts about an attribute may be trained on. It depends on the name alone."""
    return split_of(f"attribute:{attribute}", TRAINED_SHARE, 0.0) == "train"


def counterfactual_sets(data: Any, number: int) -> list[CounterfactualSet]:
    """The first sets by hash, half of them harmful while there are as many. Each template is used once, for one
    attribute, before it is used again for another.

    Args:
        data: the section ``data``: ``counterfactuals`` (a file; None: the shipped one) and ``held_out_manners``.
        number: the most sets; 0: none, and no file is read.

    Raises:
        ConfigError: the file can't be used.
    """
    if not number:
        return []
    path = Path(data.counterfactuals).expanduser() if data.counterfactuals else SHIPPED
    what = "a file of counterfactual prompts"
    content = load_yaml(path, CounterfactualFile, what, field=FIELD, described_in=SHIPPED.name, check=_check)
    attributes = [name for name in sorted(content.attributes) if may_train_on(name)]
    if not attributes:
        raise ConfigError(
            f"{FIELD}: every attribute of {path} is held out for the evaluation ({', '.join(content.attributes)}); add "
            "another one, such as religion or age."
        )
    held_out = set(data.held_out_manners)
    templates = _half_harmful([template for template in content.templates if template.manner not in held_out])
    if not templates:
        raise ConfigError(
            f"{FIELD}: every template of {path} is in a manner that is held out (data.held_out_manners); add others."
        )
    rounds = range(min(len(attributes), -(-number // len(templates))))
    pairs = [
        # Two neighbours, a harmless and a harmful template, have the same attribute.
        (attributes[(place // 2 + again) % len(attributes)], template)
        for again in rounds
        for place, template in enumerate(templates)
    ]
    return [_made(name, content.attributes[name], template) for name, template in pairs[:number]]


def attribute_of(prompt_id: str) -> str | None:
    """The attribute of a counterfactual prompt; None for any other prompt."""
    return prompt_id.split("/")[1] if set_of(prompt_id) else None


def set_of(prompt_id: str) -> str | None:
    """The id of the neutral prompt of a counterfactual prompt's set; None for any other prompt."""
    parts = prompt_id.split("/")
    return "/".join(parts[:3]) if parts[0] == ORIGIN and len(parts) > 2 else None


def retold(reply: str, person: str, other: str) -> str:
    """The reply about another person: only the phrase that names the person changes, wherever it stands."""

    def changed(found: re.Match[str]) -> str:
        return _capitalised(other) if found.group()[0].isupper() and not person[0].isupper() else other

    return re.sub(rf"\b{re.escape(person)}\b", changed, reply, flags=re.IGNORECASE)


def _check(content: CounterfactualFile) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, template in enumerate(content.templates):
        if PERSON not in template.text:
            yield ("templates", number, "text"), f"the text has no {PERSON}, so no group can be named; write it there"
        if template.id in seen:
            yield ("templates", number, "id"), f"id {template.id!r} is used twice; give each template its own"
        if "/" in template.id:
            yield ("templates", number, "id"), f"id {template.id!r} has a slash; leave it out"
        seen.add(template.id)
    for name, attribute in content.attributes.items():
        if "/" in name:
            yield ("attributes", name), f"the attribute {name!r} has a slash in its name; leave it out"
        names = [group.name for group in attribute.groups]
        if len(set(names)) < len(names):
            yield ("attributes", name, "groups"), f"two groups of {name!r} have the same name; give each its own"


def _half_harmful(templates: Sequence[Template]) -> list[Template]:
    """By hash, a harmless and a harmful one in turn while there are both."""
    order = sorted(templates, key=lambda template: derive_seed(ORIGIN, template.id))
    places = {True: 0, False: 0}
    ranks = {}
    for template in order:
        ranks[template.id] = places[template.harmful]
        places[template.harmful] += 1
    return sorted(order, key=lambda template: (ranks[template.id], template.harmful))


def _made(name: str, attribute: Attribute, template: Template) -> CounterfactualSet:
    own_id = f"{ORIGIN}/{name}/{template.id}"

    def prompt(prompt_id: str, person: str) -> Prompt:
        text = template.text.replace(PERSON, person)
        if template.text.startswith(PERSON):
            text = _capitalised(text)
        return Prompt(
            id=prompt_id,
            pool="red_team" if template.harmful else "ordinary",
            kind=name,
            manner=template.manner,
            split="train",
            messages=[Message(role="user", content=text)],
        )

    persons = [group.person.replace(NOUN, template.noun) for group in attribute.groups]
    neutral = attribute.neutral.replace(NOUN, template.noun)
    return CounterfactualSet(
        attribute=name,
        template=template.id,
        prompts=[
            prompt(f"{own_id}/{group.name}", person) for group, person in zip(attribute.groups, persons, strict=True)
        ],
        persons=persons,
        neutral=prompt(own_id, neutral),
        neutral_person=neutral,
    )


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
