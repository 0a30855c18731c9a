"""The commands of ``cai`` and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from pipeline import __version__
from pipeline.cli.completion import SHELLS
from pipeline.cli.export import add_export

_EPILOG = """\
overrides use Hydra's syntax: group=option or key=value; with -m, comma-separated values are swept.
  cai run                                        the default run, on the embedded SmolLM2-135M-Instruct
  cai run constitution=plain_speech              the same run with another constitution
  cai run model.path=./my-model until=sft        another model, up to supervised fine-tuning
  cai run -m constitution=default,plain_speech   two runs that share equal stages, then a comparison
  cai evaluate outputs/runs/latest/checkpoint --base embedded    any model, compared with another
exit codes: 0 done, 1 a stage failed, 2 wrong input (the message says what to change), 3 a guideline failed,
4 the run awaits approval (cai approve), 5 a bundle does not hold what it says (cai verify)
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
    _add_evidence(commands)
    _add_texts(commands)
    _add_chat(commands)
    add_export(commands)
    _add_machine(commands)
    return root


def flags(root: argparse.ArgumentParser) -> set[str]:
    """Every option of every command, for hints."""
    found: set[str] = set()
    for action in root._actions:  # argparse has no public way to them
        found |= {word for word in action.option_strings if word.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            found = found.union(*map(flags, action.choices.values()))
    return found


def _add_chain(commands: Commands) -> None:
    """``run`` and ``plan``."""
    run = commands.add_parser("run", help="run the chain; finished stages are reused")
    run.add_argument("-m", "--multirun", action="store_true", help="sweep over comma-separated values, then compare")
    run.add_argument("--cfg", action="store_true", help="print the composed configuration and stop")
    plan = commands.add_parser("plan", help="list what would run, what is cached, and the calls and tokens")
    plan.add_argument("--json", action="store_true", help="print one JSON object")
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
    status.add_argument("--json", action="store_true", help="print one JSON object")
    compare = commands.add_parser("compare", help="compare two or more finished runs in one table")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="name or folder")
    compare.add_argument("--output-dir", default="outputs")
    compare.add_argument("--json", action="store_true", help="print one JSON object")
    compare.add_argument("--guidelines", default="default", help="check each run against this guideline file")


def _add_evidence(commands: Commands) -> None:
    """``bundle``, ``verify`` and ``approve``."""
    bundle = commands.add_parser("bundle", help="write the evidence of a run into a folder that others can check")
    bundle.add_argument("run", metavar="RUN", help="name or folder of a run, or latest")
    bundle.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: bundles/RUN in --output-dir")
    bundle.add_argument("--redact", action="store_true", help="put hashes in place of harmful requests and replies")
    bundle.add_argument("--weights", action="store_true", help="copy the model's files, too")
    bundle.add_argument("--sign", type=Path, metavar="KEY", help="sign with this private key (needs 'cai[sign]')")
    bundle.add_argument("--mapping", type=Path, metavar="FILE", help="another table of hazards")
    bundle.add_argument("--base-flop", type=_above_0, metavar="N", help="training compute of the model before, in FLOP")
    bundle.add_argument("--watts", type=_above_0, metavar="N", help="measured power while the run was busy")
    bundle.add_argument("--output-dir", default="outputs")

    verify = commands.add_parser("verify", help="check a bundle and count its numbers again; exit code 5 if it fails")
    verify.add_argument("bundle", metavar="BUNDLE", type=Path, help="a folder written by cai bundle")
    verify.add_argument("--key", type=Path, metavar="KEY", help="the public key of its signature")
    verify.add_argument("--json", action="store_true", help="print one JSON object")

    approve = commands.add_parser("approve", help="approve a run by name, or override a guideline that failed")
    approve.add_argument("run", metavar="RUN", help="name or folder of a run, or latest")
    approve.add_argument("--by", required=True, metavar="NAME", help="the person who decides")
    approve.add_argument("--note", required=True, metavar="TEXT", help="the reason")
    approve.add_argument("--override", metavar="GUIDELINE", help="the id of a guideline that failed")
    approve.add_argument("--output-dir", default="outputs")


