"""Cache keys never change for the same fields, and finished records survive a kill."""

import json
from pathlib import Path

import huggingface_hub
import pytest

from pipeline.core.cache import Manifest, RecordLog, cache_key, commit, hash_folder, link
from pipeline.core.errors import ArtifactError
from pipeline.engines.models import commit_of, model_identity


def test_the_cache_key_is_frozen():
    """Golden: if this fails, every cache anybody has is stale; raise KEY_FORMAT and say so in the changelog."""
    identity = {"stage": "sft", "version": 1, "config": {"lr": 0.0005, "b": None, "a": True}, "inputs": {"é": "x"}}
    assert cache_key(identity) == "167b1815ccfeecdc2386a365cdd03790b8d5d4e81de65ee92439886021ff15c8"
    assert cache_key(dict(reversed(identity.items()))) == cache_key(identity)
    assert cache_key({**identity, "version": 2}) != cache_key(identity)


def test_folder_hash_is_of_names_and_bytes(tmp_path: Path):
    (tmp_path / "a").write_text("1")
    before = hash_folder(tmp_path)
    (tmp_path / "a").touch()
    assert hash_folder(tmp_path) == before
    (tmp_path / "a").rename(tmp_path / "b")
    assert hash_folder(tmp_path) != before


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("model.safetensors", True),
        ("tokenizer.json", True),
        ("modeling_own.py", True),
        ("additional_chat_templates/tools.jinja", True),
        ("outputs/cache/sft-1/manifest.json", False),
        ("outputs/runs/mine/config.json", False),
        ("checkpoint-500/model.safetensors", False),
        ("README.md", False),
        ("train.log", False),
        (".gitattributes", False),
    ],
)
def test_the_hash_of_a_model_is_of_what_it_is_made_of(tmp_path: Path, name: str, counts: bool):
    (tmp_path / "config.json").write_text("{}")
    before = model_identity(str(tmp_path), None)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("x")
    assert (model_identity(str(tmp_path), None) != before) == counts


def test_a_hub_model_counts_by_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Here the hub can't be reached; its folder on the disk says which commit will be loaded."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--someone--model"
    for head in ("a" * 40, "b" * 40):
        for path, text in ((f"snapshots/{head}/config.json", "{}"), ("refs/main", head)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        commit_of.cache_clear()
        assert model_identity("someone/model", None) == f"hub:someone/model@{head}"
    assert model_identity("someone/unknown", "v2") == "hub:someone/unknown@v2"
    assert model_identity("no such name", None) == "hub:no such name@main"


def test_log_survives_a_line_cut_short(tmp_path: Path):
    log = RecordLog(tmp_path, "rows")
    log.append([{"id": "1", "text": "naïve"}, {"id": "2", "text": "b"}])
    path = tmp_path / "rows.rank0.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": "3", "te')
    again = RecordLog(tmp_path, "rows")
    assert list(again.rows) == ["1", "2"] and again["1"]["text"] == "naïve"
    again.append([{"id": "2", "text": "other"}, {"id": "3", "text": "c"}])
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["id"], line["text"]) for line in lines] == [("1", "naïve"), ("2", "b"), ("3", "c")]


def test_half_characters_are_written_as_a_sign_for_them(tmp_path: Path):
    log = RecordLog(tmp_path, "rows")
    log.append([{"id": "1", "text": "half \ud83d of \U0001f600"}])
    assert log["1"]["text"] == RecordLog(tmp_path, "rows")["1"]["text"] == "half \ufffd of \U0001f600"


def test_a_damaged_line_is_named(tmp_path: Path):
    (tmp_path / "rows.rank0.jsonl").write_bytes(b'{"id": "1"}\n{"id": \n{"id": "3"}\n')
    with pytest.raises(ArtifactError, match=r"rows\.rank0\.jsonl:2 is damaged"):
        RecordLog(tmp_path, "rows")


def test_ranks_read_each_other(tmp_path: Path):
    first, second = RecordLog(tmp_path, "rows", 0), RecordLog(tmp_path, "rows", 1)
    second.append([{"id": "x"}])
    assert "x" not in first
    first.reload()
    assert "x" in first


def test_commit_is_the_last_thing(tmp_path: Path):
    partial, final = tmp_path / "s.partial", tmp_path / "s"
    partial.mkdir()
    assert Manifest.read(partial) is None
    manifest = Manifest(
        stage="s", cache_key="f", fields={}, inputs={}, outputs={}, content_hash="c", metrics={"x": 1},
        seconds=1.0, busy_seconds=0.5, num_calls=1, num_tokens_written=2, started="now", environment={},
    )  # fmt: skip
    commit(partial, final, manifest)
    assert not partial.exists() and Manifest.read(final) == manifest
    (final / "manifest.json").write_text(manifest.model_copy(update={"outputs": {"rows.jsonl": "x"}}).model_dump_json())
    with pytest.raises(ArtifactError, match=r"rows\.jsonl is missing; delete"):
        Manifest.read(final)
    (final / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        Manifest.read(final)


def test_link_is_relative_and_replaceable(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        link(tmp_path / name, tmp_path / "latest")
    assert (tmp_path / "latest").readlink() == Path("two")
