"""Starts a server by a command, waits until it answers, and stops it with its children however the run ends."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2 as httpx

from pipeline.core.errors import StageError
from pipeline.core.log import SECONDS_BETWEEN_LINES, duration, file_beside_the_log, say
from pipeline.core.text import whole_characters
from pipeline.engines.sender import authorization

SECONDS_BETWEEN_TRIES = 0.5
SECONDS_TO_STOP = 20.0
SHOWN_LINES, SHOWN_CHARACTERS = 5, 600  # of a server's output, in a message
_KEY = re.compile(  # a value, not a variable with one
    r"--(\w+[-_])*api[-_]key(?![-\w])|--hf[-_]token[= ]+[\"']?[^\s$\"'-]|(KEY|TOKEN|SECRET)=[\"']?[^\s$\"']"
)
LORA = "{lora}"  # in a command: the options of a server that takes adapters; nothing where none are needed
GUARDIAN = Path(__file__).with_name("guardian.py")
KEYS_OF_SERVERS = ("VLLM_API_KEY", "LLAMA_API_KEY")  # where vLLM and llama.cpp find the key that they ask for


class Serving:
    """A server of one's own. It starts when ``url`` is first asked for, and stops when this object is no longer used.

    ``guardian.py`` stops it if this process is killed.

    Args:
        command: with ``{model}``, ``{port}``, ``{name}`` and ``{lora}`` in it.
        model: the folder or hub id of the weights.
        revision: the commit, branch or tag of a hub id.
        name: the model's name in records, and on the server if the command has ``{name}`` in it.
        seconds: the longest time until it answers.
        key: what the server shall ask for; empty: nothing. No message shows it.
        lora: what ``{lora}`` becomes.
        environment: variables of the server, besides those of this process.
    """

    def __init__(
        self,
        command: str,
        *,
        model: str,
        name: str,
        seconds: float,
        revision: str | None = None,
        key: str = "",
        lora: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command, self._model, self._revision, self._name = command, model, revision, name
        self._seconds, self._key = seconds, key
        self._lora, self._environment = list(lora), dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None
        self._port = 0

    @property
    def model_name(self) -> str:
        """The model's name on the server: without ``{name}`` in the command, servers call it by its folder or id."""
        return self._name if "{name}" in self._command else self._weights

    @property
    def _weights(self) -> str:
        """The folder or hub id; a folder for a hub id with a revision."""
        if self._revision is None or Path(self._model).is_dir():
            return self._model
        from huggingface_hub import snapshot_download

        return str(snapshot_download(self._model, revision=self._revision))

    @property
    def url(self) -> str:
        """The address of the running server.

        Raises:
            StageError: it ended before it answered, or did not answer in time.
        """
        if self._process is None:
            self._start()
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def has_started(self) -> bool:
        return self._process is not None

    @property
    def has_ended(self) -> bool:
        """Whether it was started and has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    @property
    def last_lines(self) -> str:
        """The end of its output, for a message."""
        if self._log is None:
            return ""
        lines = [line.strip() for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines()]
        text = whole_characters(" / ".join([line for line in lines if line][-SHOWN_LINES:]))
        text = text.replace(self._key, "***") if self._key else text  # before the cut, which could leave a part of it
        return f"{text[-SHOWN_CHARACTERS:] or 'it wrote nothing'} (all of it: {self._log})"

    def _start(self) -> None:
        self._port = _free_port()
        given = {"{model}": self._weights, "{port}": str(self._port), "{name}": self._name}
        words = [part for word in shlex.split(self._command) for part in (self._lora if word == LORA else [word])]
        for placeholder, value in (given | {LORA: shlex.join(self._lora)}).items():
            words = [word.replace(placeholder, value) for word in words]
        self._log = file_beside_the_log(f"server-{self._name.replace('/', '-')}.log")
        say(f"starting a server for {self._name}: {words[0]} … (its output: {self._log})")
        with self._log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", str(GUARDIAN), str(os.getpid()), *words],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | dict.fromkeys(KEYS_OF_SERVERS if self._key else (), self._key) | self._environment,
                start_new_session=True,  # Ctrl-C is for this process, which then stops the server
            )
        weakref.finalize(self, _stop, process)
        self._process = process
        self._wait()

    def _wait(self) -> None:
        started = last_line = time.monotonic()
        with httpx.Client(trust_env=False, timeout=5.0, headers=authorization(self._key)) as client:
            while not _answers(client, self._port):
                waited = time.monotonic() - started
                if self.has_ended:
                    raise StageError(
                        f"The server for {self._name} ended before it answered; correct the command of serve. Its last "
                        f"lines: {self.last_lines}."
                    )
                if waited > self._seconds:
                    raise StageError(
                        f"The server for {self._name} did not answer within {self._seconds:g} s; raise serve_seconds "
                        f"or change the command of serve. Its last lines: {self.last_lines}."
                    )
                if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                    last_line = time.monotonic()
                    say(f"  waiting for the server for {self._name}: {duration(waited)} of at most {self._seconds:g} s")
                time.sleep(SECONDS_BETWEEN_TRIES)
        say(f"the server for {self._name} is ready after {duration(time.monotonic() - started)}.")


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()


def _answers(client: httpx.Client, port: int) -> bool:
    """Whether the server is ready. Some have no /health; others have it and say there that they are still loading."""
    try:
        health = client.get(f"http://127.0.0.1:{port}/health").status_code
        return health == 200 or (health == 404 and client.get(f"http://127.0.0.1:{port}/v1/models").status_code == 200)
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def trouble_with_command(command: str) -> str:
    """What is wrong with a command; empty if nothing is. A key is not shown."""
    if _KEY.search(command):
        return "has a key in it; put it into an environment variable, such as VLLM_API_KEY for vLLM"
    try:
        words = shlex.split(command)
    except ValueError as error:
        return f"is {command!r}, which can't be read ({error}); write it as on a command line"
    if not words:
        return "is empty; give a command"
    if "{port}" not in command:
        return f"is {command!r}, which has no {{port}} in it; write it where the command takes the port"
    return ""


def is_program(command: str) -> bool:
    """Whether the first word of a command can be started."""
    return shutil.which(shlex.split(command)[0]) is not None
