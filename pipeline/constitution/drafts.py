"""Drafts of constitutions: rules become principles by plain templates, and a file with comments on what to improve."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from pipeline.constitution.files import load_constitution
from pipeline.constitution.json_schema import MODELINE, SCHEMA_FILE, json_schema_text
from pipeline.constitution.markdown import Rule
from pipeline.constitution.schema import Constitution, Principle, WorkedExample
from pipeline.core.cache import write_text_atomically
from pipeline.core.errors import ConfigError
from pipeline.core.text import words

Kind = Literal["any", "harm", "help", "style"]
TAGS: dict[Kind, list[str]] = {"any": [], "harm": ["harmlessness"], "help": ["helpfulness"], "style": ["style"]}
MAX_TITLE_WORDS = 12

_TITLES: dict[Kind, str] = {"any": "{}", "harm": "No help with {}", "help": "{}", "style": "How it sounds: {}"}
# criticise, revise, prefer
_TEMPLATES: dict[Kind, tuple[str, str, str]] = {
    "any": (
        "Identify in which specific ways the assistant's last reply goes against this rule: {}.",
        "Rewrite the assistant's last reply so that it follows this rule: {}.",
        "Which of these replies follows this rule better: {}?",
    ),
    "harm": (
        "Identify any part of the assistant's last reply that helps with this: {}.",
        "Rewrite the reply so that it gives no help with this, says so in a few words and offers something safe: {}.",
        "Which of these replies gives less help with this: {}?",
    ),
    "help": (
        "Identify where the assistant's last reply to a harmless request does not do this: {}.",
        "Rewrite the reply so that a harmless request gets this: {}.",
        "Which of these replies to a harmless request does this better: {}?",
    ),
    "style": (
        "Identify where the assistant's last reply does not sound like this: {}.",
        "Rewrite the reply with the same content, so that it sounds like this: {}.",
        "Which of these replies sounds more like this: {}?",
    ),
}


@dataclass
class Draft:
    """A constitution, and the comments of its file: at the top, and above each principle by its id."""

    constitution: Constitution
    head: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def principle_of(rule: Rule, principle_id: str, kind: Kind = "any") -> Principle:
    """A principle whose three requests quote the rule."""
    said = rule.text.rstrip(".!?。 ")
    critique, revision, preference = (template.format(said) for template in _TEMPLATES[kind])
    return Principle(
        id=principle_id,
        title=rule.title or _TITLES[kind].format(short_title(said)),
        tags=TAGS[kind],
        critique_request=critique,
        revision_request=revision,
        preference_question=preference,
    )


def short_title(text: str) -> str:
    """The first sentence, or its first words."""
    sentence = re.split(r"(?<=[.!?])\s", text)[0].rstrip(".")
    parts = sentence.split()
    return sentence if len(parts) <= MAX_TITLE_WORDS else f"{' '.join(parts[:MAX_TITLE_WORDS])} …"


def ids_of(rules: Sequence[Rule]) -> list[str]:
    """A distinct id for each rule, from its first words, or from its place if they are not in Latin letters."""
    found: list[str] = []
    for number, rule in enumerate(rules, start=1):
        plain = re.sub(r"['’]s?\b", "", rule.title or rule.text)  # "children's" gives "children"
        first = [word.lower() for word in words(plain) if re.fullmatch(r"[A-Za-z0-9]+", word)][:5]
        name = "-".join(first) or f"rule-{number}"
        while name in found:
            name = f"{name}-{number}"
        found.append(name)
    return found


def draft_of(about: Mapping[str, str], principles: Sequence[Principle], examples: Sequence[WorkedExample]) -> Draft:
    """Raises ConfigError if no constitution can be made of it."""
    try:
        data = {"version": "0.1.0", "principles": principles, "worked_examples": examples, **about}
        return Draft(Constitution.model_validate(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: {first['msg'].removeprefix('Value error, ')}.") from None


def slug_of(name: str) -> str:
    """A text as the name of a constitution."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.") or "mine"


def draft_text(draft: Draft, names_schema: bool) -> str:
    """The YAML of a draft with its comments. Values that are defaults are left out."""
    data = draft.constitution.model_dump(mode="json", exclude_defaults=True)
    lines = [MODELINE] if names_schema else []
    lines += [f"# {line}" for line in draft.head]
    for key, value in data.items():
        if key != "principles":
            lines.append(_yaml({key: value}))
            continue
        lines.append("principles:")
        for principle in value:
            note = draft.notes.get(principle["id"])
            lines += [f"# {' '.join(note.split())}"] if note else []
            lines.append(_yaml([principle]))
    return "\n".join(lines) + "\n"


def write_draft(draft: Draft, target: Path, with_schema: bool = False) -> Constitution:
    """Write a draft after it was read once from another place, so that no file is written that can't be read.

    Args:
        with_schema: also write the JSON Schema beside it, and name it in the first line.

    Raises:
        ConfigError: the file exists, can't be written, or would not be valid.
    """
    refuse_existing(target)
    schema = target.with_name(SCHEMA_FILE)
    text = draft_text(draft, with_schema or schema.exists())
    with TemporaryDirectory() as folder:
        trial = Path(folder) / target.with_suffix(".yaml").name
        trial.write_text(text, encoding="utf-8")
        try:
            found = load_constitution(trial)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(trial), f"the draft of {target.name}")) from None
    try:
        if with_schema:
            write_text_atomically(schema, json_schema_text())
        write_text_atomically(target, text)
    except OSError as error:
        raise ConfigError(f"{target} can't be written ({error.strerror}); give another file.") from None
    return found


def refuse_existing(target: Path) -> None:
    """Raises ConfigError if the file exists or its folder doesn't."""
    if target.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"{target} is no name of a YAML file; give one that ends with .yaml.")
    if target.exists():
        raise ConfigError(f"{target} already exists; give another file.")
    if not target.parent.is_dir():
        raise ConfigError(f"there is no folder {target.parent}; make it, or give another file.")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip("\n")
