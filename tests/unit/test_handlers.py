"""Handlers that catch everything: what they let through, and what they keep."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.cli.chat import Terminal
from pipeline.core.errors import ConfigError, StageError, Terminated
from pipeline.core.log import LOG_FILE, logged_to
from pipeline.core.user_functions import load_function
from pipeline.methods.rewards import checked


def out_of_memory(*_: object) -> list[float]:
    raise RuntimeError("CUDA out of memory")


def exits(*_: object) -> list[float]:
    raise SystemExit(0)


@pytest.mark.parametrize("name", ["reward_model", "constitution"])
def test_an_error_of_our_own_rewards_reaches_the_runner(name: str):
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        checked(name, out_of_memory, [[]], ["x"])


@pytest.mark.parametrize("function", [out_of_memory, exits])
def test_an_error_of_the_users_reward_names_it(function):
    with pytest.raises(StageError, match=r"align\.rewards\.brief failed on 1 completions"):
        checked("brief", function, [[]], ["x"])


def test_sigterm_leaves_a_task_at_once_as_ctrl_c_does():
    async def work() -> None:
        raise Terminated

    async def run() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(5)
        del task

    with pytest.raises(Terminated):
        asyncio.run(run())


def test_a_users_file_that_exits_does_not_end_the_run_as_a_success(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"can't be imported .SystemExit: 0"):
        load_function(f"{file}:f", "align.functions.f")


def test_the_log_keeps_the_traceback_of_an_unexpected_error_only(tmp_path: Path):
    for error in (KeyError("lost"), ConfigError("seed is 'x'.")):
        with pytest.raises(type(error)), logged_to(tmp_path):
            raise error
    log = (tmp_path / LOG_FILE).read_text(encoding="utf-8")
    assert log.count("Traceback") == 1 and "test_handlers.py" in log


def test_sigterm_ends_a_chat_and_ctrl_c_only_a_reply(monkeypatch: pytest.MonkeyPatch):
    def stop(error: type[BaseException]):
        def read(*_: object) -> str:
            raise error

        monkeypatch.setattr("builtins.input", read)
        return Terminal._read(SimpleNamespace(_say=lambda *_: None))

    assert stop(KeyboardInterrupt) == ""
    with pytest.raises(Terminated):
        stop(Terminated)
