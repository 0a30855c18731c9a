"""The commands of ``cai`` and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from pipeline import __version__

FLAGS = (
    *("--multirun", "--cfg", "--markdown", "--config-dir", "--output-dir", "--help"),
    *("--output", "--base", "--ablate", "--full", "--garak", "--adaptive", "--guidelines"),
    *("--json", "--nearest", "--candidates", "--read"),
    *("--requests", "--num-pairs", "--num-requests"),
)

_EPILOG = """\
overrides use Hydra's syntax: group=option or key=value; with -m, comma-separated values are swept.
  cai run                                        the default run, on the embedded SmolLM2-135M-Instruct
  cai run constitution=plain_speech              the same run with another constitution
  cai run model.path=./my-model until=sft        another model, up to supervised fine-tuning
  cai run -m constitution=default,plain_speech   two runs that share equal stages, then a comparison
  cai evaluate outputs/runs/latest/checkpoint --base embedded    any model, compared with another
exit codes: 0 done, 1 a stage failed, 2 wrong input (the message says what to change), 3 a guideline failed
"""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # it has no public name


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="cai",
        description="From a written constitution to an aligned, evaluated checkpoint.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("-q", "--quiet", action="store_true", help="show warnings and errors only")
    root.add_argument("--version", action="version", version=f"cai {__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)

    _add_chain(commands)
    _add_evaluations(commands)
    _add_questions(commands)
    _add_runs(commands)
    _add_texts(commands)
    return root


def _add_chain(commands: Commands) -> None:
    """``run`` and ``plan``."""
    run = commands.add_parser("run", help="run the chain; finished stages are reused")
    run.add_argument("-m", "--multirun", action="store_true", help="sweep over comma-separated values, then compare")
    run.add_argument("--cfg", action="store_true", help="print the composed configuration and stop")
    plan = commands.add_parser("plan", help="list what would run, what is cached, and the calls and tokens")
    for command in (run, plan):
        command.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="group=option or key=value")
        command.add_argument("--config-dir", type=Path, help="a folder with your own groups, laid out like configs/")


def _add_evaluations(commands: Commands) -> None:
    """``evaluate`` and ``redteam``."""
    evaluate = commands.add_parser("evaluate", help="run the suites on any model and check the guidelines")
    redteam = commands.add_parser("redteam", help="run only the red-team suite, every request under every attack")
    for command in (evaluate, redteam):
        command.add_argument("checkpoint", metavar="CHECKPOINT", help="a model folder, a hub id, a run, or 'embedded'")
        command.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="group=option or key=value")
        command.add_argument("--base", metavar="MODEL", help="compare with this model, prompt by prompt")
        command.add_argument("--config-dir", type=Path, help="a folder with your own groups, laid out like configs/")
    evaluate.add_argument("--full", action="store_true", help="use every request, attack, template and pair")
    redteam.add_argument("--adaptive", action="store_true", help="attackers that adapt, with a budget of queries")
    redteam.add_argument("--garak", action="store_true", help="also run garak's probes (pip install garak)")


def _add_questions(commands: Commands) -> None:
    """``explain`` and ``why``."""
    explain = commands.add_parser("explain", help="answer questions about a finished run, and add them to its report")
    explain.add_argument("run", metavar="RUN", help="a run, or with --base a model folder or hub id")
    explain.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="group=option or key=value")
    explain.add_argument("--base", metavar="MODEL", help="the model before training, where there is no run")
    explain.add_argument(
        "--ablate", action="store_true", help="run the chain again without each principle, and compare"
    )
    explain.add_argument("--config-dir", type=Path, help="a folder with your own groups, laid out like configs/")

    why = commands.add_parser("why", help="ask a finished run why it says what it says")
    why.add_argument("run", metavar="RUN", help="name or folder of a run, or latest")
    why.add_argument("prompt", metavar="PROMPT", help="a request in quotes, or the id of an evaluated case")
    why.add_argument("--nearest", type=_at_least_1, default=5, metavar="K", help="show so many rows (default: 5)")
    why.add_argument(
        "--candidates", type=_at_least_1, default=30, metavar="N", help="measure the influence of the N nearest rows"
    )
    why.add_argument(
        "--read", type=_at_least_1, default=200, metavar="N", help="compare with N training prompts (default: 200)"
    )
    why.add_argument("--json", action="store_true", help="print one JSON object with all candidates")
    why.add_argument("--output-dir", default="outputs")


def _add_runs(commands: Commands) -> None:
    """``report``, ``status`` and ``compare``."""
    report = commands.add_parser("report", help="write a finished run's report again and print the gate's verdict")
    report.add_argument("run", nargs="?", default="latest", metavar="RUN", help="name or folder (default: latest)")
    report.add_argument("--output-dir", default="outputs")
    report.add_argument("--guidelines", help="check against this guideline file")

    status = commands.add_parser("status", help="show which stages of a run are finished")
    status.add_argument("run", nargs="?", default="latest", metavar="RUN", help="name or folder (default: latest)")
    status.add_argument("--output-dir", default="outputs")
    compare = commands.add_parser("compare", help="compare two or more finished runs in one table")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="name or folder")
    compare.add_argument("--output-dir", default="outputs")
    compare.add_argument("--guidelines", default="default", help="check each run against this guideline file")


def _add_texts(commands: Commands) -> None:
    """``config`` and ``constitution``."""
    config = commands.add_parser("config", help="list every setting: its type, default and meaning")
    config.add_argument("group", nargs="?", metavar="GROUP", help="only this group, for example align")
    config.add_argument("--markdown", action="store_true", help="print Markdown (docs/configuration.md)")

    constitution = commands.add_parser("constitution", help="check, list, import or stress a constitution")
    actions = constitution.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="list the constitutions that ship with the project")
    check = actions.add_parser("check", help="check a file; a mistake is printed with its line and column")
    check.add_argument("file", metavar="FILE")
    imported = actions.add_parser("import", help="convert a published JSON constitution to YAML")
    imported.add_argument("file", metavar="FILE", type=Path)
    imported.add_argument("-o", "--output", type=Path, help="where to write (default: FILE with .yaml)")

    stress = actions.add_parser("stress", help="find principles that contradict or repeat each other, by judgements")
    stress.add_argument("file", metavar="FILE")
    stress.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="such as engine.path=FOLDER_OR_ID")
    stress.add_argument("--num-pairs", type=_at_least_1, default=10, metavar="N", help="pairs of principles (10)")
    stress.add_argument("--num-requests", type=_at_least_1, default=30, metavar="N", help="for each pair (30)")
    stress.add_argument("--requests", metavar="FILE", help="use these requests; such as an edited requests.jsonl")
    stress.add_argument("--json", action="store_true", help="print one JSON object")
    stress.add_argument("--config-dir", type=Path, help="a folder with your own groups, laid out like configs/")


def _at_least_1(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
