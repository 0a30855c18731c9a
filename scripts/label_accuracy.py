"""How often each labeller is right with each engine, before anything is trained: a table and a JSON file.

    python scripts/label_accuracy.py --engine embedded --engine FOLDER_OR_ID --labeller likelihood --labeller ab \
        --labeller '{kind: ab, num_examples: 8}' --output labels.json

The pairs: 60 shipped ones, and 30 contrasts of the constitution with their harmless twins, which the labeller is not
shown. ``--pairs FILE`` adds pairs that people decided, in a layout of ``evaluate.pairs``; their requests count as
red-team ones.
An engine is a folder, a hub id, or settings such as '{kind: server, base_url: http://127.0.0.1:8000/v1, model: NAME}'.
Further arguments are overrides of the configuration, such as launch.device=cpu. docs/labels.md explains the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.constitution.schema import Constitution
from pipeline.core.errors import CaiError
from pipeline.core.log import say, warn
from pipeline.engines.base import ENGINES, Engine, EngineConfig, Weights, open_engine
from pipeline.evals.label_accuracy import (
    LabelAccuracy,
    Scratch,
    answers_to_twins,
    filed_under,
    hold_back,
    markdown,
    measure,
    twin_pairs,
)
from pipeline.evals.suites.pairs import PairsConfig, read_pairs
from pipeline.labellers.base import LABELLERS, LabellerConfig
from pipeline.records import Comparison

Sets = dict[str, list[Comparison]]


def engine_settings(text: str) -> EngineConfig:
    raw = yaml.safe_load(text)
    if isinstance(raw, str):
        raw = {"kind": "hf", "path": raw}
    settings: EngineConfig = ENGINES.parse(raw)
    return settings


def labeller_settings(text: str) -> LabellerConfig:
    raw = yaml.safe_load(text)
    settings: LabellerConfig = LABELLERS.parse({"kind": raw} if isinstance(raw, str) else raw)
    return settings


def opened(settings: EngineConfig, config: Config) -> Engine:
    model = config.model
    weights = Weights(path=model.path, revision=model.revision, precision=model.precision, name="base")
    return open_engine(settings, weights, config.launch)


def sets_of_pairs(arguments: argparse.Namespace, config: Config) -> tuple[Constitution, Sets]:
    """The constitution without the contrasts that are held back, and the pairs by the name of their set."""
    constitution = load_constitution(find_constitution(config.constitution.path))
    constitution, held = hold_back(constitution, arguments.num_contrasts)
    notes: list[str] = []
    shipped = PairsConfig(source="builtin", num_pairs=arguments.num_pairs)
    sets = {"shipped": read_pairs(shipped, "pairs", "pair", "test", notes)}
    if held:
        with TemporaryDirectory() as folder:
            answers = answers_to_twins(opened(engine_settings(arguments.answers), config), held, Scratch(Path(folder)))
        say(f"{len(held) - len(answers)} of {len(held)} twins have no usable answer and are left out")
        sets["twins"] = twin_pairs(held, answers)
    for path in arguments.pairs:
        given = PairsConfig(source="path", path=str(path), num_pairs=arguments.num_pairs)
        sets[path.stem] = filed_under("red_team", read_pairs(given, "--pairs", path.stem, "test", notes))
    for note in notes:
        warn(note)
    return constitution, sets


def rows(arguments: argparse.Namespace, config: Config) -> Iterator[LabelAccuracy]:
    constitution, sets = sets_of_pairs(arguments, config)
    for text in arguments.engine:
        settings = engine_settings(text)
        try:
            engine = opened(settings, config)
        except CaiError as error:
            warn(str(error))
            yield LabelAccuracy(engine=settings.model_name or text, labeller="", pairs="", pool="", error=str(error))
            continue
        for labeller in map(labeller_settings, arguments.labeller):
            for name, pairs in sets.items():
                yield from measure(engine, labeller, constitution, name, pairs, config.seed)


def arguments_of(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", required=True, help="may be given several times")
    parser.add_argument("--labeller", action="append", required=True, help="a name, or settings as YAML")
    parser.add_argument("--pairs", action="append", type=Path, default=[], help="a file with pairs; for measuring only")
    parser.add_argument("--num-pairs", type=int, default=60, help="of each file, and of the shipped ones")
    parser.add_argument("--num-contrasts", type=int, default=30, help="held back; each gives two pairs; 0: none")
    parser.add_argument("--answers", default="embedded", help="the engine that answers the harmless twins")
    parser.add_argument("--output", type=Path, default=Path("labels.json"))
    parser.add_argument("overrides", nargs="*", help="of the configuration, such as constitution=FILE")
    return parser.parse_args(given)


def main() -> None:
    arguments = arguments_of()
    found: list[LabelAccuracy] = []
    try:
        for row in rows(arguments, compose_config(arguments.overrides)):
            found.append(row)
            dumped: list[dict[str, Any]] = [row.model_dump(mode="json") for row in found]
            arguments.output.write_text(json.dumps(dumped, indent=1) + "\n", encoding="utf-8")
            arguments.output.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    except (CaiError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(markdown(found))


if __name__ == "__main__":
    main()
