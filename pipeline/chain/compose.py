"""Turn Hydra overrides into checked configurations, and Hydra's errors into one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.chain.checkpoints import slug
from pipeline.chain.config import Config, to_config
from pipeline.core.errors import ConfigError, did_you_mean, first_line
from pipeline.core.settings import types_at
from pipeline.core.text import whole_characters
from pipeline.engines.models import EMBEDDED, short_name

DEFAULT_MODEL = "smollm2-135m"
"""The preset of ``model`` by default, which is for the embedded model."""
_MOVED = {
    "align.ppo": "align, for example align.max_kl instead of align.ppo.max_kl",
    "align.rollout.num_replies": "align.num_replies",
    "preferences.num_principles": "preferences.labeller.num_principles",
    "preferences.num_examples": "preferences.labeller.num_examples",
    "preferences.logit_scale": "preferences.labeller.logit_scale",
    "preferences.min_answer_mass": "preferences.labeller.min_answer_mass",
    "preferences.labeller": "preferences.labeller.kind",
    "align.judge": "align.judge.kind",
    "report": "nothing: report.num_transcripts had no effect",
}  # settings of version 0.1.0


def configs_folder() -> Path:
    here = Path(__file__).parents[1]
    return next(folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir())


def group_options() -> dict[str, list[str]]:
    """Group (a folder of ``configs/``) → the options that can be chosen from it. Those that begin with "_" can't."""
    options: dict[str, list[str]] = {}
    for path in sorted(configs_folder().glob("*/**/*.yaml")):
        if not path.stem.startswith("_"):
            options.setdefault(path.parent.relative_to(configs_folder()).as_posix(), []).append(path.stem)
    return options


def compose_raw(overrides: Sequence[str], config_dir: Path | None = None) -> dict[str, Any]:
    """Compose without validation. ``config_dir`` adds a folder with the user's groups."""
    if config_dir and not config_dir.is_dir():
        raise ConfigError(f"--config-dir: there is no folder {config_dir}; give an existing one.")
    search = [f"hydra.searchpath=[{_quoted(f'file://{config_dir.resolve()}')}]"] if config_dir else []
    overrides = [_readable(override) for override in overrides]
    try:
        composed = _compose([*(_as_addition(override, config_dir) for override in overrides), *search])
        OmegaConf.resolve(composed)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra also raises plain ValueErrors
        raise ConfigError(_explain(error, overrides)) from None
    except yaml.YAMLError as error:
        where = f" in {config_dir}" if config_dir else ""
        reason = " ".join(str(error).split())
        raise ConfigError(f"a preset{where} is not valid YAML ({reason}); fix the file.") from None
    if missing := OmegaConf.missing_keys(composed):
        raise ConfigError(f"{min(missing)} must be set; add {min(missing)}=VALUE.")
    plain = OmegaConf.to_container(composed)
    assert isinstance(plain, dict)
    _refuse_no_characters(plain, ())
    _name_another_model(plain.get("model"), {override.lstrip("+").partition("=")[0] for override in overrides})
    return {str(key): value for key, value in plain.items()}


def _name_another_model(model: Any, given: set[str]) -> None:
    """``model.path=X`` without a preset of X: the name and the layers of the default preset are not those of X."""
    if not isinstance(model, dict) or model.get("name") != DEFAULT_MODEL or model.get("path") in (EMBEDDED, None):
        return
    if "model.name" not in given:
        model["name"] = slug(short_name(str(model["path"])).rpartition("/")[2]) or DEFAULT_MODEL
    if "model.lora.upper_share" not in given and isinstance(model.get("lora"), dict):
        model["lora"].pop("upper_share", None)


def _refuse_no_characters(value: Any, path: tuple[str, ...]) -> None:
    """Refuse half a character and NUL, which a file of presets can have as an escape, before they are written."""
    if isinstance(value, str) and whole_characters(value) != value:
        raise ConfigError(f"{'.'.join(path)} is {value!r}, with half a character or NUL in it; write whole characters.")
    for name, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _refuse_no_characters(part, (*path, str(name)))


