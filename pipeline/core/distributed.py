"""Ranks and devices: the same stage code runs in one process or in many (Accelerate's ``PartialState``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import Field, model_validator

from pipeline.core.accelerate_file import launch_settings
from pipeline.core.errors import ConfigError
from pipeline.core.settings import RUNTIME, Settings

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import device

_OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
Sharding = Literal["none", "fsdp2", "zero3"]
MadeT = TypeVar("MadeT")


class RatesConfig(Settings):
    """Rates of one device, from which ``cai plan`` computes hours and money."""

    written: Annotated[float | None, RUNTIME] = Field(default=None, gt=0)
    """Tokens that it generates per second."""
    read: Annotated[float | None, RUNTIME] = Field(default=None, gt=0)
    """Tokens of prompts that it reads per second."""
    trained: Annotated[float | None, RUNTIME] = Field(default=None, gt=0)
    """Tokens that it trains on per second."""
    price_per_hour: Annotated[float | None, RUNTIME] = Field(default=None, gt=0)
    """What it costs per hour."""


class LaunchConfig(Settings):
    """Where a stage runs, and on how many processes. These settings don't change its result and are in no cache key."""

    num_processes: Annotated[int, RUNTIME] = Field(default=1, ge=1)
    """Processes on each machine: CPU ranks, or one per GPU."""
    sharding: Annotated[Sharding, RUNTIME] = "none"
    """How the GPUs divide the weights in training: ``none`` (each has all), ``fsdp2``, or ``zero3`` (DeepSpeed)."""
    accelerate_config: Annotated[str | None, RUNTIME] = None
    """A file that ``accelerate config`` wrote. It replaces the numbers of processes and machines, their address,
    ``sharding``, and a ``machine_rank`` of 0; ``model.precision`` still decides the number format. null: these settings
    are used."""
    num_machines: Annotated[int, RUNTIME] = Field(default=1, ge=1)
    """Machines that share ``output_dir``; each runs the same command with its own ``machine_rank``."""
    machine_rank: Annotated[int, RUNTIME] = Field(default=0, ge=0)
    """The number of this machine, from 0. Machine 0 runs the chain, the others lend it their processes."""
    main_process_ip: Annotated[str | None, RUNTIME] = None
    """The address of machine 0."""
    main_process_port: Annotated[int, RUNTIME] = Field(default=29500, ge=1, le=65534)
    """A free port of machine 0 for the ranks; the next port is for the machines."""
    batch_rows: Annotated[int | None, RUNTIME] = Field(default=None, ge=1)
    """The most rows to generate or score at once; null: chosen from the hardware."""
    per_device_batch_size: Annotated[int | None, RUNTIME] = Field(default=None, ge=1)
    """The most rows that one device trains on at once; null: chosen from the hardware."""
    gradient_checkpointing: Annotated[bool | None, RUNTIME] = None
    """Recompute activations in the backward pass to save memory; null: only on a GPU."""
    device_memory_gib: Annotated[float | None, RUNTIME] = Field(default=None, gt=0)
    """Memory of a device, in GiB, for ``cai plan`` and the check before a run; null: what this machine has. If it is
    set, ``cai plan`` plans for another machine and does not ask whether this one has the GPUs."""
    rates: Annotated[RatesConfig, RUNTIME] = RatesConfig()
    """Rates of one device, for ``cai plan``."""

    @model_validator(mode="before")
    @classmethod
    def _read_file(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("accelerate_config"):
            return values
        settings = launch_settings(str(values["accelerate_config"]))
        given = values.get("machine_rank")  # machines may share one file
        return {**values, **settings, "machine_rank": given or settings["machine_rank"]}

    @model_validator(mode="after")
    def _check_machines(self) -> Self:
        if self.machine_rank >= self.num_machines:
            raise ValueError(
                f"{{here}}.machine_rank is {self.machine_rank}, but {{here}}.num_machines is {self.num_machines}; "
                f"count the machines from 0 to {self.num_machines - 1}"
            )
        if self.sharding != "none" and self.world_size == 1:
            raise ValueError(
                f"{{here}}.sharding is {self.sharding!r}, but there is one process; set {{here}}.num_processes to the "
                "number of GPUs, or {here}.sharding=none"
            )
        if self.num_machines > 1 and self.main_process_ip is None:
            raise ValueError(
                f"{{here}}.main_process_ip must be set with {{here}}.num_machines={self.num_machines}; give the "
                "address of machine 0"
            )
        return self

    @property
    def world_size(self) -> int:
        """Processes on all machines together."""
        return self.num_processes * self.num_machines

    @property
    def ranks_in_words(self) -> str:
        machines = f" on launch.num_machines={self.num_machines}" if self.num_machines > 1 else ""
        return f"launch.num_processes={self.num_processes}{machines}"


@contextmanager
def outside_ranks() -> Iterator[None]:
    """A block in which this process is no rank, although a cluster's launcher started it as one of a machine each."""
    names = [name for name in os.environ if name in _OF_RANKS or name.startswith("TORCHELASTIC_")]
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"LOCAL_WORLD_SIZE is {os.environ['LOCAL_WORLD_SIZE']}, but launch.num_processes starts the processes of a "
            "machine; start one `cai run` on each machine."
        )
    taken = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(taken)


@cache
def state() -> PartialState:
    import torch
    from accelerate import PartialState

    # Ranks wait for each other between long batches. With a large model, the default of ten minutes is too short.
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    options = {"timeout": timedelta(hours=12)} if many else {}
    return PartialState(cpu=not torch.cuda.is_available(), **options)


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharding() -> Sharding:
    """How the trainers of this rank divide the weights. Accelerate's launcher says it in the environment."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp2"
    return "zero3" if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true" else "none"


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        state().wait_for_everyone()


def from_main(make: Callable[[], MadeT]) -> MadeT:
    """What the main rank makes, on every rank: for what must be asked or paid only once."""
    if world_size() == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    state()
    made: list[Any] = [make() if is_main() else None]
    broadcast_object_list(made)
    return cast(MadeT, made[0])


def default_device() -> device:
    return state().device
