"""Where prompts, labelled rows and feedback come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.core.checks import one_of, within
from pipeline.core.errors import ConfigError


@dataclass(kw_only=True)
class ColumnsConfig:
    """Which column of a data file holds what. A null column is not read."""

    prompt: str | None = "prompt"
    messages: str | None = None
    transcript: str | None = None
    kind: str | None = None
    id: str | None = None


@dataclass(kw_only=True)
class SourceConfig:
    """Where rows come from: ``builtin``, a file or folder (``path``), or a hub data set (``hub``)."""

    source: str = "builtin"
    path: str | None = None
    hub_name: str | None = None
    """The configuration of a hub data set that has several."""
    hub_dir: str | None = None
    hub_split: str = "train"
    revision: str | None = None
    limit: int | None = None

    section = "data.<pool>"
    sources: ClassVar[tuple[str, ...]] = ("builtin", "path", "hub")

    def __post_init__(self) -> None:
        name = self.section
        one_of(f"{name}.source", self.source, self.sources)
        if self.source in {"builtin", "none"} and self.path:
            raise ConfigError(
                f"{name}.path is {self.path!r} but {name}.source is {self.source!r}; set {name}.source=path (or hub)."
            )
        if self.source in {"path", "hub"} and not self.path:
            raise ConfigError(f"{name}.source is {self.source!r} but {name}.path is empty; name the data.")
        if self.limit is not None:
            within(f"{name}.limit", self.limit, 1)


@dataclass(kw_only=True)
class PoolConfig(SourceConfig):
    """One pool of prompts, and which columns hold them."""

    columns: ColumnsConfig = field(default_factory=ColumnsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source != "builtin" and not any((self.columns.prompt, self.columns.messages, self.columns.transcript)):
            raise ConfigError("data.<pool>.columns names no column to read; set prompt, messages or transcript.")


@dataclass(kw_only=True)
class DataConfig:
    red_team: PoolConfig
    ordinary: PoolConfig
    look_alike: PoolConfig
    train_fraction: float = 0.6
    validation_fraction: float = 0.1
    min_prompts: int = 4

    def __post_init__(self) -> None:
        within("data.train_fraction", self.train_fraction, 0, 1)
        within("data.validation_fraction", self.validation_fraction, 0, 1)
        if self.train_fraction + self.validation_fraction >= 1:
            total = self.train_fraction + self.validation_fraction
            raise ConfigError(
                f"data.train_fraction + data.validation_fraction is {total:g}; "
                "it must be below 1 so that a test split remains."
            )


@dataclass(kw_only=True)
class ServerConfig:
    """A server that speaks OpenAI's chat protocol."""

    base_url: str | None = None
    model: str | None = None
    api_key_variable: str = "OPENAI_API_KEY"
    max_parallel: int = 8
    max_retries: int = 5
    timeout_seconds: float = 120.0

    section = "engine"

    def __post_init__(self) -> None:
        within(f"{self.section}.max_parallel", self.max_parallel, 1)
        within(f"{self.section}.max_retries", self.max_retries, 0)
        within(f"{self.section}.timeout_seconds", self.timeout_seconds, 0.1)
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"{self.section}.base_url is {self.base_url!r}; it must begin with http:// or https://.")


@dataclass(kw_only=True)
class EngineConfig(ServerConfig):
    """Who gives the feedback: the model itself, another local model (``path``), or an OpenAI-compatible server."""

    kind: str = "hf"
    path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("engine.kind", self.kind, ("hf", "openai"))
        if self.kind == "openai":
            if not self.model:
                raise ConfigError("engine.kind is 'openai' but engine.model is empty; name the model the server has.")
            if self.path:
                raise ConfigError("engine.path is set but engine.kind is 'openai'; set engine.model, or engine=local.")
        elif self.model or self.base_url:
            raise ConfigError(
                "engine.model or engine.base_url is set but engine.kind is 'hf'; use engine=openai for a server, "
                "engine.path for another local model."
            )
