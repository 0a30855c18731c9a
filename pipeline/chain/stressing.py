"""``cai constitution stress``: find the constitution, the engines and the folder, and keep what is found there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chain.preflight import read_inputs
from pipeline.constitution.schema import Constitution
from pipeline.core.cache import WORK, cache_key, write_text_atomically
from pipeline.core.errors import ConfigError
from pipeline.core.locks import locked
from pipeline.core.log import logged_to, say
from pipeline.core.settings import key_of
from pipeline.core.stage import Prepared
from pipeline.core.tracking import TrackingConfig
from pipeline.engines.base import ENGINES, Engine, EngineConfig, Weights, open_engine
from pipeline.engines.model_checks import check_model
from pipeline.engines.roles import BASE
from pipeline.engines.worklist import Logbook
from pipeline.evals.label_accuracy import Scratch
from pipeline.explain.stress import Stress, read_wordings, stress
from pipeline.explain.tradeoffs import Tradeoff, Two, choose_pairs, draw, read_tradeoffs, write
from pipeline.labellers.base import TEMPLATE
from pipeline.records import Record
from pipeline.report.stressed import markdown
from pipeline.writing.asks import TEMPLATE as WRITING

VERSION = 1  # raise it if other requests, replies or wordings come out of the same settings
REQUESTS, JUDGEMENTS, FINDINGS, PAGE = "requests.jsonl", "judgements.jsonl", "stress.json", "stress.md"
JUDGED_BY = "preferences=feedback"  # ab, and whole replies


def stress_config(file: str, overrides: Sequence[str], config_dir: Path | None = None) -> Config:
    """The configuration for a constitution. Without another choice, the labeller is ``ab``."""
    chooses = any(word.startswith(("preferences=", "recipe=", "experiment=")) for word in overrides)
    config = compose_config([*([] if chooses else [JUDGED_BY]), *overrides], config_dir)
    constitution = config.constitution.model_copy(update={"path": file})
    return config.model_copy(update={"constitution": constitution, "tracking": TrackingConfig(kind="none")})


def stress_constitution(config: Config, num_pairs: int, num_requests: int, requests: str | None) -> tuple[Stress, Path]:
    """Return what was found, and the folder where requests, judgements and findings are kept.

    A folder belongs to one constitution, its engines and its settings. If it has requests already, perhaps edited,
    these are judged, and what was asked before is not asked again.

    Raises:
        ConfigError: the constitution, the labeller, an engine or the file of requests can't be used.
    """
    prepared = read_inputs(config)
    constitution = prepared.constitution
    if config.preferences.labels == "pool":
        raise ConfigError(
            "preferences.labels is 'pool', which does not read the principles, so it can't tell two of them apart; use "
            "preferences=ab, cot or pointwise."
        )
    read_wordings(config.preferences.labeller, constitution)
    pairs = choose_pairs(constitution, num_pairs)
    given = None if requests is None else read_tradeoffs(requests, constitution)
    _check_engines(config)
    folder = _folder(config, constitution, num_pairs, num_requests, given is not None)
    folder.mkdir(parents=True, exist_ok=True)
    logbook = Scratch(folder / WORK)
    try:
        with locked(folder, several_machines=False), logged_to(folder):
            judge = _opened(config.feedback_engine("preferences"), config)
            if given is None and (folder / REQUESTS).exists():
                given = read_tradeoffs(str(folder / REQUESTS), constitution)
            tradeoffs = given or _write(prepared, pairs, num_requests, judge, logbook)
            _keep(folder / REQUESTS, tradeoffs)
            say(f"requests: {folder / REQUESTS} ({len(tradeoffs)}; edit them and run the same command again)")
            found, judged = stress(
                tradeoffs,
                constitution,
                judge,
                config.preferences.labeller,
                config.preferences,
                config.seed,
                logbook,
                config.evaluate.confidence,
            )
            _keep(folder / JUDGEMENTS, judged)
            write_text_atomically(folder / FINDINGS, found.model_dump_json(indent=1) + "\n")
            write_text_atomically(folder / PAGE, markdown(found))
    finally:
        for name in ENGINES:
            ENGINES[name].release()
    return found, folder


def _write(
    prepared: Prepared, pairs: Sequence[Two], num_requests: int, judge: Engine, logbook: Logbook
) -> list[Tradeoff]:
    """Requests by the writer's engine, and drawn ones where it has written too few."""
    config = prepared.config
    say(f"stress: {len(pairs)} pairs of principles, {num_requests} requests for each")
    settings = config.feedback_engine("write")
    writer = judge if settings == config.feedback_engine("preferences") else _opened(settings, config)
    drawn = draw(prepared.constitution, pairs, prepared.prompts)
    return write(pairs, drawn, num_requests, writer, config.write, config.seed, logbook)


def _keep(path: Path, records: Sequence[Record]) -> None:
    write_text_atomically(path, "".join(record.model_dump_json() + "\n" for record in records))


def _opened(settings: EngineConfig, config: Config) -> Engine:
    model = config.model
    weights = Weights(path=model.path, revision=model.revision, precision=model.precision, name=BASE)
    return open_engine(settings, weights, config.launch)


def _check_engines(config: Config) -> None:
    """Refuse an engine that can't answer, before anything is asked."""
    check_model(config.model.path, config.model.revision)
    engines = config.feedback_engines("preferences") | config.feedback_engines("write")
    for field, engine in engines.items():
        engine.check(field)
        engine.reach(field, reads_choices=field in config.feedback_engines("preferences"))


def _folder(config: Config, constitution: Constitution, num_pairs: int, num_requests: int, is_given: bool) -> Path:
    """The folder for everything that decides the answers. The logs have the texts of requests and replies in their
    ids, so requests of a file don't count."""
    own, model = config.preferences, config.model
    key = cache_key(
        {
            "version": [VERSION, TEMPLATE, WRITING],
            "constitution": key_of(constitution),
            "labeller": key_of(own.labeller),
            "engines": [key_of(config.feedback_engine(role)) for role in ("preferences", "write")],
            "model": [model.key_of("path"), model.revision, model.precision],
            "sampling": [own.temperature, own.top_p, own.max_reply_tokens, config.seed],
            "requests": "given" if is_given else [num_pairs, num_requests, key_of(config.write), key_of(config.data)],
        }
    )
    return Path(config.output_dir).expanduser() / "stress" / f"{constitution.name}-{key[:6]}"
