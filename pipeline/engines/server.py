"""``server``: servers with OpenAI's chat API, such as vLLM, SGLang, llama.cpp, Ollama or a hosted one."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from jinja2 import TemplateError
from pydantic import Field, model_validator

from pipeline.chat import Renderer
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError, first_line
from pipeline.core.log import warn
from pipeline.core.settings import RUNTIME
from pipeline.engines.addresses import Addresses, trouble_with_url
from pipeline.engines.base import ENGINES, Engine, EngineConfig, EngineKind, Price, Weights
from pipeline.engines.chat_server import STOPS, RefusedError, ServerError
from pipeline.engines.live import LiveEngine, LivePolicy
from pipeline.engines.models import generation_ends, load_tokenizer, model_identity, resolve_path, short_name
from pipeline.engines.probing import REQUEST, LackError, compare_tokens, explained, probe
from pipeline.engines.prompts import ChatPrompts, Prompts, Scores, TokenPrompts
from pipeline.engines.sender import Sender
from pipeline.engines.served_rollouts import ServedRollouts, refuse_rollouts, serving_options
from pipeline.engines.server_engine import ServerEngine
from pipeline.engines.serving import KEYS_OF_SERVERS, Serving, is_program, trouble_with_command
from pipeline.engines.votes import VotingEngine

OWN_URL = "https://api.openai.com/v1"  # OpenAI's own server
SECONDS_BEFORE_A_RUN, CONNECT_SECONDS_BEFORE_A_RUN = 30.0, 5.0  # limits of the one request of ``reach``


@ENGINES.add
class Server(EngineKind):
    """Servers with a chat API."""

    name = "server"
    runs_live_model = takes_adapters = True

    class Config(EngineConfig):
        """Servers with OpenAI's chat API."""

        kind: Literal["server"] = "server"
        """One or several servers with OpenAI's chat API."""
        model: str | None = None
        """The model's name on the server; with ``serve`` its folder or hub id; null: the model that is aligned."""
        model_version: str = ""
        """Its revision, number format or quantisation, in your own words; it counts in the cache key."""
        prompts: Literal["chat", "tokens"] = "chat"
        """``chat``: the server renders the turns; ``tokens``: they are rendered here, as for training."""
        tokenizer: str | None = None
        """A folder or hub id with the tokenizer for ``tokens``; null: that of the model of ``serve``."""
        scores: Scores = "none"
        """How the server scores a given reply: ``vllm`` or ``sglang``, with ``tokens``; ``none``: it can't."""
        votes: int = Field(default=0, ge=0)
        """Choices (labels, verdicts) are shares of so many sampled answers; 0: log-probabilities are read."""
        price_per_million_tokens: Annotated[Price | None, RUNTIME] = None
        """What a million tokens cost, for ``cai plan`` and the manifests: {input: …, output: …}."""
        base_url: Annotated[str | list[str] | None, RUNTIME] = None
        """Address of the server, up to /v1, or a list of addresses with the same model; null: OpenAI's own."""
        serve: str | None = None
        """A command that starts a server for the run; {model} in it becomes the folder or hub id of the weights, {port}
        a free port, {name} the model's name, and {lora} the options with which vLLM takes adapters, for rollouts."""
        serve_seconds: Annotated[float, RUNTIME] = Field(default=600.0, ge=1)
        """The longest time until the server of ``serve`` answers, in seconds."""
        api_key_variable: Annotated[str, RUNTIME] = "OPENAI_API_KEY"
        """The environment variable that holds the key. A server of ``serve`` gets it as VLLM_API_KEY and LLAMA_API_KEY,
        which vLLM and llama.cpp then ask for; one of these that is set is used if this variable is not."""
        max_parallel: Annotated[int, RUNTIME] = Field(default=8, ge=1)
        """The most requests that each process has under way at one address."""
        max_retries: Annotated[int, RUNTIME] = Field(default=8, ge=0)
        """How often a failed request is sent again."""
        timeout_seconds: Annotated[float, RUNTIME] = Field(default=120.0, ge=0.1)
        """The longest time that one request may take, in seconds."""
        patience_seconds: Annotated[float, RUNTIME] = Field(default=180.0, ge=0)
        """The run stops if no request succeeds for so long, in seconds."""
        max_failed_share: float = Field(default=0.0, ge=0, le=1)
        """The share of requests that may fail; they are counted, and left out. Above it, the stage stops."""

        @property
        def model_name(self) -> str | None:
            return self.model and short_name(self.model)

        @property
        def identity(self) -> str:
            return str(self.key_of("model")) if self.serve else super().identity

        @property
        def price(self) -> Price | None:
            return self.price_per_million_tokens

        @property
        def runs_weights(self) -> bool:
            return self.model is None and self.prompts == "tokens"

        @property
        def scores_replies(self) -> bool:
            return self.scores != "none"

        @property
        def num_votes(self) -> int:
            return self.votes

        @property
        def starts_a_server(self) -> bool:
            return self.serve is not None

        @property
        def urls(self) -> list[str]:
            """The addresses of running servers."""
            if self.serve:
                return []
            if self.base_url is None:
                return [OWN_URL]
            return self.base_url if isinstance(self.base_url, list) else [self.base_url]

        def key_of(self, name: str) -> Any:
            """Weights that the run itself serves count by content."""
            if name == "model" and self.serve and self.model:
                return model_identity(self.model, None)
            if name == "tokenizer" and self.tokenizer:
                return model_identity(self.tokenizer, None)
            return super().key_of(name)

        @model_validator(mode="after")
        def _check_serve(self) -> Self:
            if self.serve is None:
                if self.model is None:
                    raise ValueError("{here}.model must be set; add {here}.model=NAME")
                return self
            if self.base_url is not None:
                raise ValueError("{here}.serve and {here}.base_url are both set; leave one of them out")
            if trouble := trouble_with_command(self.serve):
                raise ValueError(f"{{here}}.serve {trouble}")
            if self.model is None and "{model}" not in self.serve:
                raise ValueError(
                    f"{{here}}.serve is {self.serve!r}, which has no {{model}} in it; write it where the command takes "
                    "the weights, or set {here}.model"
                )
            return self

        @model_validator(mode="after")
        def _check_prompts(self) -> Self:
            if self.prompts == "tokens" and self.tokenizer is None and self.serve is None:
                raise ValueError("{here}.prompts is 'tokens', which needs {here}.tokenizer=FOLDER_OR_ID")
            if self.prompts == "tokens" and self.votes:
                raise ValueError("{here}.votes is for {here}.prompts=chat; with tokens, log-probabilities are read")
            if self.prompts == "chat" and (self.tokenizer is not None or self.scores != "none"):
                name = "tokenizer" if self.tokenizer is not None else "scores"
                raise ValueError(
                    f"{{here}}.{name} is set, which needs {{here}}.prompts=tokens; set it, or leave it out"
                )
            return self

        @model_validator(mode="after")
        def _check_urls(self) -> Self:
            if not self.urls and self.serve is None:
                raise ValueError("{here}.base_url is an empty list; give at least one address")
            for url in self.urls:
                if trouble := trouble_with_url(url):
                    raise ValueError(f"{{here}}.base_url {trouble}")
            if len(set(self.urls)) < len(self.urls):
                raise ValueError("{here}.base_url names an address twice; name each once")
            return self

        def check(self, field: str) -> None:
            if self.serve is not None and not is_program(self.serve):
                raise ConfigError(
                    f"{field}.serve is {self.serve!r}, but its first word is no program here; install it, or give its "
                    "whole path."
                )
            if self.serve and self.model and self.model[0] in "./~" and not Path(self.model).expanduser().exists():
                raise ConfigError(f"{field}.model is {self.model!r}, but there is no such file or folder; correct it.")
            if self.prompts == "tokens" and (self.tokenizer or self.model):
                self._check_tokenizer(field)

        def _check_tokenizer(self, field: str) -> None:
            """Render a prompt, as the run will."""
            try:
                make_prompts(self, "", Weights(path="", name="")).post(REQUEST)
            except (OSError, ValueError, TemplateError) as error:
                raise ConfigError(
                    f"{field}.tokenizer is {(self.tokenizer or self.model)!r}, which can't render a prompt "
                    f"({first_line(error)}); give a folder or hub id with tokenizer, chat template and config.json."
                ) from None

        def check_rollouts(self, field: str, lora_rank: int, launch: LaunchConfig) -> None:
            refuse_rollouts(field, str(self.serve), self.scores, lora_rank)

        def reach(self, field: str, reads_choices: bool = False) -> None:
            """Ask each server for one token. Each kind of failure is a sentence of its own."""
            refuse_odd_key(self, field)
            if self.serve is not None:
                return  # it starts when it is needed
            reads = reads_choices and not self.votes
            troubles = [error for url in self.urls if (error := self._trouble_at(url, field, reads)) is not None]
            if len(troubles) == len(self.urls):
                raise troubles[0]
            for error in troubles:
                warn(f"{error} The others are used.")

        def _trouble_at(self, url: str, field: str, reads_choices: bool) -> ConfigError | None:
            """Why this server can't be used now. Raises ConfigError for what the settings must change."""
            name = str(self.model)
            sender = make_sender(self, name, [url], SECONDS_BEFORE_A_RUN, CONNECT_SECONDS_BEFORE_A_RUN)
            prompts = make_prompts(self, name, Weights(path="", name=name))
            unknown = (
                f"{url} can't say what token ids mean to it (/detokenize): make sure that {field}.tokenizer is that of "
                "its model, or its replies are those to other texts."
            )
            try:
                outcome = probe(sender.send_one, name, prompts, reads_choices=reads_choices)
                if not isinstance(outcome, ServerError):
                    compare_tokens(sender.send_one, name, prompts, unknown)
            except LackError as lack:
                raise ConfigError(lack.sentence(f"{field}.", url)) from None
            if isinstance(outcome, ServerError):
                trouble = ConfigError(explained(self, url, field, outcome))
                if outcome.status in STOPS:
                    raise trouble
                return trouble
            # Models that think refuse so small a limit, but they have answered.
            if isinstance(outcome, RefusedError) and "max_tokens" not in str(outcome):
                raise ConfigError(f"{field}.model is {self.model!r}, and the server refuses it: {outcome}.")
            return None

    @staticmethod
    def open(config: EngineConfig, weights: Weights, launch: LaunchConfig) -> Engine:
        assert isinstance(config, Server.Config)
        serving = serve(config, weights) if config.serve else None
        name = config.model_name or weights.name
        engine = ServerEngine(
            make_sender(config, name, config.urls),
            name=name,
            prompts=make_prompts(config, serving.model_name if serving else str(config.model), weights),
            serving=serving,
            max_failed_share=config.max_failed_share,
            key_variable=key_variable(config),
            price=config.price,
        )
        return VotingEngine(engine, config.votes) if config.votes else engine

    @staticmethod
    def over(config: Server.Config, policy: LivePolicy, launch: LaunchConfig) -> LiveEngine:
        serving = serve(config, policy.base, **serving_options(policy.lora_rank))
        return ServedRollouts(policy, serving, make_sender(config, policy.base.name, []))


