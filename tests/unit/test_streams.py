"""Folders of shards, packed files, and samples of many rows without the others in memory."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from pipeline.data.files import rows_of, source_content
from pipeline.data.first_by_hash import FirstByHash
from pipeline.data.formats import parquet_rows
from pipeline.data.loading import pool_prompts
from pipeline.data.pools import Unused
from pipeline.data.sources import DataConfig, PoolConfig, SourceConfig
from pipeline.evals.suites.pairs import PairsConfig, read_pairs

NUM_ROWS, LETTERS = 20_000, 2_000
SHIPPED = PoolConfig()
CONFIG = DataConfig(red_team=SHIPPED, ordinary=SHIPPED, look_alike=SHIPPED)


def local(path: Path, **options: Any) -> PoolConfig:
    return PoolConfig(source="path", path=str(path), **options)


def requests(source: PoolConfig) -> list[str]:
    return [prompt.request for prompt in pool_prompts("red_team", source, CONFIG, set(), Unused()).values()]


def made_up(num_rows: int) -> Iterator[dict[str, Any]]:
    for index in range(num_rows):
        text = random.Random(index).randbytes(LETTERS // 2).hex()
        yield {"prompt": text, "chosen": text[:9], "rejected": "no"}


def write(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


# --- Samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 7, 100, None])
def test_a_sample_has_the_smallest_keys_in_whatever_order_they_come(number: int | None):
    keys = [f"{random.Random(i).getrandbits(64):016x}" for i in range(100)]
    for seed in range(20):
        order = random.Random(seed).sample(keys, len(keys))
        sample: FirstByHash[str] = FirstByHash(number)
        for key in [*order, *order[:9]]:
            sample.add(key, key.upper())
            assert number is None or len(sample._items) <= 2 * number
        expected = order if number is None else sorted(keys)[:number]
        assert sample.items() == {key: key.upper() for key in expected}
        assert list(sample.items()) == expected


def test_the_sample_of_a_pool_depends_on_no_order_and_a_larger_one_only_adds(tmp_path: Path):
    rows = [{"prompt": f"Question {i}?"} for i in range(60)]
    forward = write(tmp_path / "a.jsonl", rows)
    shards = [write(tmp_path / "shards" / f"{i}.jsonl", rows[::-1][i * 20 : i * 20 + 25]) for i in range(3)]
    small, large = (requests(local(forward, num_prompts=number)) for number in (10, 30))
    assert small == large[:10] and len(set(large)) == 30
    assert requests(local(shards[0].parent, num_prompts=30)) == large
    assert len(requests(local(forward, num_prompts=500))) == 60
    assert len(requests(local(forward, num_prompts=500, limit=20))) == 20


def test_a_sample_of_pairs_is_the_one_that_all_rows_would_give(tmp_path: Path):
    rows = [{"prompt": f"Question {i % 50}?", "chosen": f"a{i}", "rejected": "b"} for i in range(90)]
    path = write(tmp_path / "a.jsonl", [*rows, rows[0] | {"prompt": " "}])

    def pairs(number: int | None) -> tuple[list[Any], list[str]]:
        notes: list[str] = []
        config = PairsConfig(source="path", path=str(path), num_pairs=number)
        return read_pairs(config, "evaluate.pairs", "pair", "test", notes), notes

    (whole, notes), (sample, sample_notes) = pairs(None), pairs(20)
    assert len(whole) == 90 and len(sample) == 20 and notes == sample_notes and "dropped 1 malformed" in notes[0]
    last = sample[-1].prompt.key  # only of the last request some pairs may be missing
    wanted = [pair for pair in whole if pair.prompt.key < last]
    assert sample[: len(wanted)] == wanted and {pair.id for pair in sample} <= {pair.id for pair in whole}


def test_a_row_group_of_parquet_is_not_read_at_once(tmp_path: Path):
    import pyarrow

    path = write(tmp_path / "rows.parquet", made_up(NUM_ROWS))
    size, before = path.stat().st_size, pyarrow.total_allocated_bytes()
    most = max(pyarrow.total_allocated_bytes() for _ in parquet_rows("data.red_team", path))
    assert size > 30_000_000 and most - before < 15_000_000


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
@pytest.mark.parametrize("what", ["prompts", "pairs"])
def test_a_sample_needs_no_memory_for_the_other_rows(tmp_path: Path, kind: str, what: str):
    path = write(tmp_path / f"rows.{kind}", made_up(NUM_ROWS // 10))

    def num_kept(number: int) -> int:
        if what == "prompts":
            return len(requests(local(path, num_prompts=number)))
        config = PairsConfig(source="path", path=str(path), num_pairs=number)
        return len(read_pairs(config, "pairs", "pair", "test", []))

    def most_memory(number: int) -> int:
        tracemalloc.start()
        try:
            assert num_kept(number) == number
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    num_kept(1)  # what is loaded once is not counted
    # A batch of Parquet is half of this file.
    assert most_memory(5) < (2_800_000 if kind == "parquet" else 500_000)
    assert most_memory(NUM_ROWS // 10) > 4_000_000, "else the test measures nothing"


# --- Files and folders ---------------------------------------------------------------------------------------------


def test_the_shards_of_a_folder_are_read_by_name_one_after_another(tmp_path: Path):
    for name, text in {"b.jsonl": "Two?", "a.parquet": "One?", "c.jsonl.gz": "Three?"}.items():
        write(tmp_path / name, [{"prompt": text}])
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / ".hidden.jsonl").write_text("{")
    assert requests(local(tmp_path)) == ["One?", "Two?", "Three?"]


def test_only_the_shards_of_the_split_are_read_and_hashed(tmp_path: Path):
    for name in (
        "train_prefs-00000-of-00002",
        "train_prefs-00001-of-00002-0123456789abcdef",
        "test_prefs-00000-of-00001",
    ):
        write(tmp_path / f"{name}.parquet", [{"prompt": name}])
    train, test = (local(tmp_path, hub_split=split) for split in ("train_prefs", "test_prefs"))
    assert [len(requests(source)) for source in (train, test)] == [2, 1]
    before = [source_content("data.red_team", source, Path()) for source in (train, test)]
    write(tmp_path / "test_prefs-00000-of-00001.parquet", [{"prompt": "changed"}])
    after = [source_content("data.red_team", source, Path()) for source in (train, test)]
    assert before[0] == after[0] and before[1] != after[1]
    with pytest.raises(ConfigError, match=r"hub_split: .* of the split 'train'; .* files say test_prefs, train_prefs"):
        requests(local(tmp_path))
    write(tmp_path / "more.jsonl", [{"prompt": "x"}])
    with pytest.raises(ConfigError, match=r"the name of more\.jsonl in .* does not say its split"):
        requests(train)


def test_names_that_seem_to_say_several_splits_are_refused(tmp_path: Path):
    for name in ("train_prefs.jsonl", "test_prefs.jsonl"):
        write(tmp_path / name, [{"prompt": name}])
    with pytest.raises(
        ConfigError, match=r"path: the names in .* seem to say several splits \(test, train\); give one"
    ):
        requests(local(tmp_path))
    (tmp_path / "test_prefs.jsonl").unlink()
    assert requests(local(tmp_path)) == ["train_prefs.jsonl"]
    (tmp_path / "more.csv").write_text("prompt\nOne?\n")
    with pytest.raises(ConfigError, match=r"holds more\.csv beside other files"):
        requests(local(tmp_path))


def test_a_folder_without_shards_is_one_sentence(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"holds no \.parquet, \.jsonl, \.jsonl\.gz files and is not a"):
        requests(local(tmp_path))


def test_damaged_streams_are_one_sentence(tmp_path: Path):
    whole = gzip.compress(b'{"prompt": "x"}\n' * 999)
    for name, data, expected in [
        ("cut.jsonl.gz", whole[: len(whole) // 2], "cut.jsonl.gz: can't be read"),
        ("none.jsonl.gz", b'{"prompt": "x"}\n', "none.jsonl.gz: can't be read"),
        (
            "latin.jsonl",
            b'{"prompt": "x"}\n{"prompt": "\xe4"}\n',
            r"latin.jsonl:2: not UTF-8 text \(byte 12 of the line",
        ),
        ("wide.jsonl", '{"prompt": "x"}'.encode("utf-16"), r"wide.jsonl:1: not UTF-8 text \(byte 0"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=expected):
            requests(local(tmp_path / name))
    source = SourceConfig(source="path", path=str(tmp_path / "bom.jsonl"))
    (tmp_path / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "x"}\n')
    assert [line.row for line in rows_of("data.red_team", source, Path())] == [{"prompt": "x"}]
