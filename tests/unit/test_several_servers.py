"""Requests to several servers, to servers that fail for a while, and what the address of a server may be."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline.core.errors import ConfigError, StageError
from pipeline.engines.base import Completion
from pipeline.engines.chat_server import Reply
from pipeline.engines.prompts import ChatPrompts, Post
from pipeline.engines.server import make_sender
from pipeline.engines.worklist import generate_all
from tests.echo_server import Server, answers, ask, config, engine
from tests.fakes import FakeLogbook, JoinedServer


@pytest.fixture
def other_url(url: str) -> Iterator[str]:
    """A second address of the same server. ``Server.ports`` says where requests went."""
    server = JoinedServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def port(url: str) -> int:
    found = urlsplit(url).port
    assert found is not None
    return found


def several(*urls: str) -> str:
    return f"[{','.join(urls)}]"


def test_requests_go_to_the_server_with_the_fewest_under_way(url: str, other_url: str):
    Server.change = lambda body, answer: time.sleep(0.02) or answer
    done = answers(engine(several(url, other_url), "engine.max_parallel=2"), *(ask(i) for i in range(20)))
    assert all(isinstance(result, Completion) for result in done)
    shares = Counter(Server.ports)
    assert min(shares[port(url)], shares[port(other_url)]) >= 3 and shares.total() == 20


def test_the_others_do_the_work_of_a_server_that_fails(url: str, other_url: str):
    """It is set aside after a few failures, and no request fails because of it."""
    Server.broken_port = port(other_url)
    done = answers(engine(several(other_url, url), "engine.max_parallel=2"), *(ask(i) for i in range(60)))
    assert all(isinstance(result, Completion) for result in done)
    assert 5 <= Counter(Server.ports)[port(other_url)] <= 8


def test_a_server_that_was_set_aside_is_tried_again(url: str, other_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.engines.addresses.FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("pipeline.engines.addresses.LONGEST_PAUSE_SECONDS", 0.05)
    Server.broken_port = port(other_url)

    def change(_: dict[str, Any], answer: dict[str, Any]) -> Any:
        time.sleep(0.01)
        if len(Server.seen) >= 60:  # the 60th itself may be one that failed
            Server.broken_port = 0
        return answer

    Server.change = change
    answers(engine(several(other_url, url), "engine.max_parallel=1"), *(ask(i) for i in range(120)))
    assert Counter(Server.ports[-20:])[port(other_url)] >= 5


def test_a_dead_server_stops_the_run_long_before_all_requests_have_failed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.engines.addresses.FIRST_PAUSE_SECONDS", 0.05)
    Server.failures_left = 10**6
    tested = engine(url, "engine.patience_seconds=0.2")
    with pytest.raises(StageError, match=r"^No server of m answers any more \(HTTP 503: .*run the same command again"):
        generate_all(tested, "", [ask(i) for i in range(1000)], FakeLogbook(tmp_path), "log")
    assert len(Server.seen) < 200


def test_a_server_that_comes_back_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.engines.addresses.FIRST_PAUSE_SECONDS", 0.01)
    Server.failures_left = 12
    done = answers(engine(url), *(ask(i) for i in range(20)))
    assert all(isinstance(result, Completion) for result in done)


def test_the_address_may_lack_v1_or_have_a_slash(url: str, monkeypatch: pytest.MonkeyPatch):
    said_texts: list[str] = []
    monkeypatch.setattr("pipeline.engines.sender.say", said_texts.append)
    root = url.removesuffix("/v1")
    for written in (url, f"{url}/", root, f"{root}/"):
        assert answers(engine(written), ask(1))[0].text == "echo q1"
    assert set(Server.paths) == {"/v1/chat/completions"}
    Server.paths.clear()
    Server.root = "/gateway/v1"
    config(f"{root}/gateway").reach("engine")
    assert Server.paths == ["/gateway/chat/completions", "/gateway/v1/chat/completions"]
    assert said_texts[-1] == f"the API of {root}/gateway begins at {root}/gateway/v1."


def test_an_answer_beside_the_api_does_not_show_where_the_api_begins(url: str):
    """SGLang's /generate is beside /v1."""
    Server.root = ("/gateway/v1", "/gateway/generate")
    begun = f"{url.removesuffix('/v1')}/gateway"
    sender = make_sender(config(begun), "m", [begun])
    for post in (Post("/generate", {"messages": [{"content": "x"}]}, at_host=True), ChatPrompts("m").post(ask(1))):
        assert isinstance(sender.send_one(post), Reply)
    assert Server.paths == ["/gateway/generate", "/gateway/chat/completions", "/gateway/v1/chat/completions"]


def test_before_a_run_one_of_several_servers_must_answer(url: str, monkeypatch: pytest.MonkeyPatch):
    warnings: list[str] = []
    monkeypatch.setattr("pipeline.engines.server.warn", warnings.append)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        config(several(dead, url)).reach("engine")
        assert [dead in text and "Connection refused" in text for text in warnings] == [True]
        with pytest.raises(ConfigError, match="Connection refused"):
            config(several(dead, f"{dead}/")).reach("engine")


def test_before_a_run_no_server_may_lack_the_model(url: str, other_url: str):
    """Otherwise its requests would fail one after the other."""
    Server.change = lambda body, answer: (404, {"error": {"message": "no m"}}) if Server.ports[1:] else answer
    with pytest.raises(ConfigError, match=rf"base_url is '{other_url}' and engine\.model is 'm'.*no m"):
        config(several(url, other_url)).reach("engine")


def test_the_name_of_a_model_may_have_slashes(url: str):
    assert answers(engine(url, "engine.model=org/model:8b"), ask(1))[0].text == "echo q1"
    assert Server.seen[0]["model"] == "org/model:8b"


def test_the_address_is_in_no_record_and_no_cache_key(url: str):
    assert engine(url).name == "m"
    assert config(url).key() == config("http://elsewhere:1/v1").key() == config(several(url, f"{url}/x")).key()
    assert config(url).key() != config(url, "engine.model_version=fp8").key()


@pytest.mark.parametrize(
    ("address", "trouble"),
    [("[]", "empty list"), ("[http://a/v1,http://a/v1]", "twice"), ("http://me:secret@h/v1", "put a key into")],
)
def test_odd_lists_of_addresses_are_one_sentence(address: str, trouble: str):
    with pytest.raises(ConfigError, match=rf"^engine\.base_url .*{trouble}"):
        config(address)
