"""Checks before a run. Shared checks are here; each stage has its own in ``Stage.check``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pipeline.chain.config import Config
from pipeline.chain.estimates import check_memory
from pipeline.chain.order import stages_of
from pipeline.chain.rendering import check_rendering
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Prepared
from pipeline.core.tracking import check_tracking
from pipeline.data.loading import load_prompts
from pipeline.engines.model_checks import check_model
from pipeline.methods.base import METHODS


def preflight(config: Config, elsewhere: bool = False) -> Prepared:
    """Check the constitution, the prompts, the model, the tracker, the hardware and the output folder, then every stage
    that will run. ``elsewhere`` as in ``check_stages``.

    Raises:
        ConfigError: the first problem, with its remedy.
    """
    prepared = read_inputs(config)
    check_stages(prepared, elsewhere)
    return prepared


def read_inputs(config: Config) -> Prepared:
    """Read and check what every run needs: the constitution, the prompts, the tracker and the output folder.

    Raises:
        ConfigError: the first problem, with its remedy.
    """
    written = load_constitution(find_constitution(config.constitution.path))
    _check_output_folder(config.output_dir)
    check_tracking(config.tracking)
    loaded = load_prompts(config.data)
    stages = tuple(stage.name for stage in stages_of(config))
    unwritten = config.write.stand_ins(loaded.prompts) if "write" in stages else []
    prepared = Prepared(
        config=config,
        constitution=written.without(config.constitution.without).first(config.constitution.max_principles),
        prompts=[*loaded.prompts, *unwritten],
        stages=stages,
        notes=loaded.notes(),
    )
    if (asked := config.constitution.max_principles or 0) > len(written.principles):
        prepared.notes.append(
            f"constitution.max_principles is {asked} but there are only {len(written.principles)}; all are used."
        )
    prepared.notes.extend(prepared.constitution.notes())
    return prepared


def check_stages(prepared: Prepared, elsewhere: bool = False) -> None:
    """Check what making stages needs: the hardware, models and engines, and every stage. Adds notes and renderings.

    It loads heavy packages, so a run whose stages are all finished leaves it out.

    Args:
        elsewhere: the run is planned for another machine, so this one need not have its GPUs.

    Raises:
        ConfigError: the first problem, with its remedy.
    """
    config, stages = prepared.config, stages_of(prepared.config)
    if not elsewhere:
        _check_hardware(config)
    check_model(config.model.path, config.model.revision)
    feedback = config.feedback_engines("critique") | config.feedback_engines("preferences")
    if config.write.is_on:
        feedback |= config.feedback_engines("write")
    for field, engine in feedback.items():
        engine.check(field)
    config.policy_engine.check("policy_engine")
    for stage in stages:
        prepared.notes.extend(stage.check(prepared))
    rendering, notes = check_rendering(prepared, [use for stage in stages for use in stage.uses(prepared)])
    prepared.rendering.extend(rendering)
    prepared.notes.extend([*notes, *check_memory(prepared)])


def _check_output_folder(output_dir: str) -> None:
    folder = Path(output_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"output_dir is {output_dir!r}, which can't be written ({error.strerror}); give another folder."
        ) from None


def _check_hardware(config: Config) -> None:
    import importlib.util

    import torch

    cuda, launch = torch.cuda.is_available(), config.launch
    if config.model.tuning == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("model.tuning is 'qlora' but bitsandbytes is not installed; pip install bitsandbytes.")
    available = torch.cuda.device_count() if cuda else (os.cpu_count() or 1)
    if launch.num_processes > available:
        what = "GPUs" if cuda else "cores"
        raise ConfigError(
            f"launch.num_processes is {launch.num_processes} but this machine has {available} {what}; "
            f"use at most {available}."
        )
    if launch.sharding != "none":
        _check_sharding(config)


def _check_sharding(config: Config) -> None:
    """Refuse what can't run where ranks divide the weights, or what would silently not be divided."""
    import importlib.util

    sharding = config.launch.sharding
    if not can_shard():
        raise ConfigError(
            f"launch.sharding is {sharding!r}, but there is no GPU, and Accelerate divides weights only "
            "among GPUs; use launch=ddp."
        )
    if config.model.tuning == "qlora":
        raise ConfigError(
            f"launch.sharding is {sharding!r} but model.tuning is 'qlora', whose weights in 4 bits can't be divided; "
            "use model.tuning=lora, or launch=ddp."
        )
    if sharding == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("launch.sharding is 'zero3' but DeepSpeed is not installed; pip install deepspeed.")
    if sharding == "zero3" and not METHODS[config.align.method].reads_preferences:
        raise ConfigError(
            f"launch.sharding is 'zero3', but align.method={config.align.method} divides weights by FSDP; use "
            "launch=fsdp2."
        )


def can_shard() -> bool:
    import torch

    return torch.cuda.is_available()
