"""The commands in Markdown pages, and how they are run on a tiny model, or only read.

A ``bash`` block after the comment ``<!-- tested … -->`` is run, one command after another. All other ``cai`` commands
are read: the parser takes them, and their overrides compose.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from pipeline.chain.compose import compose_config, sweep
from pipeline.cli import _refuse_unknown
from pipeline.cli.parser import flags, parser
from tests.conftest import tiny_overrides

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*?) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block, and the comment above it."""

    note: str
    kind: str
    text: str

    def commands(self) -> list[list[str]]:
        """The words of each command, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["note"] or "", match["kind"], match["text"]) for match in found]


def commands_to_run(page: Path) -> list[list[str]]:
    return [words for block in blocks(page) if block.note.startswith("tested") for words in block.commands()]


def commands_to_read(page: Path) -> list[list[str]]:
    """The ``cai`` commands of all blocks that are not run."""
    shells = [block for block in blocks(page) if block.kind in {"bash", "sh"} and not block.note.startswith("tested")]
    return [words for block in shells for words in block.commands() if words[0] == "cai"]


def files_of(page: Path) -> dict[str, str]:
    """Name → text of the blocks after a comment ``<!-- file: NAME -->``."""
    return {block.note[6:]: block.text for block in blocks(page) if block.note.startswith("file: ")}


def shortened(words: list[str], model: Path, out: Path, groups: Path) -> list[str]:
    """The arguments of a ``cai`` command for a tiny model, which writes into ``out``."""
    program, *arguments = words
    assert program == "cai"
    arguments = [str(model) if word == "embedded" else word.replace("=FOLDER_OR_ID", f"={model}") for word in arguments]
    tiny = [o for o in tiny_overrides(model, out) if not o.startswith("constitution=")]
    if arguments[0] in {"run", "plan"}:
        small = [re.sub(r"\b(ppo|rloo)\b", r"tiny_\1", w) if w.startswith("align=") else w for w in arguments[1:]]
        own = [] if "--config-dir" in small else ["--config-dir", str(groups)]
        # sampled pairs without contrasts, and a labeller that babbles
        judged = ["preferences.num_contrasts=0", "preferences.labeller.min_answer_mass=0"]
        return [arguments[0], *own, *tiny, *small, *(judged if "recipe=feedback" in small else [])]
    if arguments[0] in {"evaluate", "redteam"}:
        return arguments + [o for o in tiny if o.startswith(("evaluate.", "tracking", "output_dir"))]
    if arguments[0] == "explain":
        return arguments + [o for o in tiny if o.startswith(("tracking", "output_dir"))]
    if arguments[:2] == ["constitution", "stress"]:
        few = ["preferences.labeller.min_answer_mass=0", "--num-pairs=2", "--num-requests=4"]
        return [*arguments, *(o for o in tiny if o.startswith(("model.", "data.", "launch.", "output_dir"))), *few]
    if arguments[0] == "chat":
        return [*arguments, "--max-reply-tokens", "4"]
    return arguments


def read(words: list[str]) -> None:
    """Parse a ``cai`` command and compose its overrides.

    Raises:
        ConfigError, SystemExit: there is no such command, option or setting.
    """
    root = parser()
    args, extra = root.parse_known_args(words[1:])
    _refuse_unknown(args, extra, flags(root))
    overrides = [re.sub(r"=URL$", "=http://host:8000/v1", word) for word in getattr(args, "overrides", [])]
    for job in sweep(overrides) if getattr(args, "multirun", False) else [overrides]:
        if job:
            compose_config(job, args.config_dir)
