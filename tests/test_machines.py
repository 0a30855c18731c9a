"""Several machines make one run: they join, share the ranks of each stage, and all stop where one fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.chain import machines, plan, runner
from pipeline.chain.config import Config
from pipeline.chain.machines import Leader, crew, lend
from pipeline.chain.runner import run
from pipeline.cli import main
from pipeline.core import distributed
from pipeline.core.cache import Manifest
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.locks import lock_of
from tests.conftest import tiny_overrides


def free_port() -> int:
    """A port that is free, and so is the next one."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def test_two_machines_equal_one(tiny: Callable[..., Config], tiny_model: Path, tmp_path: Path):
    """Each is a ``cai run`` of its own, with the variables that a cluster's launcher sets."""
    alone = run(tiny("until=critique", f"output_dir={tmp_path / 'alone'}")).stages["critique"].manifest
    command = [sys.executable, "-m", "pipeline.cli", "run", *tiny_overrides(tiny_model, tmp_path), "until=critique"]
    command += ["launch=nodes", "launch.num_processes=1", "launch.sharding=none"]
    command += [f"launch.main_process_port={free_port()}"]
    started = [
        subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"})
        for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=900) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    (folder,) = (tmp_path / "outputs" / "cache").glob("critique-*")
    together = Manifest.read(folder)
    assert together is not None and together.environment["num_processes"] == "2"
    assert together.content_hash == alone.content_hash


# --- Failures ------------------------------------------------------------------------------------------------------


@contextmanager
def joined(
    monkeypatch: pytest.MonkeyPatch, codes: dict[int, str], silent_seconds: int = 30
) -> Iterator[tuple[LaunchConfig, Future[None]]]:
    """Machine 1 in a thread. ``codes``: machine → the Python code that stands for its ranks."""
    monkeypatch.setattr(machines, "SILENT_SECONDS", silent_seconds)
    monkeypatch.setattr(machines, "JOIN_SECONDS", 20)

    def started(job: dict[str, Any], launch: LaunchConfig, work: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", codes[launch.machine_rank]])

    monkeypatch.setattr(machines, "started", started)
    common = {"num_machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": free_port()}
    with ThreadPoolExecutor() as pool:
        yield LaunchConfig(**common), pool.submit(lend, LaunchConfig(**common, machine_rank=1))


def of_machine_1(launch: LaunchConfig) -> LaunchConfig:
    return launch.model_copy(update={"machine_rank": 1})


LONG = "import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: "", 1: ""}, 0),
        ({0: "", 1: "raise SystemExit(3)"}, 1),
        ({0: LONG, 1: "raise SystemExit(3)"}, 1),
        ({0: "raise SystemExit(3)", 1: LONG}, 1),
        ({0: "import time; time.sleep(3); raise SystemExit(3)", 1: ""}, 1),
    ],
)
def test_ranks_that_fail_on_one_machine_are_stopped_on_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, codes: dict[int, str], expected: int
):
    begun = time.monotonic()
    with joined(monkeypatch, codes) as (launch, other):
        with crew(launch) as run_ranks:
            assert run_ranks({"stage": "sft"}, launch, tmp_path) == expected
        other.result(timeout=20)
    assert time.monotonic() - begun < 30, "nobody waited for ranks without a partner"


def test_a_run_that_fails_ends_on_all_machines(monkeypatch: pytest.MonkeyPatch):
    with joined(monkeypatch, {}) as (launch, other):
        with pytest.raises(ZeroDivisionError), crew(launch):
            _ = 1 / 0
        with pytest.raises(StageError, match="the run on machine 0 failed"):
            other.result(timeout=20)


def test_what_went_wrong_first_is_raised_if_the_others_can_not_be_told(monkeypatch: pytest.MonkeyPatch):
    def unreachable(self: Leader, why: str) -> None:
        end(self, why)
        raise RuntimeError("the store is gone")

    end = Leader.end
    monkeypatch.setattr(Leader, "end", unreachable)
    with joined(monkeypatch, {}) as (launch, other):
        with pytest.raises(ZeroDivisionError), crew(launch):
            _ = 1 / 0
        with pytest.raises(StageError, match="the run on machine 0 failed"):
            other.result(timeout=20)


def test_a_machine_that_falls_silent_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(machines, "_sign", lambda store, launch: time.sleep(0.2))
    with joined(monkeypatch, {0: LONG, 1: LONG}, silent_seconds=2) as (launch, _), crew(launch) as run_ranks:
        assert run_ranks({"stage": "sft"}, launch, tmp_path) == 1
    assert "machine 1 has shown no sign of life" in capsys.readouterr().err


