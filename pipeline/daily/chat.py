"""``cai chat``: talk to one model, or to two side by side, and see what the constitution says of a reply."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.chain.checkpoints import find_checkpoint, name_of, read_config, run_of
from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.constitution.critique import (
    critique_examples,
    critique_question,
    revision_examples,
    revision_question,
    tidy,
)
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.constitution.schema import POOL_TAGS, Constitution, Principle, is_same_reply
from pipeline.core.errors import ConfigError, StageError, did_you_mean
from pipeline.critique.rounds import why_no_revision
from pipeline.engines.base import Engine, Request, Weights, open_engine
from pipeline.engines.local import talking_engine
from pipeline.engines.model_checks import check_model
from pipeline.engines.roles import BASE
from pipeline.engines.streaming import Talking
from pipeline.engines.worklist import generate_all
from pipeline.evals.label_accuracy import Scratch
from pipeline.records import Message, Pool, derive_seed, derived_rng


@dataclass
class Speaker:
    """A model, and what was said between it and the user. Each model sees its own replies only."""

    name: str
    engine: Talking
    turns: list[Message] = field(default_factory=list)


@dataclass(frozen=True)
class Criticised:
    """A critique of the last reply under a principle, and its revision."""

    principle: Principle
    critique: str
    revision: str
    doubt: str
    """Why the revision may be of no use, in a sentence; "": nothing speaks against it."""


class Session:
    """A conversation.

    Args:
        open_critic: opens the engine that criticises; called when it is first needed.
        of_run: the first model is the checkpoint of a run.
    """

    def __init__(
        self,
        speakers: Sequence[Speaker],
        constitution: Constitution,
        open_critic: Callable[[], Engine],
        config: Config,
        max_reply_tokens: int,
        temperature: float,
        of_run: bool,
    ) -> None:
        self.of_run = of_run
        self.speakers, self.constitution = list(speakers), constitution
        self._open_critic, self._config = open_critic, config
        self._critic: Engine | None = None
        self._max_reply_tokens, self._temperature = max_reply_tokens, temperature
        self.criticised: Criticised | None = None
        """Of the last reply of the first model, if it was asked for."""

    @property
    def turns(self) -> list[Message]:
        """What was said between the user and the first model."""
        return self.speakers[0].turns

    def start_again(self) -> None:
        self.criticised = None
        for speaker in self.speakers:
            speaker.turns = []

    def ask(self, text: str) -> list[Iterator[str]]:
        """Put a turn of the user to every model. Each iterator draws a reply, and adds it to the conversation.

        Raises:
            ConfigError: the conversation is too long for a model.
        """
        requests = [self._request(speaker, text) for speaker in self.speakers]
        for speaker, request in zip(self.speakers, requests, strict=True):
            if not speaker.engine.fits(request):
                raise ConfigError(
                    f"the conversation is too long for {speaker.name}; begin another one with /new, or lower "
                    "--max-reply-tokens."
                )
        self.criticised = None
        return [self._reply(speaker, request) for speaker, request in zip(self.speakers, requests, strict=True)]

    def _request(self, speaker: Speaker, text: str) -> Request:
        turns = [*speaker.turns, Message(role="user", content=text)]
        return Request(
            id="chat",
            messages=turns,
            seed=derive_seed(self._config.seed, "chat", len(turns), text),
            max_new_tokens=self._max_reply_tokens,
            temperature=self._temperature,
            top_p=1.0,
        )

    @staticmethod
    def _reply(speaker: Speaker, request: Request) -> Iterator[str]:
        said: list[str] = []
        try:
            for piece in speaker.engine.stream(request):
                said.append(piece)
                yield piece
        finally:  # a reply that the user stops is kept as far as it came
            reply = Message(role="assistant", content="".join(said).strip())
            speaker.turns = [*request.messages, reply]

    def critique(self, principle_id: str | None = None) -> Criticised:
        """Criticise and revise the last reply of the first model, as the stage ``critique`` does.

        Args:
            principle_id: None: draw one by weight; it follows from the conversation and the seed.

        Raises:
            ConfigError: there is no reply yet, or no such principle.
            StageError: the critic wrote nothing that can be used.
        """
        if not self.turns:
            raise ConfigError("there is no reply to criticise yet; say something first.")
        *prompt, last = self.turns
        principle = self._principle(principle_id, prompt)
        pool: Pool = "red_team" if POOL_TAGS["red_team"] & set(principle.tags) else "ordinary"
        number = self._config.critique.num_few_shot
        critique = self._ask_critic(
            "critique",
            critique_examples(self.constitution, pool, number),
            critique_question(prompt, last["content"], principle),
            self._config.critique.max_critique_tokens,
        )
        revision = self._ask_critic(
            "revision",
            revision_examples(self.constitution, pool, number),
            revision_question(prompt, last["content"], critique, principle),
            self._config.critique.max_revision_tokens,
        )
        doubt = _doubt(revision, last["content"], prompt[-1]["content"], principle)
        self.criticised = Criticised(principle, critique, revision, doubt)
        return self.criticised

    def _principle(self, principle_id: str | None, prompt: Sequence[Message]) -> Principle:
        known = {principle.id: principle for principle in self.constitution.principles}
        if principle_id is None:
            rng = derived_rng(self._config.seed, "chat", len(prompt), prompt[-1]["content"])
            return self.constitution.sample(None, 1, rng)[0]
        if principle_id not in known:
            raise ConfigError(f"there is no principle {principle_id!r}{did_you_mean(principle_id, known)}.")
        return known[principle_id]

    def _ask_critic(self, what: str, examples: list[Message], question: str, max_tokens: int) -> str:
        if self._critic is None:
            self._critic = self._open_critic()
        request = Request(
            id=f"critic/{derive_seed(question)}",
            messages=[*examples, Message(role="user", content=question)],
            seed=derive_seed(self._config.seed, question),
            max_new_tokens=max_tokens,
            temperature=self._config.critique.temperature,
            top_p=self._config.critique.top_p,
        )
        with TemporaryDirectory() as folder:
            logbook = Scratch(Path(folder))
            [completion] = generate_all(self._critic, what, [request], logbook, what).values()
        text = tidy(completion.text, cut_off=completion.finish == "length")
        if not text:
            raise StageError(
                f"the critic {self._critic.name} wrote nothing that can be used; try again with /critique."
            )
        return text


def _doubt(revision: str, reply: str, request: str, principle: Principle) -> str:
    if is_same_reply(revision, reply):
        return "The revision changes no word of the reply. A small critic often can't do more: correct it by hand."
    if why_no_revision(revision, request, principle):
        return (
            "The revision copies the request or the instruction, or repeats a phrase. A run leaves such revisions out."
        )
    return ""


def open_session(
    model: str,
    against: str | None,
    constitution: str | None,
    output_dir: str,
    max_reply_tokens: int,
    temperature: float,
) -> Session:
    """Load the models of a chat.

    Args:
        model: a run, a model folder or a hub id. A run brings its constitution and its critic.
        against: the same for a second model; ``base`` is the model that the run began with.
        constitution: a file or the name of a shipped one, in place of the run's.

    Raises:
        ConfigError: a model or the constitution can't be used.
    """
    path = find_checkpoint(model, output_dir, "MODEL")
    run = run_of(path)
    config = read_config(run) if run else compose_config([], None)
    if run is None:
        own = config.model.model_copy(update={"path": path, "revision": None})
        config = config.model_copy(update={"model": own})
    paths = {name_of(path): path}
    if against is not None:
        other = config.model.path if against == BASE and run else find_checkpoint(against, output_dir, "--against")
        if other == path:
            raise ConfigError(f"--against is {against!r}, which is MODEL itself; give another model, or leave it out.")
        name = BASE if other == config.model.path else name_of(other)
        paths[name if name not in paths else f"{name}-2"] = other
    where = find_constitution(constitution) if constitution else run / "constitution.yaml" if run else None
    rules = load_constitution(where or find_constitution("default"))
    for given, place in zip(("MODEL", "--against"), paths.values(), strict=False):
        check_model(place, _revision(config, place), given)
    speakers = [Speaker(name, _open(config, name, place)) for name, place in paths.items()]
    return Session(speakers, rules, lambda: _critic(config), config, max_reply_tokens, temperature, run is not None)


def _open(config: Config, name: str, path: str) -> Talking:
    weights = Weights(path=path, revision=_revision(config, path), precision=config.model.precision, name=name)
    return talking_engine(weights, config.launch)


def _revision(config: Config, path: str) -> str | None:
    return config.model.revision if path == config.model.path else None


def _critic(config: Config) -> Engine:
    """The engine that criticised in the run; by default the model that the run began with."""
    [(field, settings)] = config.feedback_engines("critique").items()
    settings.check(field)
    settings.reach(field)
    model = config.model
    weights = Weights(path=model.path, revision=model.revision, precision=model.precision, name=BASE)
    return open_engine(settings, weights, config.launch)
