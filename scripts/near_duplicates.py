"""Find requests in your files that nearly equal a request in the project's training data.

    python scripts/near_duplicates.py BENCHMARK.jsonl [MORE.jsonl …] [--field prompt] [--at-least 0.5]

Prints each pair, and exits with 1 if there are any. Run it on your evaluation data before you use it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pipeline.chain.compose import compose_config
from pipeline.constitution.files import load_constitution, shipped_constitutions
from pipeline.data.loading import load_prompts
from pipeline.data.near_duplicates import ALIKE, near_duplicates


def shipped_requests() -> dict[str, str]:
    """Place → request, for all prompt pools and the examples of all constitutions."""
    found = {f"pipeline/data {prompt.id}": prompt.request for prompt in load_prompts(compose_config([]).data).prompts}
    for name, path in shipped_constitutions().items():
        for number, messages in enumerate(load_constitution(path).requests()):
            found[f"constitutions/{name} example {number}"] = messages[-1]["content"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--field", default="prompt", help="the key of the request in each line")
    parser.add_argument("--at-least", type=float, default=ALIKE, help="share of letter sequences in common")
    arguments = parser.parse_args()
    num_found = 0
    for file in arguments.files:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        asked = {f"{file.name}:{n}": str(json.loads(line)[arguments.field]) for n, line in enumerate(lines, start=1)}
        shipped = shipped_requests()
        for pair in near_duplicates(asked, shipped, arguments.at_least):
            print(
                f"{pair.similarity:.2f}  {pair.id}: {asked[pair.id]}\n      {pair.other_id}: {shipped[pair.other_id]}"
            )
            num_found += 1
        print(f"{file.name}: {len(asked)} requests checked")
    return 1 if num_found else 0


if __name__ == "__main__":
    sys.exit(main())
