"""A rank of stages that divide the weights by FSDP2 on CPUs, where Accelerate would not do it. For tests only.

Accelerate's launcher reads its file as it does for GPUs, and the type of the process group is changed before the first
Accelerator exists. Arguments are job files, done one after the other; ``FILE!kill`` kills the second rank after the
first checkpoint, and ``FILE!stop`` leaves the job there on both.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from pipeline.chain import launch
from pipeline.core import distributed
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.loop import Reporter

SAVES = {Reporter: "on_save", Checkpoints: "save"}


class PowerCutError(Exception): ...


@contextmanager
def fault(kind: str) -> Iterator[None]:
    """In the block, what follows a checkpoint of a trainer, or the second step of the loop, goes wrong."""
    saved = {owner: getattr(owner, name) for owner, name in SAVES.items()}

    def after(save: Callable[..., None]) -> Callable[..., None]:
        def failing(*args: Any, **kwargs: Any) -> None:
            save(*args, **kwargs)
            if args[1] in ("step-0", "best-0"):
                return
            if kind == "kill" and distributed.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "stop":
                raise PowerCutError

        return failing

    for owner, name in SAVES.items() if kind else ():
        setattr(owner, name, after(saved[owner]))
    try:
        yield
    except PowerCutError:
        pass
    finally:
        for owner, name in SAVES.items():
            setattr(owner, name, saved[owner])


def main(jobs: list[str]) -> int:
    file = Path(jobs[0].partition("!")[0]).with_name(launch.ACCELERATE)
    command = ["--config_file", str(file), "--mixed_precision", "no", "script"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(command))
    found = prepare_multi_gpu_env(arguments)
    os.environ.update({k: v for k, v in found.items() if k.startswith(("ACCELERATE_", "FSDP_"))})
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    for job in jobs:
        path, _, kind = job.partition("!")
        with fault(kind):
            if code := launch.run_rank(Path(path)):
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