def _compose(overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(configs_folder().resolve()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def _as_addition(override: str, config_dir: Path | None) -> str:
    """Add ``++`` to ``key=value``, so that Hydra accepts fields that no YAML file sets. The settings classes refuse
    unknown fields later. Groups (``align=ppo``) stay unchanged."""
    key, equals, _ = override.partition("=")
    if not equals or not re.fullmatch(r"\w[\w.]*", key):
        return override
    folders = [configs_folder(), *([config_dir] if config_dir else [])]
    return override if any((folder / key).is_dir() for folder in folders) else f"++{override}"


def compose_config(overrides: Sequence[str], config_dir: Path | None = None) -> Config:
    """Compose and validate.

    Raises:
        ConfigError: for a typo (with the nearest known key), a wrong type, or a contradiction.
    """
    try:
        return to_config(compose_raw(overrides, config_dir))
    except ConfigError as error:
        for old, new in _MOVED.items():
            text = str(error)
            if text.startswith(f"{old}: unknown") or (text.startswith(f"{old} is ") and "must be a section" in text):
                raise ConfigError(f"{old} has moved: use {new} (see docs/configuration.md).") from None
        raise


def _readable(override: str) -> str:
    """An override as Hydra's grammar reads it.

    A value that this grammar can't read is put in quotes. So is the value of a text field that it would read as
    something else: ``model.revision=4e57912`` is no number, and ``name=true`` is a name.

    Raises:
        ConfigError: it is not an override, or has a mistake that quotes don't mend.
    """
    key, equals, value = override.partition("=")
    if not equals or not key.strip("+~ "):
        raise ConfigError(f"{override!r} is not an override; write key=value.")
    if not key.isascii():
        raise ConfigError(f"{key!r} is not a setting; `cai config` lists all of them.")
    types = list(types_at(Config, key.lstrip("+").split("."))) if re.fullmatch(r"\+*\w[\w.]*", key, re.ASCII) else []
    is_text = any(kind in (str, str | None) for kind in types)
    if (parsed := _parsed(override)) is not None and not (is_text and _is_misread(parsed.value(), types)):
        return override
    parts = [value] if re.search(r"['\"\[{]", value) else value.split(",")  # commas separate the values of a sweep
    if not all(part.strip() for part in parts):
        raise ConfigError(f"{override!r} has a comma without a value beside it; remove the comma.")
    if is_text or not re.match(r"\s*[\[{]", value):
        readable = f"{key}={','.join(_as_text(part, types) for part in parts)}"
        if _parsed(readable) is not None:
            return readable
    raise ConfigError(
        f"{override!r} can't be read; write key=value, and quote a value with special characters: \"key='value'\"."
    )


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _is_misread(value: Any, types: Sequence[Any]) -> bool:
    """Whether Hydra reads the value of a text field as something other than text."""
    if isinstance(value, ChoiceSweep) and value.simple_form:
        return any(_is_misread(option, types) for option in value.list)
    if value is None:
        return (str | None) not in types
    return not isinstance(value, str | QuotedString | Sweep)


def _as_text(value: str, types: Sequence[Any]) -> str:
    """One value in quotes, unless Hydra reads it as text without them."""
    parsed = _parsed(f"key={value}")
    return _quoted(value.strip()) if parsed is None or _is_misread(parsed.value(), types) else value


def _quoted(text: str) -> str:
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Expand ``a=1,2 b=3`` into one list of overrides per job, with Hydra's grammar and order."""
    try:
        parsed = OverridesParser.create().parse_overrides([_readable(override) for override in overrides])
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ConfigError(f"override: {first_line(error)}.") from None
    return [list(job) for batch in batches for job in batch]


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """A sentence with the wrong override and the nearest existing key or option."""
    message = first_line(error).replace("'++", "'")  # what _as_addition adds
    if message.startswith("Error merging override") and "${" in message:
        what = message.removeprefix("Error merging override ").removeprefix("++")
        return (
            f"{what} can't be read; ${{KEY}} stands for the value of another setting, so close it or leave out the $."
        )
    if "Ambiguous value" in message:
        return (
            f"{message.rstrip('.')}: for a sweep over several values use `cai run -m`; quote a text with a comma: "
            "\"key='a,b'\"."
        )
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = configs_folder() / key
        if group.is_dir() and "must be a string" in message:
            return f"{key}={value}: {key} is a group; give one of its options."
        if group.is_dir() and not (group / f"{value}.yaml").exists() and "Could not find" in message and key in message:
            return f"{key}={value}: there is no such option{did_you_mean(value, group_options().get(key, []))}."
    return f"{message}."
