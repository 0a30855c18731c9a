"""What a run needs: memory on each device, hours and money. ``cai plan`` prints it, and what can't fit is refused."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.chain.order import stages_of
from pipeline.chain.plan import Step
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Cost, Memory, Prepared
from pipeline.engines.models import ModelConfig

GIB = 2**30
PROCESS_GIB = 0.5  # Python and the libraries on a CPU, the driver's context on a GPU


def memory_of(prepared: Prepared) -> dict[str, Memory]:
    """Stage → what it needs on one device, for the stages that hold a model."""
    found = {stage.name: stage.memory(prepared) for stage in stages_of(prepared.config)}
    return {name: memory for name, memory in found.items() if memory.total}


def device_memory(launch: LaunchConfig) -> float:
    """GiB that each process has: as stated, or of this machine's first GPU, or its share of this machine's memory."""
    import psutil
    import torch

    if launch.device_memory_gib is not None:
        return launch.device_memory_gib
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory / GIB)
    return float(psutil.virtual_memory().total / GIB / launch.num_processes)


def check_memory(prepared: Prepared) -> list[str]:
    """Refuse a run that can't fit the devices. Returns warnings about stages that may not fit.

    Raises:
        ConfigError: the weights of a stage alone, with gradients and optimiser states, are larger than a device.
    """
    launch = prepared.config.launch
    available = device_memory(launch)
    notes = []
    for name, memory in memory_of(prepared).items():
        if memory.lasting + PROCESS_GIB > available:
            raise ConfigError(_does_not_fit(name, memory, available, prepared.config.model))
        if (needed := memory.total + PROCESS_GIB) > available:
            field = "launch.batch_rows" if memory.cache else "launch.per_device_batch_size"
            notes.append(
                f"{name} needs about {needed:.1f} GiB on each device, which has {available:.1f} GiB; if it runs out of "
                f"memory, lower {field}."
            )
    return notes


def _does_not_fit(stage: str, memory: Memory, available: float, model: ModelConfig) -> str:
    if memory.optimiser:
        states = f" and {memory.optimiser:.1f} GiB for gradients and optimiser states"
        remedy = "model.tuning=lora or qlora, more GPUs with launch=fsdp2"
    else:
        states, remedy = "", "policy_engine=vllm with tensor_parallel, model.precision=bf16"
    return (
        f"model.path is {model.path!r} and model.tuning is {model.tuning!r}: {stage} needs {memory.weights:.1f} GiB "
        f"for weights{states} on each device, which has {available:.1f} GiB; use {remedy}, or a smaller model."
    )


def memory_table(prepared: Prepared) -> list[str]:
    """The lines of a table in GiB, for one device."""
    names = f"{'weights':>8} {'optimiser':>10} {'activations':>12} {'KV cache':>9} {'kernels':>8} {'sum':>7}"
    lines = [f"  {'GiB on each device':<20} {names}"]
    for name, memory in memory_of(prepared).items():
        parts = f"{memory.weights:>8.2f} {memory.optimiser:>10.2f} {memory.activations:>12.2f} {memory.cache:>9.2f} "
        parts += f"{memory.kernels:>8.2f}"
        lines.append(f"  {name:<20} {parts} {memory.total + PROCESS_GIB:>7.2f}")
    available = device_memory(prepared.config.launch)
    return [*lines, f"  each sum has {PROCESS_GIB} GiB for the process; a device has {available:.1f} GiB"]


def hours_of(cost: Cost, launch: LaunchConfig) -> float | None:
    """Hours of a stage at the stated rates; None if a rate that it needs is not stated.

    Beginnings that prompts share count once, that is, hardly: all engines keep them.
    """
    work = _tokens_by_rate(cost)
    if any(getattr(launch.rates, rate) is None for rate in work):
        return None
    return sum(number / getattr(launch.rates, rate) for rate, number in work.items()) / launch.world_size / 3600


def _tokens_by_rate(cost: Cost) -> dict[str, int]:
    """Field of ``launch.rates`` → tokens that are done at this rate. Rates that a stage does not need are left out."""
    reading = "trained" if cost.num_steps else "read"
    work = {"written": cost.num_tokens_written, reading: cost.num_tokens_read - cost.num_tokens_repeated}
    return {rate: number for rate, number in work.items() if number}


def time_and_money(steps: Sequence[Step], launch: LaunchConfig) -> list[str]:
    """One line, which says what is missing if a rate is. None is assumed: they differ by model, engine and device."""
    hours = [hours_of(step.cost, launch) for step in steps]
    known = [hour for hour in hours if hour is not None]
    if len(known) < len(hours):
        needed = dict.fromkeys(rate for step in steps for rate in _tokens_by_rate(step.cost))
        missing = [f"launch.rates.{rate}" for rate in needed if getattr(launch.rates, rate) is None]
        return [f"  no hours, because {', '.join(missing)} (tokens per second of a device) are not stated"]
    if not any(known):
        return []
    price = launch.rates.price_per_hour
    money = f", {sum(known) * price * launch.world_size:,.2f} at {price:g} per device and hour" if price else ""
    each = ", ".join(
        f"{step.stage} {hour:.2f}" for step, hour in zip(steps, known, strict=True) if hour and hour >= 0.005
    )
    return [f"  at most about {sum(known):.2f} hours ({each}){money}"]
