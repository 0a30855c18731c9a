"""The fixture that several files of unit tests share."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.echo_server import Server
from tests.fakes import JoinedServer


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the server of ``tests/echo_server.py``, set back to its usual answers."""
    monkeypatch.setattr("pipeline.engines.sender.FIRST_WAIT_SECONDS", 0.001)
    server = JoinedServer(("127.0.0.1", 0), Server)
    Server.failures_left, Server.cuts_left, Server.seen, Server.headers_too = 0, 0, [], {}
    Server.take_over, Server.ports, Server.paths, Server.broken_port, Server.root = None, [], [], 0, "/v1"
    Server.change = lambda body, answer: answer
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