def _add_texts(commands: Commands) -> None:
    """``config`` and ``constitution``."""
    config = commands.add_parser("config", help="list every setting: its type, default and meaning")
    config.add_argument("group", nargs="?", metavar="GROUP", help="only this group, for example align")
    config.add_argument("--markdown", action="store_true", help="print Markdown (docs/configuration.md)")
    config.add_argument("--json", action="store_true", help="print one JSON object")

    constitution = commands.add_parser("constitution", help="write, check, show, compare, import or stress one")
    actions = constitution.add_subparsers(dest="action", metavar="ACTION", required=True)
    listed = actions.add_parser("list", help="list the constitutions that ship with the project")
    listed.add_argument("--json", action="store_true", help="print one JSON object")
    check = actions.add_parser("check", help="check a file; a mistake is printed with its line and column")
    check.add_argument("file", metavar="FILE")
    show = actions.add_parser("show", help="print a constitution for reading: its principles, and what it has beside")
    show.add_argument("file", metavar="FILE")
    show.add_argument("--examples", action="store_true", help="also print every example")
    diff = actions.add_parser("diff", help="what differs between two constitutions, word by word")
    diff.add_argument("before", metavar="BEFORE", help="a file, or the name of a shipped constitution")
    diff.add_argument("after", metavar="AFTER")
    diff.add_argument("--json", action="store_true", help="print one JSON object")
    imported = actions.add_parser("import", help="convert a published constitution (JSON or Markdown) to YAML")
    imported.add_argument("file", metavar="FILE", type=Path)
    imported.add_argument("-o", "--output", type=Path, help="where to write (default: FILE with .yaml)")
    new = actions.add_parser("new", help="write one from six questions, or from a page of rules")
    new.add_argument("file", metavar="FILE", type=Path, help="the new file, such as mine.yaml")
    new.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="an engine words it, such as engine.path=MODEL")
    new.add_argument("--text", metavar="PAGE", help="a page of rules in Markdown or plain text (-: standard input)")
    new.add_argument("--schema", action="store_true", help="also write the JSON Schema for editors beside FILE")
    new.add_argument("--config-dir", type=Path, help="a folder with your own groups, laid out like configs/")
    actions.add_parser("schema", help="print the JSON Schema with which an editor completes and checks a constitution")

    stress = actions.add_parser("stress", help="find principles that contradict or repeat each other, by judgements")
    stress.add_argument("file", metavar="FILE")
    stress.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="such as engine.path=FOLDER_OR_ID")
    stress.add_argument("--num-pairs", type=_at_least_1, default=10, metavar="N", help="pairs of principles (10)")
    stress.add_argument("--num-requests", type=_at_least_1, default=30, metavar="N", help="for each pair (30)")
    stress.add_argument("--requests", metavar="FILE", help="use these requests; such as an edited requests.jsonl")
    stress.add_argument("--json", action="store_true", help="print one JSON object")
    stress.add_argument("--config-dir", type=Path, help="a folder with your own groups, laid out like configs/")


def _add_chat(commands: Commands) -> None:
    """``chat``."""
    chat = commands.add_parser("chat", help="talk to a model, or to two side by side")
    chat.add_argument("model", nargs="?", default="latest", metavar="MODEL", help="a run, a model folder or a hub id")
    chat.add_argument("--against", metavar="MODEL", help="a second model; 'base' is the one that the run began with")
    chat.add_argument("--constitution", metavar="FILE", help="for /critique, in place of the run's")
    chat.add_argument("--keep", type=Path, default=Path(), metavar="FOLDER", help="where /save writes (default: here)")
    chat.add_argument("--max-reply-tokens", type=_at_least_1, default=256, metavar="N", help="of a reply (256)")
    chat.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): the likeliest token")
    chat.add_argument("--output-dir", default="outputs")


def _add_machine(commands: Commands) -> None:
    """``dashboard``, ``doctor``, ``clean`` and ``completion``."""
    dashboard = commands.add_parser("dashboard", help="open the tracker of a run: wandb, trackio or TensorBoard")
    dashboard.add_argument("run", nargs="?", default="latest", metavar="RUN", help="name or folder (default: latest)")
    dashboard.add_argument("--port", type=_at_least_1, metavar="N", help="of a local page")
    dashboard.add_argument("--output-dir", default="outputs")
    doctor = commands.add_parser("doctor", help="say what this machine has, and what to do about what is missing")
    doctor.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="such as engine=server engine.base_url=URL")
    doctor.add_argument("--config-dir", type=Path, help="a folder with your own groups, laid out like configs/")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    clean = commands.add_parser("clean", help="say what the cache holds, and remove what no run refers to")
    clean.add_argument("--yes", action="store_true", help="remove without asking")
    clean.add_argument("--answers", action="store_true", help="also remove kept answers of evaluated models")
    clean.add_argument("--json", action="store_true", help="print one JSON object; remove nothing without --yes")
    clean.add_argument("--output-dir", default="outputs")
    completion = commands.add_parser("completion", help="print a script with which a shell completes what you type")
    completion.add_argument("shell", choices=SHELLS)


def _above_0(word: str) -> float:
    number = float(word)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def _at_least_1(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
