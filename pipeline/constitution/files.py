"""Constitution files: find, read and write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from pipeline.constitution.json_schema import MAY_BE_PATHS
from pipeline.constitution.schema import Constitution
from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.core.yaml_files import Problem, load_yaml
from pipeline.records import Message, dialogue_key

_SECTIONS = ("principles", "worked_examples", "good_answers", "contrasts")


def find_constitution(name_or_path: str) -> Path:
    """The file of a constitution, by path or by the name of a shipped one. Raises ConfigError for another name."""
    path = Path(name_or_path).expanduser()
    shipped = shipped_constitutions()
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return path
    if name_or_path in shipped:
        return shipped[name_or_path]
    raise ConfigError(f"constitution.path: no constitution {name_or_path!r}{did_you_mean(name_or_path, shipped)}.")


def shipped_constitutions() -> dict[str, Path]:
    here = Path(__file__).parents[1]
    folder = next(folder for folder in (here / "constitutions", here.parent / "constitutions") if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_constitution(path: Path) -> Constitution:
    """Read and validate a constitution, including its file of contrasts, if any.

    Raises:
        ConfigError: one sentence with the file, line, column, field and remedy.
    """
    return load_yaml(
        path,
        Constitution,
        "a constitution",
        field="constitution.path",
        described_in="constitutions/README.md",
        may_name_files=MAY_BE_PATHS,
        check=_repeats,
    )


def _repeats(constitution: Constitution) -> Iterator[Problem]:
    """Repeated ids and requests. Ids must be unique to trace training rows; a request must have only one best reply."""
    ids: dict[str, str] = {}
    requests: dict[str, tuple[str, str]] = {}
    for section in _SECTIONS:
        for index, entry in enumerate(getattr(constitution, section)):
            field = f"{section}[{index}]"
            if (earlier := ids.setdefault(entry.id, field)) != field:
                yield (section, index, "id"), f"id {entry.id!r} is already that of {earlier}; give it another"
            for name in ("request", "twin"):
                if not hasattr(entry, name):
                    continue
                key = dialogue_key([Message(role="user", content=getattr(entry, name))])
                if (known := requests.setdefault(key, (field, name))) != (field, name):
                    yield (section, index, name), f"the {name} is the same as in {known[0]}; change or remove one"


def to_yaml(constitution: Constitution) -> str:
    data = constitution.model_dump(mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
