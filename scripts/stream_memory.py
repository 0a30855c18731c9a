"""The memory that a sample of a large data set needs: made-up rows in the layout of PKU-SafeRLHF, read with few kept.

    python scripts/stream_memory.py --rows 1000000 --keep 2000

For each kind of file, it writes shards into a temporary folder (about 700 MB for a million rows), and reads them in a
process of its own: once a tenth of the rows, once all of them. If the rows are a stream, both need as much memory.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NUM_SHARDS = 4
LETTERS = 180  # of each text, without spaces


def made_up_rows(first: int, number: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(first)
    for index in range(first, first + number):
        texts = [rng.randbytes(LETTERS // 2).hex(" ", 3) for _ in range(3)]
        yield {
            "prompt": f"{index} {texts[0]}",
            "response_0": texts[1],
            "response_1": texts[2],
            "is_response_0_safe": index % 2 == 0,
            "is_response_1_safe": index % 2 == 1,
            "better_response_id": 0,
            "safer_response_id": index % 2,
        }


def write_shards(folder: Path, kind: str, num_rows: int) -> None:
    """Each Parquet shard is one row group, as writers make it by default."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    for shard in range(NUM_SHARDS):
        rows = made_up_rows(shard * (num_rows // NUM_SHARDS), num_rows // NUM_SHARDS)
        path = folder / f"train-{shard:05}-of-{NUM_SHARDS:05}.{kind}"
        if kind == "jsonl":
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def read(folder: Path, what: str, num_kept: int) -> dict[str, Any]:
    """Read as the project does, in this process; 0 rows kept means all. Returns seconds and peak memory in MiB."""
    from pipeline.chain.compose import compose_config
    from pipeline.data.loading import load_prompts
    from pipeline.evals.suites.pairs import PairsConfig, read_pairs

    sample = num_kept or None
    begun = time.perf_counter()
    if what == "prompts":
        pool = ["data.ordinary.source=path", f"data.ordinary.path={folder}"]
        pool += [f"data.ordinary.num_prompts={sample or 'null'}"]
        num_read = sum(prompt.pool == "ordinary" for prompt in load_prompts(compose_config(pool).data).prompts)
    else:
        config = PairsConfig(source="path", path=str(folder), num_pairs=sample)
        num_read = len(read_pairs(config, "pairs", "pair", "train", []))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"kept": num_read, "seconds": time.perf_counter() - begun, "peak_mib": peak}


def in_own_process(folder: Path, what: str, num_kept: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--read", str(folder), "--what", what, "--keep", str(num_kept)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keep", type=int, default=2_000, help="0: all rows")
    parser.add_argument("--kinds", nargs="+", choices=("parquet", "jsonl"), default=["parquet", "jsonl"])
    parser.add_argument("--what", nargs="+", choices=("prompts", "pairs"), default=["prompts", "pairs"])
    parser.add_argument("--read", type=Path, help="only read this folder, in this process")
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(arguments.read, arguments.what[0], arguments.keep)))
        return
    print("| files | rows | read as | kept | seconds | peak memory, MiB |\n| --- | --- | --- | --- | --- | --- |")
    with TemporaryDirectory() as folder:
        for kind in arguments.kinds:
            for num_rows in (arguments.rows // 10, arguments.rows):
                shards = Path(folder) / f"{kind}-{num_rows}"
                write_shards(shards, kind, num_rows)
                for what in arguments.what:
                    found = in_own_process(shards, what, arguments.keep)
                    cells = f"{found['kept']:,} | {found['seconds']:.0f} | {found['peak_mib']:.0f}"
                    print(f"| {kind} | {num_rows:,} | {what} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
