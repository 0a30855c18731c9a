"""What ``cai constitution`` does and prints: one function for each action."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline.cli.json_value import print_json
from pipeline.cli.screen import console
from pipeline.constitution.files import find_constitution, load_constitution, shipped_constitutions, to_yaml
from pipeline.constitution.schema import Constitution, Principle
from pipeline.core.errors import ConfigError
from pipeline.core.text import count_of

WIDTH = 100


def constitution(args: argparse.Namespace) -> int:
    ACTIONS[args.action](args)
    return 0


def _list(args: argparse.Namespace) -> None:
    found = {name: load_constitution(path) for name, path in shipped_constitutions().items()}
    if args.json:
        print_json([{"name": name, "version": c.version, "description": c.description} for name, c in found.items()])
        return
    for name, one in found.items():
        print(f"{name:<14} {one.description}")


def _check(args: argparse.Namespace) -> None:
    found = load_constitution(find_constitution(args.file))
    print(f"{args.file}: {found.name} {found.version} is valid: {_parts(found)}.")
    for note in found.notes():
        print(f"warning: {note}")


def _import(args: argparse.Namespace) -> None:
    from pipeline.constitution.published import MARKDOWN, import_constitution

    if args.file.suffix.lower() in MARKDOWN:
        _import_markdown(args)
        return
    imported = import_constitution(args.file)
    _refuse_twins(imported.principles)
    target = args.output or args.file.with_suffix(".yaml")
    if target.exists():
        raise ConfigError(f"--output: {target} already exists; give another file with -o.")
    try:
        target.write_text(to_yaml(imported), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output: {target} can't be written ({error.strerror}).") from None
    load_constitution(target)
    print(f"{target}: {len(imported.principles)} principles, {len(imported.worked_examples)} worked examples.")


def _import_markdown(args: argparse.Namespace) -> None:
    from pipeline.cli.new_constitution import show_left_out
    from pipeline.constitution.drafts import write_draft
    from pipeline.constitution.published import import_markdown

    draft, page = import_markdown(args.file)
    target = args.output or args.file.with_suffix(".yaml")
    found = write_draft(draft, target)
    show_left_out(page)
    print(f"{target}: {count_of(len(found.principles), 'principle')}, each with its line in {args.file.name}.")
    for note in found.notes():
        print(f"warning: {note}")


def _refuse_twins(principles: Sequence[Principle]) -> None:
    ids = [principle.id for principle in principles]
    if twins := [name for name in ids if ids.count(name) > 1]:
        raise ConfigError(f"FILE: two principles would have the id {twins[0]!r}; rename one of them in the file.")


def _new(args: argparse.Namespace) -> None:
    from pipeline.cli.new_constitution import new

    new(args)


def _diff(args: argparse.Namespace) -> None:
    from pipeline.report.differences import constitution_differences

    before, after = (load_constitution(find_constitution(file)) for file in (args.before, args.after))
    changes = constitution_differences(before, after)
    if args.json:
        print_json([change.model_dump() for change in changes])
        return
    for change in changes:
        print(f"{change.section.replace('_', ' ')}, {change.id}, {change.what}: {change.text}")
    if not changes:
        print("no text differs")


def _show(args: argparse.Namespace) -> None:
    show_constitution(load_constitution(find_constitution(args.file)), args.examples)


def show_constitution(one: Constitution, examples: bool) -> None:
    """Print a constitution as a person reads it."""
    screen = console(WIDTH)

    def say(text: str = "", style: str | None = None) -> None:
        screen.print(text, style=style, markup=False, width=WIDTH)

    say(f"{one.name} {one.version}: {one.description}", "bold")
    say(one.preamble.strip())
    say(f"Revised pools: {', '.join(one.revise)}.")
    for principle in one.principles:
        weight = "" if principle.weight == 1 else f", weight {principle.weight:g}"
        say()
        say(f"{principle.title} ({principle.id}; {', '.join(principle.tags) or 'no tags'}{weight})", "bold")
        say(f"  criticise: {principle.critique_request}")
        say(f"  revise: {principle.revision_request}")
        say(f"  prefer: {principle.preference_question}")
    say()
    say(f"{_parts(one)}.")
    for parts in (one.worked_examples, one.good_answers, one.contrasts) if examples else ():
        for part in parts:
            say()
            for name, value in part.model_dump(exclude={"tags"}).items():
                say(f"  {name.replace('_', ' ')}: {value}", "bold" if name == "id" else None)


def _parts(one: Constitution) -> str:
    """How many principles and examples of each kind it has."""
    counts = {
        "principle": len(one.principles),
        "worked example": len(one.worked_examples),
        "good answer": len(one.good_answers),
        "contrast": len(one.contrasts),
    }
    return ", ".join(count_of(number, noun) for noun, number in counts.items())


def _stress(args: argparse.Namespace) -> None:
    from pipeline.chain.stressing import stress_config, stress_constitution
    from pipeline.cli.stress import show

    config = stress_config(args.file, args.overrides, args.config_dir)
    found, folder = stress_constitution(config, args.num_pairs, args.num_requests, args.requests)
    if args.json:
        print(found.model_dump_json(indent=1))
    else:
        show(found, folder)


def _schema(args: argparse.Namespace) -> None:
    from pipeline.constitution.json_schema import json_schema_text

    print(json_schema_text(), end="")


ACTIONS = {
    "list": _list,
    "check": _check,
    "show": _show,
    "diff": _diff,
    "import": _import,
    "new": _new,
    "schema": _schema,
    "stress": _stress,
}
