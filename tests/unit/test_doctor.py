"""The doctor names what is missing, says what to do, and never prints a key."""

from __future__ import annotations

import json

import pytest

from pipeline.cli import main
from pipeline.daily import doctor

SECRET = "hf_this-must-not-be-shown"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_answers", lambda url: True)


def findings(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, dict[str, str]]]:
    code = main(["doctor", "--json", *words])
    return code, {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_it_looks_at_everything_and_shows_no_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    code, found = findings(capsys)
    assert code == 0 and found["HF_TOKEN"]["found"].startswith("is set")
    assert {"Python", "packages", "CPU", "memory", "disk", "cache", "embedded model", "hub"} <= found.keys()
    assert SECRET not in json.dumps(found)
    main(["doctor"])
    printed = capsys.readouterr().out
    assert SECRET not in printed and "model.precision=auto is" in printed


def test_a_dead_server_is_wrong_with_a_remedy(capsys: pytest.CaptureFixture[str]):
    code, found = findings(capsys, "engine=server", "engine.model=m", "engine.base_url=http://127.0.0.1:1/v1")
    assert code == 1 and found["engine"]["state"] == "wrong" and "start the server" in found["engine"]["remedy"]


@pytest.mark.parametrize(
    ("setting", "value", "name", "remedy"),
    [
        ("PYTHONS", ((2, 7),), "Python", "use Python 2.7"),
        ("PACKAGES", ("no-such-package",), "packages", "install no-such-package"),
        ("LEAST_DISK_GIB", 10**9, "disk", "free some"),
    ],
)
def test_what_is_missing_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str, value: object, name: str,
    remedy: str,
):  # fmt: skip
    monkeypatch.setattr(doctor, setting, value)
    code, found = findings(capsys)
    assert code == 1 and found[name]["state"] == "wrong" and remedy in found[name]["remedy"]


def test_a_broken_package_does_not_stop_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def _gpus(config: object):
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor, "LOOKS", (_gpus, doctor._memory))
    code, found = findings(capsys)
    assert code == 1 and "libcudart" in found["gpus"]["found"] and "memory" in found