def key_variable(config: Server.Config) -> str:
    """The environment variable with the key: that of the settings, or the one that a server of ``serve`` looks for."""
    names = [config.api_key_variable, *(KEYS_OF_SERVERS if config.serve else ())]
    return next((name for name in names if os.environ.get(name)), config.api_key_variable)


def refuse_odd_key(config: Server.Config, field: str) -> None:
    """Check the key without showing it. A server of one's own mostly needs none."""
    name = key_variable(config)
    key = os.environ.get(name, "")
    if not key and config.base_url is None and config.serve is None:
        raise ConfigError(
            f"{field}.api_key_variable is {name!r}, which is not set in the environment; put your key there, or give "
            f"the address of another server as {field}.base_url."
        )
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(
            f"{field}.api_key_variable: {name} has spaces or characters in it that no key has; set it again."
        )


def make_prompts(config: Server.Config, model: str, weights: Weights) -> Prompts:
    """What is sent to the server for an ask. ``model`` is the model's name there."""
    if config.prompts == "chat":
        return ChatPrompts(model)

    def load() -> Renderer:
        path = resolve_path(config.tokenizer or config.model or weights.path)
        is_own = config.tokenizer is None and config.model is None and not Path(path).is_dir()
        revision = weights.revision if is_own else None
        return Renderer(load_tokenizer(path, revision), generation_ends(path, revision))

    return TokenPrompts(model, load, config.scores)


def serve(config: Server.Config, weights: Weights, **more: Any) -> Serving:
    """The server that runs the model of the settings or else ``weights``. It is not started yet."""
    assert config.serve is not None
    return Serving(
        config.serve,
        model=resolve_path(config.model or weights.path),
        revision=None if config.model else weights.revision,
        name=config.model_name or weights.name,
        seconds=config.serve_seconds,
        key=os.environ.get(key_variable(config), ""),
        **more,
    )


def make_sender(
    config: Server.Config, name: str, urls: list[str], seconds: float = math.inf, connect_seconds: float = math.inf
) -> Sender:
    """What sends requests to these addresses. The limits in seconds hold where they are below ``timeout_seconds``."""
    return Sender(
        Addresses(urls, config.max_parallel, config.patience_seconds),
        name=name,
        key=os.environ.get(key_variable(config), ""),
        max_retries=config.max_retries,
        timeout_seconds=min(config.timeout_seconds, seconds),
        connect_seconds=min(config.timeout_seconds, connect_seconds),
    )
