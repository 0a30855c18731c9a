"""A server that can't do what a run needs is named, in one sentence, before the run."""

from __future__ import annotations

import socket

import pytest

from pipeline.core.errors import ConfigError
from tests.echo_server import Change, Server, answers, ask, config, engine, refused, sent, without


@pytest.mark.parametrize("first", ["<think>", "<", "\n<think"])
def test_a_model_that_thinks_first_is_named_before_a_run_that_reads_choices(url: str, first: str):
    listed = [{"token": first, "logprob": -0.01, "bytes": None}, {"token": "Okay", "logprob": -5.0, "bytes": None}]
    Server.change = without("choices", 0, "logprobs", value={"content": [{**listed[0], "top_logprobs": listed}]})
    with pytest.raises(ConfigError, match=r"votes is 0, but the model of .* thinks before .*, or set judge\.votes=10"):
        config(url).reach("judge", reads_choices=True)
    config(url).reach("critic")  # it reads none
    listed.append({"token": "(A", "logprob": -6.0, "bytes": None})
    config(url).reach("judge", reads_choices=True)  # a letter is listed, so the model may answer with it


def test_one_token_is_asked_for_before_a_run(url: str):
    config(url).reach("engine")
    [body] = Server.seen
    assert body["max_tokens"] == 1 and body["model"] == "m"
    Server.change = refused("the model output limit was reached; use higher max_tokens", param="max_tokens")
    config(url).reach("engine")


def test_a_server_without_logprobs_is_named_before_a_run_that_reads_choices(url: str):
    config(url).reach("engine", reads_choices=True)
    assert Server.seen[-1]["top_logprobs"] == 20 and Server.seen[-1]["max_tokens"] == 1
    sentence = r"^judge\.votes is 0, but http.*/v1 returns no log-probabilities.* set judge\.votes=10, .*\.$"
    for change in (without("choices", 0, "logprobs"), refused("logprobs is not supported", lambda b: "logprobs" in b)):
        Server.change = change
        with pytest.raises(ConfigError, match=sentence):
            config(url).reach("judge", reads_choices=True)
        config(url).reach("critic")  # it reads none
        config(url, "engine.votes=10").reach("judge", reads_choices=True)


TROUBLES: dict[str, tuple[Change, str]] = {
    "path": (sent((404, b"<html>Not found")), r"^judge\.base_url is 'http.*/v1' and judge\.model is 'm'.*Not found"),
    "key": (sent((401, {"error": "bad key"})), r"^judge\.api_key_variable is 'OPENAI_API_KEY'.*bad key"),
    "model": (refused("no such model"), r"^judge\.model is 'm', .*no such model"),
    "page": (sent(b"<html>welcome"), r"^judge\.base_url is 'http.*<html>welcome.* ends in /v1"),
    "moved": (sent((301, b"<html>Moved")), r"^judge\.base_url is .* \(HTTP 301: .*\); give that address.*https"),
    "loading": (sent((503, {"error": {"message": "Loading model"}})), r"^judge\.base_url is .*Loading model"),
}


@pytest.mark.parametrize("kind", TROUBLES)
def test_a_server_that_does_not_answer_is_named_before_a_run(url: str, kind: str):
    Server.change, sentence = TROUBLES[kind]
    with pytest.raises(ConfigError, match=sentence):
        config(url).reach("judge")


def test_a_dead_server_is_named_before_a_run():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(ConfigError, match=rf"engine\.base_url is '{url}'.* start the server"):
            config(url).reach("engine")


@pytest.mark.parametrize("key", ["sk-\n1", "ключ", "a b"])
def test_a_key_that_no_header_can_hold_is_named_but_not_shown(url: str, key: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match=r"engine\.api_key_variable: OPENAI_API_KEY has") as raised:
        config(url).reach("engine")
    assert key not in str(raised.value)


def test_the_hosted_server_needs_a_key(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="which is not set in the environment"):
        config("null").reach("engine")


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_key_that_the_server_repeats_is_not_shown(url: str, status: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    answer = {"error": {"message": "no key sk-secret", "code": 500 if status == 200 else status}}
    Server.change = lambda body, _: (status, answer)
    with pytest.raises(ConfigError, match=r"no key \*\*\*") as refused:
        config(url).reach("engine")
    assert "sk-secret" not in str(refused.value)
    if status in (200, 500):
        [failure] = answers(engine(url, "engine.max_retries=0"), ask(1))
        assert failure.reason == "HTTP 500: no key ***"


def test_a_password_in_an_address_is_not_shown():
    with pytest.raises(ConfigError, match=r"^engine\.base_url has more than an address in it; put a key") as raised:
        config("http://user:sk-secret@h/v1")
    assert "sk-secret" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    ["", "http://h:99999/v1", "http://h:x/v1", "http:///v1", "'http://h h/v1'", "http://h/v1/chat/completions"],
)
def test_odd_addresses_are_one_sentence(address: str):
    with pytest.raises(ConfigError, match=r"^engine\.base_url is '.*', which .*;? ?.*\.$"):
        config(address)
