"""Where prompts and labelled rows come from, as the configuration says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.core.settings import RUNTIME, Settings


class ColumnsConfig(Settings):
    """Which column of a data file holds what. A null column is not read."""

    prompt: str | None = "prompt"
    """Column with the request as text."""
    messages: str | None = None
    """Column with a dialogue: a list of {role, content} turns, or the same as JSON text."""
    transcript: str | None = None
    """Column with a dialogue as text with ``Human:`` and ``Assistant:`` turns."""
    kind: str | None = None
    """Column with the kind of request, for tables by kind."""
    id: str | None = None
    """Column with an id of each row; without one the id follows from the text."""


_PLACE = frozenset({"path", "hub_name", "hub_dir", "hub_split", "revision"})


class SourceConfig(Settings):
    """Rows that ship with the project, of a file or folder, or of a data set on the hub."""

    source: Literal["builtin", "path", "hub"] = "builtin"
    """``builtin`` (ships with the project), ``path`` (a file or folder) or ``hub``."""
    path: str | None = None
    """The file or folder, or the id on the hub."""
    hub_name: str | None = None
    """The configuration of a hub data set that has several."""
    hub_dir: str | None = None
    """The folder inside a hub data set."""
    hub_split: str = "train"
    """The split of a hub data set or of a ``datasets`` folder."""
    revision: str | None = None
    """The commit, branch or tag on the hub; null: main."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most so many rows; null: all."""

    def key(self) -> dict[str, Any]:
        """Without the fields that this kind of source does not read. Whoever reads it adds the content."""
        unread = {"hub": set[str](), "path": _PLACE - {"hub_split"}}.get(self.source, _PLACE)
        return {name: value for name, value in super().key().items() if name not in unread}

    @model_validator(mode="after")
    def _check_path(self) -> Self:
        if self.source in {"builtin", "none"} and self.path:
            raise ValueError(
                f"{{here}}.path is {self.path!r} but {{here}}.source is {self.source!r}; set {{here}}.source=path "
                "(or hub)"
            )
        if self.source in {"path", "hub"} and not self.path:
            raise ValueError(f"{{here}}.source is {self.source!r} but {{here}}.path is empty; name the data")
        return self


class PoolConfig(SourceConfig):
    """One pool of prompts, and which columns hold them."""

    columns: ColumnsConfig = ColumnsConfig()
    """Which column of the file holds what."""

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if self.source != "builtin" and not any((self.columns.prompt, self.columns.messages, self.columns.transcript)):
            raise ValueError("{here}.columns names no column to read; set prompt, messages or transcript")
        return self


class DataConfig(Settings):
    """The prompts: three pools, split once by the hash of each text."""

    red_team: PoolConfig
    """Harmful requests."""
    ordinary: PoolConfig
    """Ordinary requests."""
    look_alike: PoolConfig
    """Harmless requests that look harmful."""
    train_fraction: float = Field(default=0.6, ge=0, le=1)
    """Share of the prompts that are trained on."""
    validation_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of the prompts for choosing a policy during training; the rest is for the evaluation."""
    min_prompts: Annotated[int, RUNTIME] = Field(default=4, ge=0)
    """Refuse a pool that has fewer prompts in its training or test split."""

    @model_validator(mode="after")
    def _check_fractions(self) -> Self:
        total = self.train_fraction + self.validation_fraction
        if total >= 1:
            raise ValueError(
                f"{{here}}.train_fraction + {{here}}.validation_fraction is {total:g}; it must be below 1 so that a "
                "test split remains"
            )
        return self

    def key_of(self, name: str) -> Any:
        """A pool by the content of its source."""
        from pipeline.data.loading import pool_content

        value = getattr(self, name)
        return pool_content(name, value) if isinstance(value, PoolConfig) else value
