"""The command line, ``cai``: the only file that prints errors and sets the exit code of an error."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from pipeline.cli.commands import COMMANDS
from pipeline.cli.parser import flags, parser
from pipeline.core.errors import CaiError, ConfigError, Terminated, did_you_mean

INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # 128 + the signal, as a shell says it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A ``CaiError`` is printed, not raised."""
    _print_anywhere()
    if arguments is None:  # this process is the command's own
        signal.signal(signal.SIGTERM, _terminate)
    root = parser()
    args, extra = root.parse_known_args(arguments)
    try:
        _refuse_bytes(sys.argv[1:] if arguments is None else arguments)
        _refuse_unknown(args, extra, flags(root))
        _quiet_libraries()
        if args.quiet:
            from pipeline.core.log import quiet

            quiet()
        return COMMANDS[args.command](args)
    except CaiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except PermissionError as error:
        print(f"error: {error.filename} can't be read or written (permission denied).", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of a pipe, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt as stop:
        print("stopped; run the same command again to continue.", file=sys.stderr)
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED


def _terminate(number: int, frame: object) -> None:
    """End as after Ctrl-C: a scheduler that takes the machine back sends SIGTERM."""
    raise Terminated


def _print_anywhere() -> None:
    """Print "?" for a character that the terminal's encoding does not have, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _refuse_bytes(words: Sequence[str]) -> None:
    """Refuse an argument that is not text: Python reads its bytes as half characters, which can't be written."""
    from pipeline.core.text import whole_characters

    for word in words:
        if whole_characters(word) != word:
            raise ConfigError(f"argument {word!r} is not text in the terminal's encoding; write it in UTF-8.")


def _refuse_unknown(args: argparse.Namespace, extra: Sequence[str], known: set[str]) -> None:
    options = [word for word in extra if word.startswith("-")]
    if options:
        if options[0] in known:
            raise ConfigError(f"`cai {args.command}` has no option {options[0]!r}; see `cai {args.command} --help`.")
        raise ConfigError(f"unknown option {options[0]!r}{did_you_mean(options[0], known)}.")
    if extra and not hasattr(args, "overrides"):
        raise ConfigError(f"unexpected argument {extra[0]!r}; see `cai {args.command} --help`.")
    if extra:
        args.overrides.extend(extra)  # overrides may come before or after an option


def _quiet_libraries() -> None:
    """Turn off progress bars and warnings of the libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import warnings

    warnings.filterwarnings("ignore")
