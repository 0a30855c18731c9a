"""``cai export``: its options, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from pipeline.core.errors import ConfigError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

FORMS = ("merged", "adapter", "gguf", "ollama", "vllm")
DTYPES = ("f16", "bf16", "f32", "q8_0")


def add_export(commands: Commands) -> None:
    command = commands.add_parser("export", help="write a model in the form that another program reads")
    command.add_argument(
        "model", nargs="?", default="latest", metavar="MODEL", help="a run, a model folder or a hub id"
    )
    command.add_argument("--to", required=True, choices=FORMS, help="the form")
    command.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="default: exports/MODEL-FORM in --output-dir"
    )
    command.add_argument("--dtype", choices=DTYPES, help="numbers in a GGUF file (default: f16)")
    command.add_argument("--system", choices=("constitution",), help="Ollama gives the model the principles to read")
    command.add_argument("--push-to-hub", metavar="OWNER/NAME", help="also upload the folder to the hub")
    command.add_argument("--private", action="store_true", help="as a private repository, if it is new")
    command.add_argument("--output-dir", default="outputs")


def export(args: argparse.Namespace) -> int:
    _refuse_unread(args)
    from pipeline.daily.export import Options, open_source
    from pipeline.daily.export import export as write
    from pipeline.daily.hub import check_hub, push

    if args.push_to_hub is not None:
        check_hub(args.push_to_hub)
    source = open_source(args.model, args.output_dir)
    default = Path(args.output_dir).expanduser() / "exports" / f"{source.name}-{args.to}"
    output = args.output.expanduser() if args.output else default
    write(source, args.to, output, Options(dtype=args.dtype or "f16", system=args.system is not None))
    print(output)
    if args.push_to_hub is not None:
        print(push(output, args.push_to_hub, args.private))
    return 0


def _refuse_unread(args: argparse.Namespace) -> None:
    """Refuse options that the chosen form would not read."""
    if args.dtype is not None and args.to not in ("gguf", "ollama"):
        raise ConfigError(f"--dtype is read by --to gguf and ollama, not by {args.to}; leave it out.")
    if args.system is not None and args.to != "ollama":
        raise ConfigError(f"--system is read by --to ollama, not by {args.to}; leave it out.")
    if args.private and args.push_to_hub is None:
        raise ConfigError("--private says how --push-to-hub uploads; give both, or neither.")
