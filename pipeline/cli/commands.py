"""What each command of ``cai`` does. Heavy packages are imported only by the commands that need them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.codes import exit_code, worst_code
from pipeline.cli.completion import completion
from pipeline.cli.constitution import constitution
from pipeline.cli.daily import chat, clean, dashboard, doctor
from pipeline.cli.evidence import approve, bundle, verify
from pipeline.cli.export import export
from pipeline.cli.json_value import print_json
from pipeline.cli.screen import console, print_markdown
from pipeline.core.errors import ConfigError, StageError

if TYPE_CHECKING:
    from pipeline.chain.config import Config
    from pipeline.chain.runner import Run


def _run(args: argparse.Namespace) -> int:
    from pipeline.chain.compose import compose_config, sweep

    if args.cfg:
        import yaml

        from pipeline.chain.config import to_plain

        config = compose_config(args.overrides, args.config_dir)
        print(yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True), end="")
        return 0
    jobs = sweep(args.overrides) if args.multirun else [args.overrides]
    configs = [compose_config(job, args.config_dir) for job in jobs]  # check all jobs before the first one runs
    from pipeline.chain.runner import run

    if len(configs) == 1:
        return exit_code(run(configs[0]).ending)
    from pipeline.chain.plan import reach_engines
    from pipeline.chain.preflight import preflight
    from pipeline.chain.runner import run_name

    prepared = [preflight(config) for config in configs]
    names = [run_name(one.config, one.constitution) for one in prepared]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"name: several jobs of the sweep would write the run {max(names, key=names.count)!r}; leave name out, or "
            "sweep over different values."
        )
    if configs[0].launch.machine_rank == 0:
        for one in prepared:
            reach_engines(one)
    return _run_jobs(jobs, configs)


def _run_jobs(jobs: Sequence[Sequence[str]], configs: Sequence[Config]) -> int:
    """Run the jobs of a sweep, and compare those that are done.

    Raises:
        StageError: a job stopped. The others don't depend on it, and run all the same.
    """
    from pipeline.chain.runner import run

    runs: dict[str, Run] = {}
    stopped = []
    for job, config in zip(jobs, configs, strict=True):
        try:
            runs[" ".join(job)] = run(config)
        except StageError as error:
            own = " ".join(override for override in job if any(override not in other for other in jobs))
            stopped.append(own)
            print(f"job {own!r} stopped: {error}", file=sys.stderr, flush=True)
    folders = [finished.folder for finished in runs.values()]
    is_first_machine = configs[0].launch.machine_rank == 0
    # until= can end a run before its report
    if is_first_machine and len(folders) > 1 and all((folder / "report.md").exists() for folder in folders):
        _write_comparison(folders, list(runs), configs[0].output_dir, configs[0].evaluate.guidelines)
    if stopped:
        raise StageError(
            f"{len(stopped)} of {len(jobs)} jobs stopped ({'; '.join(stopped)}), for the reasons above; the others are "
            "done. The same command goes on where they stopped."
        )
    return worst_code(exit_code(finished.ending) for finished in runs.values()) if is_first_machine else 0


def _evaluate(args: argparse.Namespace) -> int:
    from pipeline.chain.checkpoints import with_checkpoints
    from pipeline.chain.compose import compose_config
    from pipeline.chain.runner import run

    overrides = list(args.overrides)
    if args.full:
        overrides.insert(0, "evaluate=full")
    config = compose_config(overrides, args.config_dir)
    return exit_code(run(with_checkpoints(config, args.checkpoint, args.base)).ending)


def _redteam(args: argparse.Namespace) -> int:
    from pipeline.chain.checkpoints import with_checkpoints
    from pipeline.chain.compose import compose_config
    from pipeline.chain.runner import run
    from pipeline.evals.garak import DEFAULT_PROBES

    if args.adaptive:
        return _attack(args)
    overrides = ["evaluate=full", "evaluate.suites=[red_team]", *args.overrides]
    if args.garak and not any(word.startswith("evaluate.garak_probes") for word in args.overrides):
        overrides.append(f"evaluate.garak_probes=[{','.join(DEFAULT_PROBES)}]")
    config = compose_config(overrides, args.config_dir)
    return exit_code(run(with_checkpoints(config, args.checkpoint, args.base)).ending)


def _attack(args: argparse.Namespace) -> int:
    """Attacks that adapt: on the models of a finished run, or on a checkpoint."""
    from pipeline.chain.compose import compose_config
    from pipeline.chain.explaining import is_run, refuse_other_settings, to_attack
    from pipeline.chain.runner import run

    if args.garak:
        raise ConfigError("--garak runs with the fixed attacks; leave out --adaptive, or run both commands.")
    overrides = list(args.overrides)
    config = compose_config(["evaluate.suites=[red_team]", *overrides], args.config_dir)
    if args.base is None and is_run(config.output_dir, args.checkpoint):
        refuse_other_settings(overrides, "redteam --adaptive", "attack")
    return exit_code(run(to_attack(config, args.checkpoint, args.base)).ending)


def _explain(args: argparse.Namespace) -> int:
    from pipeline.chain.compose import compose_config
    from pipeline.chain.explaining import ablations, refuse_other_settings, to_explain
    from pipeline.chain.runner import run

    if args.ablate and args.base is not None:
        raise ConfigError("--ablate trains a run again without each principle, so it needs a run; leave out --base.")
    if args.base is None:
        refuse_other_settings(args.overrides)
    config = to_explain(compose_config(args.overrides, args.config_dir), args.run, args.base)
    others = ablations(config) if args.ablate else {}
    explained = run(config)
    if others:
        runs = [explained, *map(run, others.values())]
        labels = ["all principles", *(f"without {name}" for name in others)]
        _write_comparison([done.folder for done in runs], labels, config.output_dir, config.evaluate.guidelines)
    return exit_code(explained.ending)


def _why(args: argparse.Namespace) -> int:
    from pipeline.chain.asking import open_run, to_ask
    from pipeline.cli.why import show
    from pipeline.explain.why import why

    run = open_run(args.output_dir, args.run)
    answer = why(run, to_ask(run, args.prompt), max(args.candidates, args.nearest), args.read)
    if args.json:
        print(answer.model_dump_json(indent=1))
    else:
        show(answer, args.nearest)
    return 0


def _report(args: argparse.Namespace) -> int:
    from pipeline.chain.runs import report_anew

    return exit_code(report_anew(args.output_dir, args.run, args.guidelines))


def _compare(args: argparse.Namespace) -> int:
    from pipeline.chain.runs import find_run

    if len(args.runs) < 2:
        raise ConfigError(f"RUN: {args.runs[0]!r} can't be compared alone; give two or more runs.")
    folders = [find_run(args.output_dir, name) for name in args.runs]
    labels = [folder.resolve().name for folder in folders]
    _write_comparison(folders, labels, args.output_dir, args.guidelines, as_json=args.json)
    return 0


def _write_comparison(
    folders: Sequence[Path], labels: Sequence[str], output_dir: str, guidelines: str | None, as_json: bool = False
) -> None:
    from pipeline.core.log import say
    from pipeline.report.compare import write_comparison

    path = write_comparison(folders, labels, Path(output_dir).expanduser() / "comparisons", guidelines)
    say(f"comparison: {path.with_suffix('.html')} (and {path.name}, {path.stem}.json)")
    if as_json:
        print(path.with_suffix(".json").read_text(encoding="utf-8"), end="")
    else:
        print_markdown(path.read_text(encoding="utf-8"))


def _plan(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rich.table import Table

    from pipeline.chain.compose import compose_config
    from pipeline.chain.estimates import memory_table, time_and_money
    from pipeline.chain.plan import COUNTED, plan, usage
    from pipeline.chain.preflight import preflight
    from pipeline.chain.rendering import table as rendering_table
    from pipeline.constitution.paper import deviations_from_paper

    config = compose_config(args.overrides, args.config_dir)
    prepared = preflight(config, elsewhere=config.launch.device_memory_gib is not None)
    steps = plan(prepared)
    deviations = deviations_from_paper(config, prepared.constitution)
    if args.json:
        print_json({"stages": [asdict(step) for step in steps], "warnings": prepared.notes, "deviations": deviations})
        return 0
    table = Table("stage", "what happens", "folder", box=None, pad_edge=False)
    for column in ("calls ≤", "tokens written ≤", "tokens read ≈", "steps"):
        table.add_column(column, justify="right")
    for step in steps:
        numbers = [getattr(step.cost, name) for name in COUNTED]
        table.add_row(step.stage, step.state, step.folder, *(f"{n:,}" if n else "" for n in numbers))
    totals = [sum(getattr(step.cost, name) for step in steps) for name in COUNTED]
    table.add_row("total", "", "", *(f"{n:,}" for n in totals))
    screen = console(140)
    screen.print(table)
    lines = [*time_and_money(steps, config.launch), *memory_table(prepared), *usage(config, steps)]
    for line in [*lines, *rendering_table(prepared.rendering)]:
        screen.print(line, markup=False)
    for note in prepared.notes:
        screen.print(f"warning: {note}", markup=False)
    for sentence in deviations:
        screen.print(f"  differs from the paper: {sentence}", markup=False)
    return 0


def _config(args: argparse.Namespace) -> int:
    from pipeline.chain.reference import HEADER, reference, settings_of

    if args.json:
        print_json(settings_of(args.group))
        return 0
    text = reference(args.group)
    if args.markdown:
        print(HEADER + text, end="")
        return 0
    from rich.markdown import Markdown

    console(160).print(Markdown(text))
    return 0


def _status(args: argparse.Namespace) -> int:
    from pipeline.chain.runs import find_run, status

    name = find_run(args.output_dir, args.run).resolve().name
    rows = status(args.output_dir, args.run)
    if args.json:
        stages = [{"stage": task, "state": state, "detail": detail} for task, state, detail in rows]
        print_json({"run": name, "stages": stages})
        return 0
    print(name)
    width = max(len(task) for task, _, _ in rows)
    for task, state, detail in rows:
        print(f"  {task:<{width}} {state:<13} {detail}".rstrip())
    return 0


COMMANDS = {
    "run": _run,
    "evaluate": _evaluate,
    "redteam": _redteam,
    "explain": _explain,
    "why": _why,
    "report": _report,
    "bundle": bundle,
    "verify": verify,
    "approve": approve,
    "plan": _plan,
    "status": _status,
    "compare": _compare,
    "config": _config,
    "constitution": constitution,
    "chat": chat,
    "dashboard": dashboard,
    "export": export,
    "doctor": doctor,
    "clean": clean,
    "completion": completion,
}
