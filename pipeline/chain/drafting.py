"""``cai constitution new`` with an engine: opens it, and keeps its answers so that a stopped command goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.chain.compose import compose_config
from pipeline.constitution.drafts import Kind
from pipeline.constitution.markdown import Rule
from pipeline.core.cache import WORK, cache_key
from pipeline.core.settings import key_of
from pipeline.engines.base import ENGINES, Weights, open_engine
from pipeline.engines.model_checks import check_model
from pipeline.engines.roles import BASE
from pipeline.evals.label_accuracy import Scratch
from pipeline.writing.drafting import TEMPLATE, Drafted, draft_principles


def draft_with_engine(
    rules: Sequence[tuple[Rule, Kind]], overrides: Sequence[str], config_dir: Path | None = None
) -> Drafted:
    """What the writer's engine (``write.engine``, or else ``engine``) makes of the rules.

    Raises:
        ConfigError: an override is wrong, or the engine can't be used.
    """
    config = compose_config(overrides, config_dir)
    model, settings = config.model, config.feedback_engine("write")
    check_model(model.path, model.revision)
    for name, engine in config.feedback_engines("write").items():
        engine.check(name)
        engine.reach(name, reads_choices=False)
    asked = [[rule.text, rule.title, kind] for rule, kind in rules]
    weights = [model.key_of("path"), model.revision, model.precision]
    key = cache_key(
        {"template": TEMPLATE, "rules": asked, "engine": key_of(settings), "model": weights, "seed": config.seed}
    )
    logbook = Scratch(Path(config.output_dir).expanduser() / "drafts" / key[:12] / WORK)
    opened = Weights(path=model.path, revision=model.revision, precision=model.precision, name=BASE)
    try:
        return draft_principles(rules, open_engine(settings, opened, config.launch), config.seed, logbook)
    finally:
        for name in ENGINES:
            ENGINES[name].release()