def test_a_machine_that_is_early_for_the_next_run_gets_no_job_of_the_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """In a sweep, the store of the last run is still there while machine 0 waits for other machines to leave it."""
    end, jobs = machines.Leader.end, list[str]()

    def end_slowly(leader: machines.Leader, why: str) -> None:
        end(leader, why)
        time.sleep(2)

    monkeypatch.setattr(machines.Leader, "end", end_slowly)
    with joined(monkeypatch, {0: "", 1: ""}) as (launch, other), ThreadPoolExecutor() as pool:
        started = machines.started
        monkeypatch.setattr(machines, "started", lambda job, *rest: jobs.append(job["stage"]) or started(job, *rest))
        again = list[Future[None]]()
        other.add_done_callback(lambda _: again.append(pool.submit(lend, of_machine_1(launch))))
        for stage in ("sft", "align"):
            with crew(launch) as run_ranks:
                assert run_ranks({"stage": stage}, launch, tmp_path) == 0
            del run_ranks  # and with it the store
        again[0].result(timeout=20)
    assert jobs == ["sft", "sft", "align", "align"], "each machine runs each job once"


def test_a_machine_that_joins_twice_is_refused(monkeypatch: pytest.MonkeyPatch):
    """It was started again, or two machines have the same number. It must not run the jobs from the start."""
    sentence = r"launch.machine_rank=1 has joined this run before; give each machine a number of its own"
    with joined(monkeypatch, {}) as (launch, other):
        with crew(launch), pytest.raises(StageError, match=sentence):
            lend(of_machine_1(launch))
        other.result(timeout=20)


def test_machines_that_do_not_join_are_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machines, "JOIN_SECONDS", 3)
    launch = LaunchConfig(num_machines=2, main_process_ip="127.0.0.1", main_process_port=free_port())
    sentence = r"launch.num_machines is 2, but .* joined within .*; start the same command .*main_process_ip=127.0.0.1"
    with pytest.raises(StageError, match=sentence), crew(launch):
        pass


def test_only_machine_0_asks_the_servers_of_a_sweep(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An address such as localhost means another server on each machine."""
    asked, ran = list[int](), list[int]()
    monkeypatch.setattr(plan, "reach_engines", lambda prepared: asked.append(prepared.config.launch.machine_rank))

    def no_run(config: Config) -> runner.Run:
        ran.append(config.launch.machine_rank)
        return runner.Run(name="", folder=tmp_path, stages={})

    monkeypatch.setattr(runner, "run", no_run)
    several = ["launch.num_machines=2", "launch.main_process_ip=127.0.0.1", "until=critique", "seed=1,2"]
    for machine in (0, 1):
        sweep = ["run", "-m", *tiny_overrides(tiny_model, tmp_path), *several, f"launch.machine_rank={machine}"]
        assert main(sweep) == 0
    assert asked == [0, 0] and ran == [0, 0, 1, 1]


def test_a_port_that_is_taken_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", port + 1))
        taken.listen()
        launch = LaunchConfig(num_machines=2, main_process_ip="127.0.0.1", main_process_port=port)
        sentence = rf"main_process_ip=127.0.0.1, port {port + 1} \(.*EADDRINUSE.*\); .* change launch.main_process_port"
        with pytest.raises(StageError, match=sentence), crew(launch):
            pass


# --- Around a run --------------------------------------------------------------------------------------------------


def test_a_lease_is_held_by_one_and_taken_over_from_the_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.core.locks.LEASE_SECONDS", 6.0)
    code = "import sys, time; from pathlib import Path; from pipeline.core import locks; locks.LEASE_SECONDS = 6.0; "
    code += "lock = locks.lock_of(Path(sys.argv[1]), True); lock.acquire(); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "stage")], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    lock = lock_of(tmp_path / "stage", several_machines=True)
    with pytest.raises(TimeoutError):
        lock.acquire(timeout=2)
    holder.kill()
    holder.wait()
    with lock.acquire(timeout=20):
        assert lock.is_locked


def test_a_process_of_a_cluster_s_launcher_is_no_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert not distributed.is_main()
    with distributed.outside_ranks():
        assert distributed.is_main() and "TORCHELASTIC_RUN_ID" not in os.environ
    assert distributed.rank() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match=r"LOCAL_WORLD_SIZE is 8.*start one `cai run` on each machine"):
        distributed.outside_ranks().__enter__()
