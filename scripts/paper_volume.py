"""Print what critique and revision cost at the volume of Bai et al. 2022: the tables of docs/paper_volume.md.

    python scripts/paper_volume.py

The numbers are those of ``cai plan experiment=paper_volume``; without a server, weights or 182,831 real prompts.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from pipeline.chain.compose import compose_config
from pipeline.chain.estimates import hours_of
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.core.stage import Cost, Prepared
from pipeline.records import Message, Prompt
from pipeline.stages.critique import Critique

sys.path.insert(0, str(Path(__file__).parent))
from stand_in_prompts import stand_ins

NUM_GPUS = 8
# llm-swarm's own record of a run with Mistral-7B: one reply, critique and revision for each prompt
SWARM_PROMPTS, SWARM_GPUS, SWARM_SECONDS, SWARM_WRITTEN_PER_SECOND = 44_849, 64, 97 * 60 + 6, 2471.9


def paper_volume() -> Prepared:
    """The configuration of ``experiment=paper_volume`` with as many stand-ins for prompts as it wants."""
    config = compose_config(["experiment=paper_volume", "data.red_team.path=prompts.jsonl"])
    constitution = load_constitution(find_constitution(config.constitution.path))
    prompts = [
        Prompt(
            id=str(number),
            pool="red_team",
            kind="stand-in",
            split="train",
            messages=[Message(role="user", content=text)],
        )
        for number, text in enumerate(stand_ins(config.critique.num_red_team))
    ]
    return Prepared(config=config, constitution=constitution, prompts=prompts, stages=("prompts", "critique"))


def volume(prepared: Prepared) -> list[str]:
    """Calls and tokens by role, as the lines of a table."""
    cost = Critique().cost(prepared)
    rows = [("first replies", cost.roles["policy_engine"]), ("critiques and revisions", cost.roles["engine"])]
    lines = [
        "| | calls | tokens written ≤ | tokens read ≈ | of them in shared examples |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, part in [*rows, ("together", cost)]:
        lines.append(
            f"| {name} | {part.num_calls:,} | {part.num_tokens_written / 1e6:,.0f} M | "
            f"{part.num_tokens_read / 1e6:,.0f} M | {part.num_tokens_repeated / 1e6:,.0f} M |"
        )
    return lines


def time_and_money(prepared: Prepared) -> list[str]:
    """With and without prefix caching, beside llm-swarm: the lines of a table."""
    launch, cost = prepared.config.launch, Critique().cost(prepared)
    written = Cost(num_tokens_written=cost.num_tokens_written)
    lines = ["| | hours | GPU hours | money | GPU seconds for each call |", "| --- | --- | --- | --- | --- |"]
    for name, part in (
        ("planned, prefixes kept", cost),
        ("planned, prefixes read each time", replace(cost, num_tokens_repeated=0)),
        ("of them for writing", written),
    ):
        hours, price = hours_of(part, launch), launch.rates.price_per_hour
        assert hours is not None and price is not None
        each = hours * NUM_GPUS * 3600 / cost.num_calls
        lines.append(f"| {name} | {hours:.1f} | {hours * NUM_GPUS:,.0f} | {hours * price:,.0f} | {each:.2f} |")
    hours = SWARM_SECONDS / 3600
    each = SWARM_SECONDS * SWARM_GPUS / (3 * SWARM_PROMPTS)
    lines.append(f"| llm-swarm, 7 B, as published | {hours:.1f} | {hours * SWARM_GPUS:,.0f} | – | {each:.2f} |")
    return lines


def main() -> None:
    prepared = paper_volume()
    print("\n".join([*volume(prepared), "", *time_and_money(prepared)]))


if __name__ == "__main__":
    main()
