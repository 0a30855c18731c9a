"""A written constitution: load it, say precisely what is wrong with it, sample its principles."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.records import Message, Pool, Prompt, derive_seed, dialogue_key

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Slug = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]

# The paper's division of labour: harmlessness principles judge red-team prompts, the others judge the rest.
POOL_TAGS: dict[Pool, frozenset[str]] = {
    "red_team": frozenset({"harmlessness"}),
    "ordinary": frozenset({"helpfulness", "honesty", "style"}),
    "look_alike": frozenset({"helpfulness", "honesty", "style"}),
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Principle(_Part):
    id: Slug
    title: Text
    tags: list[Text] = []
    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    critique_request: Text
    revision_request: Text
    preference_question: Text


class WorkedExample(_Part):
    """A poor reply, put right: what the critic is shown, and what the constitution itself can teach."""

    id: Slug
    tags: list[Text] = []
    request: Text
    poor_reply: Text
    critique: Text
    revision: Text


class GoodAnswer(_Part):
    """A harmless request, answered as the constitution would have it."""

    id: Slug
    tags: list[Text] = []
    request: Text
    reply: Text


class Contrast(_Part):
    """A harmful request with what to say to it, beside a harmless twin in nearly the same words."""

    id: Slug
    tags: list[Text] = []
    request: Text
    revision: Text
    twin: Text


PartT = TypeVar("PartT", WorkedExample | Contrast, GoodAnswer)


class Constitution(_Part):
    name: Slug
    version: Text
    description: Text
    provenance: Text
    preamble: Text
    revise: Annotated[list[Pool], Field(min_length=1)] = ["red_team"]
    """Pools whose first replies are criticised and revised; replies to the others are taught as they are."""
    principles: Annotated[list[Principle], Field(min_length=1)]
    worked_examples: list[WorkedExample] = []
    good_answers: list[GoodAnswer] = []
    contrasts: list[Contrast] = []
    """In the file: a list, or the path of a YAML file with one."""

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


def load_constitution(path: Path) -> Constitution:
    """Read and validate a constitution.

    Raises:
        ConfigError: one sentence with the file, line, column, field and remedy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"constitution.path: there is no file {path}; give a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"constitution.path: {path} can't be read as UTF-8 text ({error}).") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{place}: not valid YAML: {problem}.") from None
    if root is None or not isinstance(data, dict):
        raise ConfigError(
            f"{path}:1:1: a constitution is a mapping with name, version, …; see constitutions/README.md."
        )
    _refuse_duplicate_keys(root, path)
    if isinstance(data.get("contrasts"), str):
        data["contrasts"] = _load_contrasts(path.parent / data["contrasts"], _place(root, path, ("contrasts",)))
    try:
        constitution = Constitution.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_describe(error, root, path)) from None
    _refuse_repeats(data, root, path)
    return constitution


def _load_contrasts(path: Path, place: str) -> list[Any]:
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{place}: contrasts names {path}, which can't be read ({reason}).") from None
    if not isinstance(rows, list):
        raise ConfigError(f"{place}: contrasts names {path}, which is not a list; see constitutions/README.md.")
    return rows


def find_constitution(name_or_path: str) -> Path:
    """A path as given, or the name of a constitution that ships with the project."""
    path = Path(name_or_path).expanduser()
    shipped = shipped_constitutions()
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return path
    if name_or_path in shipped:
        return shipped[name_or_path]
    raise ConfigError(f"constitution.path: no constitution {name_or_path!r}{did_you_mean(name_or_path, shipped)}.")


def shipped_constitutions() -> dict[str, Path]:
    here = Path(__file__).parents[1]
    folder = next(folder for folder in (here / "constitutions", here.parent / "constitutions") if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _place(root: yaml.Node, path: Path, loc: Sequence[str | int]) -> str:
    """``file:line:column`` of the deepest node on the way to ``loc``."""
    node = root
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            entry = next(((key, value) for key, value in node.value if key.value == step), None)
            if entry is None:
                break
            node = entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
        else:
            break
    return f"{path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def field_path(loc: Sequence[str | int]) -> str:
    return re.sub(r"\.?\[", "[", ".".join(f"[{step}]" if isinstance(step, int) else step for step in loc))


_PARTS: dict[str, type[_Part]] = {
    "principles": Principle,
    "worked_examples": WorkedExample,
    "good_answers": GoodAnswer,
    "contrasts": Contrast,
}


def _describe(error: ValidationError, root: yaml.Node, path: Path) -> str:
    first = error.errors()[0]
    loc, kind, value = first["loc"], first["type"], first["input"]
    place, field = _place(root, path, loc), field_path(loc)
    part = _PARTS.get(str(loc[0]), Constitution) if len(loc) > 1 else Constitution
    if kind == "extra_forbidden":
        problem = f"unknown key {loc[-1]!r}{did_you_mean(str(loc[-1]), part.model_fields)}"
    elif kind == "missing":
        problem = f"{field} is missing; add it (constitutions/README.md describes every key)"
    elif kind in {"string_too_short", "too_short"}:
        problem = f"{field} is empty; write it or remove the entry"
    elif kind == "greater_than_equal":
        problem = f"{field} is {value}; a weight is zero or more (0 switches the principle off)"
    elif kind == "string_pattern_mismatch":
        problem = f"{field} is {value!r}; use letters, digits, '-', '_' and '.'"
    elif kind == "value_error":
        problem = str(first["ctx"]["error"])
    else:
        problem = f"{field} is {value!r}: {first['msg'].lower()}"
    others = error.error_count() - 1
    return f"{place}: {problem}." + (f" ({others} more after this one.)" if others else "")


def _refuse_duplicate_keys(node: yaml.Node, path: Path) -> None:
    """YAML lets a repeated key win silently; here it is an error."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                mark = key.start_mark
                raise ConfigError(
                    f"{path}:{mark.line + 1}:{mark.column + 1}: key {key.value!r} stands twice; keep one."
                )
            seen.add(key.value)
            _refuse_duplicate_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicate_keys(item, path)


def _refuse_repeats(data: dict[str, Any], root: yaml.Node, path: Path) -> None:
    ids: dict[str, str] = {}
    requests: dict[str, tuple[str, str]] = {}
    for section in _PARTS:
        for index, entry in enumerate(data.get(section) or []):
            field = f"{section}[{index}]"
            if (earlier := ids.setdefault(entry["id"], field)) != field:
                where = _place(root, path, (section, index, "id"))
                raise ConfigError(f"{where}: id {entry['id']!r} is already that of {earlier}; give it another.")
            for name in ("request", "twin"):
                if name not in entry:
                    continue
                key = dialogue_key([Message(role="user", content=entry[name])])
                if (known := requests.setdefault(key, (field, name))) != (field, name):
                    where = _place(root, path, (section, index, name))
                    raise ConfigError(f"{where}: the {name} is the same as in {known[0]}; change or remove one.")


def to_yaml(constitution: Constitution) -> str:
    data = constitution.model_dump(mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
