"""Several machines with one shared ``output_dir``: machine 0 runs the chain, and the others lend it their ranks.

Machine 0 keeps a store (torch's ``TCPStore``). It puts each job there; the other machines take it, start their ranks,
and say how these ended. Every machine shows in the store that it is alive, so none waits for one that is not.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.chain.launch import RunRanks, run_ranks, started, stop
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import StageError, first_line
from pipeline.core.log import say

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

JOIN_SECONDS = 1800  # how long machines wait for each other at the start
SILENT_SECONDS = 60  # a machine that shows no sign of life for so long counts as dead
POLL_SECONDS = 0.5
OVER, FAILED = "over", "failed"


@contextmanager
def crew(launch: LaunchConfig) -> Iterator[RunRanks]:
    """What starts a job's ranks: on this machine alone, or on all machines together. For machine 0."""
    if launch.num_machines == 1:
        yield run_ranks
        return
    leader = Leader(launch)
    try:
        yield leader.run_ranks
    except BaseException:  # also Ctrl-C: the other machines would wait
        with suppress(RuntimeError):  # of the store; what went wrong first is raised
            leader.end(FAILED)
        raise
    leader.end("")


class Leader:
    """Machine 0."""

    def __init__(self, launch: LaunchConfig) -> None:
        self._launch, self._num_jobs = launch, 0
        self._store = _joined(launch)
        self._signs: dict[int, tuple[bytes, float]] = {}
        """machine → its last sign of life, and when it changed"""
        say(f"waiting for {launch.num_machines - 1} more machine(s) at port {launch.main_process_port + 1} …")
        machines = range(1, launch.num_machines)
        _until(
            lambda: self._store.check([f"alive {machine}" for machine in machines]),
            f"launch.num_machines is {launch.num_machines}, but not all of them have joined",
            f"start the same command on each, with a launch.machine_rank of its own and launch.main_process_ip="
            f"{launch.main_process_ip}",
        )

    def run_ranks(self, job: dict[str, Any], launch: LaunchConfig, work: Path) -> int:
        """Run a job on all machines; returns 0 if all ranks ended well. If a machine fails, the others are stopped."""
        number, self._num_jobs = self._num_jobs, self._num_jobs + 1
        self._signs.clear()
        self._store.set(f"job {number}", json.dumps(job))
        process = started(job, launch, work)
        machines = range(1, launch.num_machines)
        codes: dict[int, int] = {}
        try:
            while len(codes) < len(machines) or process.poll() is None:
                for machine in machines:
                    codes |= self._code(number, machine, codes)
                if any(codes.values()) or process.poll():
                    self._store.set(f"stop {number}", "")
                    return 1
                time.sleep(POLL_SECONDS)
        finally:
            stop(process)
        return int(process.returncode != 0)  # it may have ended after the other machines

    def _code(self, number: int, machine: int, codes: dict[int, int]) -> dict[int, int]:
        """The exit code of a machine, if it has ended."""
        if machine in codes or self._store.check([f"code {number} {machine}"]):
            return {machine: codes.get(machine) or int(self._store.get(f"code {number} {machine}"))}
        sign = self._store.get(f"alive {machine}")
        known, since = self._signs.get(machine, (b"", 0.0))
        if sign != known:
            self._signs[machine] = sign, time.monotonic()
        elif time.monotonic() - since > SILENT_SECONDS:
            say(f"machine {machine} has shown no sign of life for {SILENT_SECONDS} s")
            return {machine: 1}
        return {}

    def end(self, why: str) -> None:
        """Tell the other machines that the run is over, and wait a little until they have heard it."""
        self._store.set(OVER, why)
        deadline = time.monotonic() + 10
        while self._store.add("left", 0) < self._launch.num_machines - 1 and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def lend(launch: LaunchConfig) -> None:
    """Run the jobs that machine 0 gives, until its run is over. For the other machines.

    Raises:
        StageError: machine 0 ended without success, or can't be reached.
    """
    from torch.distributed import DistError

    machine = launch.machine_rank
    store = _joined(launch)
    say(f"machine {machine} of {launch.num_machines}: waiting for jobs of {launch.main_process_ip}")
    try:
        store.set(f"alive {machine}", "0")
        why = _lend(store, launch)
        store.add("left", 1)
    except (DistError, ConnectionError, RuntimeError) as error:
        raise StageError(
            f"machine {machine} lost machine 0 at {launch.main_process_ip} ({first_line(error)})."
        ) from None
    if why:
        raise StageError("the run on machine 0 failed (see its log).")


def _lend(store: TCPStore, launch: LaunchConfig) -> str:
    number = 0
    while True:
        while not store.check([f"job {number}"]):
            _sign(store, launch)
            if store.check([OVER]):
                return store.get(OVER).decode()
        job = json.loads(store.get(f"job {number}"))
        say(f"{job['stage']}: running {launch.num_processes} ranks here")
        with tempfile.TemporaryDirectory(prefix="cai-ranks-") as work:
            process = started(job, launch, Path(work))
            try:
                while process.poll() is None and not store.check([f"stop {number}"]):
                    _sign(store, launch)
            finally:
                stop(process)
        store.set(f"code {number} {launch.machine_rank}", str(process.returncode))
        number += 1


def _sign(store: TCPStore, launch: LaunchConfig) -> None:
    store.set(f"alive {launch.machine_rank}", str(time.time()))
    time.sleep(POLL_SECONDS)


def _joined(launch: LaunchConfig) -> TCPStore:
    """The store of this run, which each machine joins once: the jobs of a run in progress are not for a newcomer.

    Raises:
        StageError: it can't be reached, or this machine has joined before.
    """
    from torch.distributed import DistError

    machine = launch.machine_rank
    try:
        while _is_over(store := _store(launch)):  # the run before this one, in a sweep
            del store
            time.sleep(POLL_SECONDS)
        times = store.add(f"joined {machine}", 1)
    except (DistError, ConnectionError, RuntimeError) as error:
        raise StageError(
            f"machine {machine} can't meet the others at launch.main_process_ip={launch.main_process_ip}, port "
            f"{launch.main_process_port + 1} ({first_line(error)}); give the address of machine 0, and change "
            "launch.main_process_port if another program uses the port."
        ) from None
    if times > 1:
        raise StageError(
            f"a machine with launch.machine_rank={machine} has joined this run before; give each machine a number of "
            "its own, or stop the run on all machines and start it again."
        )
    return store


def _store(launch: LaunchConfig) -> TCPStore:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(
        str(launch.main_process_ip),
        launch.main_process_port + 1,
        is_master=launch.machine_rank == 0,
        timeout=timedelta(seconds=JOIN_SECONDS),
        wait_for_workers=False,
    )


def _is_over(store: TCPStore) -> bool:
    try:
        return bool(store.check([OVER]))
    except RuntimeError:  # it has ended meanwhile
        return True


def _until(done: Callable[[], bool], trouble: str, remedy: str) -> None:
    deadline = time.monotonic() + JOIN_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise StageError(f"{trouble} within {JOIN_SECONDS // 60} minutes; {remedy}.")
        time.sleep(POLL_SECONDS)
