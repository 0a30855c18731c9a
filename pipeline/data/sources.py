"""Configuration of data sources for prompts and labelled rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.core.settings import RUNTIME, Settings


class ColumnsConfig(Settings):
    """The columns of a data file. A null column is not read."""

    prompt: str | None = "prompt"
    """Column with the request as text."""
    messages: str | None = None
    """Column with a dialogue: a list of {role, content} or {from, value} turns, or the same as JSON text."""
    transcript: str | None = None
    """Column with a dialogue as text with ``Human:`` and ``Assistant:`` turns."""
    kind: str | None = None
    """Column with the kind of request, for tables by kind."""
    id: str | None = None
    """Column with the id of each row; null: an id is made from the text."""
    manner: str | None = None
    """Column with the manner of wording (terse, polite, ...), for tables by manner and for ``held_out_manners``."""
    twin_of: str | None = None
    """Column with the id of the harmful request that a harmless one is the twin of; both are then in one split."""


_PLACE = frozenset({"path", "hub_name", "hub_dir", "hub_split", "revision"})


class SourceConfig(Settings):
    """Rows that ship with the project, or from a file, a folder or a data set on the hub."""

    source: Literal["builtin", "path", "hub"] = "builtin"
    """``builtin`` (ships with the project), ``path`` (a file or folder) or ``hub``."""
    path: str | None = None
    """The file or folder, or the id on the hub."""
    hub_name: str | None = None
    """The configuration name, if a hub data set has several."""
    hub_dir: str | None = None
    """The folder inside a hub data set."""
    hub_split: str = "train"
    """The split of a hub data set, of a ``datasets`` folder, or of a folder of files whose names say their split."""
    revision: str | None = None
    """The commit, branch or tag on the hub; null: main."""
    limit: int | None = Field(default=None, ge=1)
    """The most rows to read, from the first one on; null: all."""

    def key(self) -> dict[str, Any]:
        """The fields that this kind of source reads. The caller adds the content."""
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
            raise ValueError(f"{{here}}.source is {self.source!r} but {{here}}.path is empty; give a path or a hub id")
        return self


class PoolConfig(SourceConfig):
    """One pool of prompts, and the columns to read."""

    columns: ColumnsConfig = ColumnsConfig()
    """The columns of the file. If all have their defaults, the layout of a public set (docs/data.md) is looked for
    first."""
    num_prompts: int | None = Field(default=None, ge=1)
    """The most prompts: the first by the hash of their text, of all rows that are read; null: all."""

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        if self.source != "builtin" and not any((self.columns.prompt, self.columns.messages, self.columns.transcript)):
            raise ValueError("{here}.columns has no column to read; set prompt, messages or transcript")
        return self


class DataConfig(Settings):
    """The prompts: three pools, each split by the hash of its texts."""

    red_team: PoolConfig
    """Harmful requests."""
    ordinary: PoolConfig
    """Ordinary requests."""
    look_alike: PoolConfig
    """Harmless requests that look harmful."""
    train_fraction: float = Field(default=0.6, ge=0, le=1)
    """Share of the prompts in the training split."""
    validation_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of the prompts in the validation split (to choose a policy during training); the rest is the test split."""
    held_out_manners: list[str] = Field(default_factory=list)
    """Manners that nothing is trained on: their prompts are all in the test split."""
    written: str | None = None
    """A file of more training prompts, such as an edited ``written.jsonl`` of the stage ``write``; null: none."""
    counterfactuals: Annotated[str | None, RUNTIME] = None
    """A YAML file with attributes, groups and templates for counterfactual prompts (docs/fairness.md), which count by
    content where they are trained on; null: the shipped one."""
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

    def key(self) -> dict[str, Any]:
        """Without ``written`` where there is no such file."""
        return {name: value for name, value in super().key().items() if name != "written" or value is not None}

    def key_of(self, name: str) -> Any:
        """For a pool, the content of its source; for the file of written prompts, its content."""
        from pipeline.data.loading import pool_content
        from pipeline.data.written import written_content

        value = getattr(self, name)
        if name == "written":
            return None if value is None else written_content(value)
        return pool_content(name, value) if isinstance(value, PoolConfig) else value
