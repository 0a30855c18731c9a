"""Print any number of red-team prompts as JSONL, to plan a run before its prompts are at hand.

They are the project's own prompts with a number, so they have the usual length. Don't train on them:

    python scripts/stand_in_prompts.py 200000 > prompts.jsonl
    cai plan experiment=paper_volume data.red_team.path=prompts.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from pipeline.chain.compose import compose_config
from pipeline.data.loading import load_prompts


def stand_ins(number: int) -> Iterator[str]:
    """So many different requests."""
    known = [prompt.request for prompt in load_prompts(compose_config([]).data).prompts if prompt.pool == "red_team"]
    for index in range(number):
        yield f"{known[index % len(known)]} ({index})"


if __name__ == "__main__":
    for request in stand_ins(int(sys.argv[1])):
        print(json.dumps({"prompt": request}))
