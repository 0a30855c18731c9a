"""Settings: pydantic models. Each field has a description, and a mark if it does not change a result.

The checks before a run, the cache key of a stage and docs/configuration.md are all made from the fields.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import FunctionType, MethodType
from typing import Any, ClassVar, Generic, Self, TypeVar, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.core.errors import ConfigError, did_you_mean

ModelT = TypeVar("ModelT", bound=BaseModel)


class _Runtime:
    """Marks a field that changes the speed, place or display of a run, but never its result."""


RUNTIME = _Runtime()


class Settings(BaseModel):
    """A section of the configuration. It is immutable, an unknown key is an error, and every field has a docstring.

    A validator of several fields raises ``ValueError`` and writes ``{here}`` for the path of its section.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )

    sections: ClassVar[Registry[Any] | None] = None
    """Classes by name; each has its own section here with its settings."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            raise _explained(cls, error) from None

    def key(self) -> dict[str, Any]:
        """The section for a cache key: without runtime fields."""
        return {name: self.key_of(name) for name in fields_of(self) if not is_runtime(type(self), name)}

    def key_of(self, name: str) -> Any:
        """One field for a cache key. Override it for a field that gives a file, so that the key holds its content."""
        return key_of(getattr(self, name))


def fields_of(settings: BaseModel) -> list[str]:
    """Names of all fields, including extra ones."""
    return [*type(settings).model_fields, *(settings.__pydantic_extra__ or {})]


def is_runtime(kind: type[BaseModel], name: str) -> bool:
    field = kind.model_fields.get(name)
    return field is not None and any(isinstance(mark, _Runtime) for mark in field.metadata)


def key_of(value: Any) -> Any:
    """A value as plain JSON for a cache key."""
    if not isinstance(value, Mapping) and callable(getattr(value, "key", None)):
        return value.key()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(name): key_of(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [key_of(part) for part in value]
    return value


# --- What a stage declares that it reads ---------------------------------------------------------------------------


class UndeclaredReadError(AssertionError):
    """A stage reads a value that is not in its cache key, so a wrong result could come from the cache."""


class Part:
    """Shows only some fields of a model. Reading another one raises ``UndeclaredReadError``.

    Methods and properties of the model also see only these fields.
    """

    def __init__(self, owner: BaseModel, names: Iterable[str]) -> None:
        self._owner = owner
        self._shown: dict[str, list[str]] = {}
        for name in names:
            first, _, rest = name.partition(".")
            self._shown.setdefault(first, []).extend([rest] if rest else [])

    def __getattr__(self, name: str) -> Any:
        kind = type(self._owner)
        if name in fields_of(self._owner):
            if name not in self._shown:
                raise UndeclaredReadError(
                    f"{kind.__qualname__}.{name} is read but the stage's reads() does not declare it."
                )
            return _shown(getattr(self._owner, name), self._shown[name])
        attribute = inspect.getattr_static(kind, name)
        if isinstance(attribute, property):
            return attribute.fget(self) if attribute.fget else None
        return MethodType(attribute, self) if isinstance(attribute, FunctionType) else getattr(self._owner, name)

    def key(self) -> dict[str, Any]:
        owner = self._owner
        if isinstance(owner, Settings):
            return {name: owner.key_of(name) for name in sorted(self._shown)}
        return {name: key_of(_shown(getattr(owner, name), rest)) for name, rest in sorted(self._shown.items())}


def _shown(value: Any, names: list[str]) -> Any:
    """``value``, or a ``Part`` of it if only some of its fields are declared."""
    if not names:
        return value
    return [Part(item, names) for item in value] if isinstance(value, list) else Part(value, names)


def part(owner: ModelT, *names: str) -> ModelT:
    """A view of a model with only these fields. ``principles.id`` shows one field of each element of a list."""
    return cast(ModelT, Part(owner, names))


# --- Choices by name -----------------------------------------------------------------------------------------------

ClassT = TypeVar("ClassT")


class Registry(Generic[ClassT]):
    """Classes of one kind by name. Each has a ``Config``: the settings that only this class reads.

    ``tag`` is the configuration key that selects the class. To add a class, put ``@REGISTRY.add`` above it.
    """

    def __init__(self, what: str, tag: str) -> None:
        self.what, self.tag = what, tag
        self._classes: dict[str, type[ClassT]] = {}

    def add(self, kind: type[ClassT]) -> type[ClassT]:
        name = cast(Any, kind).name
        assert name not in self._classes, f"two {self.what}s are called {name!r}"
        self._classes[name] = kind
        return kind

    def remove(self, name: str) -> None:
        """Remove a class that a test has added."""
        del self._classes[name]

    def __getitem__(self, name: str) -> type[ClassT]:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def config_of(self, name: str) -> type[Settings]:
        return cast(type[Settings], cast(Any, self._classes[name]).Config)

    def parse(self, raw: Any) -> Any:
        """Validate a section with the ``Config`` of the class that its tag selects, or raise ValueError."""
        if isinstance(raw, Settings):
            return raw
        if not isinstance(raw, Mapping):
            raise ValueError(f"{{here}} is {raw!r}, but it must be a section; set {{here}}.{self.tag}=NAME")
        name = raw.get(self.tag)
        if not isinstance(name, str) or name not in self._classes:
            raise ValueError(not_one_of(f"{{here}}.{self.tag}", name, self))
        return self.config_of(name).model_validate(dict(raw))

    def parse_optional(self, raw: Any) -> Any:
        """Like ``parse``, but null gives None."""
        return None if raw is None else self.parse(raw)


@cache
def _sections(kinds: tuple[tuple[str, type[Settings]], ...]) -> type[Settings]:
    """A model with one section for each class. It takes a while to make, and hundreds of configurations need it."""
    fields: dict[str, Any] = {name: (kind, kind()) for name, kind in kinds}
    return create_model("Sections", __base__=Settings, **fields)


def with_sections(kind: type[Settings], raw: Any) -> Any:
    """``raw`` with the section of each class in ``kind.sections`` read by the settings of that class.

    For a validator of mode ``before``. Raises ValueError for an unknown key.
    """
    registry = kind.sections
    if registry is None or not isinstance(raw, Mapping):
        return raw
    known = [*kind.model_fields, *registry]
    for name in raw:
        if name not in known:
            raise ValueError(f"{{here}}.{name}: unknown key{did_you_mean(name, known)}")
    sections = _sections(tuple((name, registry.config_of(name)) for name in registry))
    return {**raw, **dict(sections.model_validate({name: raw[name] for name in registry if name in raw}))}


def registry_of(field: FieldInfo) -> Registry[Any] | None:
    """The registry that a field chooses from; None for any other field.

    Such a field is written ``Annotated[SerializeAsAny[Base], BeforeValidator(REGISTRY.parse)]``.
    """
    for mark in field.metadata:
        owner = getattr(getattr(mark, "func", None), "__self__", None)
        if isinstance(owner, Registry):
            return owner
    return None


def types_at(kind: type[BaseModel], path: Sequence[str]) -> Iterator[Any]:
    """The types of a field, given by the names on the way to it. Choices by name may have several for one path."""
    name, *rest = path
    field = kind.model_fields.get(name)
    parts: list[Any] = []
    if field is None:
        sections = kind.sections if issubclass(kind, Settings) else None
        parts = [sections.config_of(name)] if sections is not None and name in sections else []
    elif registry := registry_of(field):
        parts = [registry.config_of(choice) for choice in registry]
    elif not rest:
        yield field.annotation
    elif get_origin(field.annotation) is dict:
        yield from get_args(field.annotation)[1:] if len(rest) == 1 else ()
    elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        parts = [field.annotation]
    for part in parts if rest else ():
        yield from types_at(part, rest)


# --- Error messages ------------------------------------------------------------------------------------------------

SettingsT = TypeVar("SettingsT", bound=Settings)
_EXPLAINED = "explained"


def validated(kind: type[SettingsT], raw: Mapping[str, Any], prefix: str = "") -> SettingsT:
    """Build settings from plain values.

    Raises:
        ConfigError: one sentence with the field, its value and the allowed values.
    """
    try:
        return kind.model_validate(dict(raw))
    except ValidationError as error:
        first = _explained(kind, error).errors()[0]  # validators of the class itself run outside _explain
        where = ".".join(filter(None, (prefix, *(step for step in first["loc"] if isinstance(step, str)))))
        text = str(first["ctx"]["text"]).replace("{here}.", f"{where}." if where else "").replace("{here}", where)
        raise ConfigError(text if text.endswith((".", "?")) else f"{text}.") from None


def _explained(kind: type[BaseModel], error: ValidationError) -> ValidationError:
    """The same error with one sentence per mistake. ``{here}`` is a placeholder for the path of the field."""
    details: list[InitErrorDetails] = []
    for found in error.errors():
        known = found["type"] == _EXPLAINED
        text = found["ctx"]["text"] if known else _sentence(kind, found)
        reason = PydanticCustomError(_EXPLAINED, "{text}", {"text": text})
        details.append({"type": reason, "loc": found["loc"], "input": found["input"]})
    return ValidationError.from_exception_data(kind.__name__, details)


_TYPES = {"float": "a number", "int": "a whole number", "bool": "true or false", "string": "text", "list": "a list"}


def _sentence(kind: type[BaseModel], found: Any) -> str:
    value, problem, context = found["input"], found["type"], found.get("ctx", {})
    if problem in {"value_error", "assertion_error"}:
        return str(context["error"])
    name = str(found["loc"][0]) if found["loc"] else ""
    if problem == "extra_forbidden":
        return f"{{here}}: unknown key{did_you_mean(name, kind.model_fields)}"
    if problem == "missing":
        registry = registry_of(kind.model_fields[name])
        return f"{{here}} must be set; add {{here}}{f'.{registry.tag}=NAME' if registry else '=VALUE'}"
    if problem == "too_short":
        return "{here} is empty; give at least one"
    if problem == "string_type" and isinstance(value, bool | int | float):  # from a YAML file: cai quotes overrides
        return f"{{here}} is read as {value!r}, not as text; put it in quotes"
    if wanted := _TYPES.get(problem.split("_")[0]):
        return f"{{here}} is {value!r}; it must be {wanted}"
    if problem == "literal_error":
        options = [option.strip("'") for option in context["expected"].replace(" or ", ", ").split(", ")]
        return not_one_of("{here}", value, options)
    if problem in {"greater_than_equal", "greater_than", "less_than_equal", "less_than"}:
        return f"{{here}} is {value:g}; it must be {_allowed(kind.model_fields[name].metadata)}"
    if problem == "model_type":
        return f"{{here}} is {value!r}, but it must be a section; set {{here}}.KEY=VALUE"
    return f"{{here}} is {value!r}; {found['msg'].replace('Input should', 'it must').rstrip('.')}"


def not_one_of(name: str, value: Any, options: Iterable[str]) -> str:
    """``x is 'al', which is not one of all, last; did you mean 'all'?``"""
    options = list(options)
    hint = did_you_mean(str(value), options)
    return f"{name} is {value!r}, which is not one of {', '.join(options)}{hint if 'did you mean' in hint else ''}"


def limits_of(field: FieldInfo) -> str:
    """The limits of a field, such as ``between 0 and 1``; empty if it has none."""
    return _allowed(field.metadata)


def _allowed(marks: Iterable[Any]) -> str:
    """``at least 1``, ``between 0 and 1``, ``above 0 and at most 1``: all limits of a field."""
    low = high = ""
    for mark in marks:
        low = f"at least {mark.ge:g}" if isinstance(mark, Ge) else f"above {mark.gt:g}" if isinstance(mark, Gt) else low
        high = (
            f"at most {mark.le:g}" if isinstance(mark, Le) else f"below {mark.lt:g}" if isinstance(mark, Lt) else high
        )
    if low.startswith("at least") and high.startswith("at most"):
        return f"between {low.removeprefix('at least ')} and {high.removeprefix('at most ')}"
    return " and ".join(filter(None, (low, high)))
