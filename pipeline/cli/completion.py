"""``cai completion``: a script with which a shell completes commands, options, runs and settings.

shtab writes the script from the parser. Added here: what the words after an option or a command are, and functions that
complete runs and overrides. The script holds all names, so pressing Tab starts no Python.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

SHELLS = ("bash", "zsh")

_RUNS = {"bash": "_cai_runs", "zsh": "_cai_runs"}
_MODELS = {"bash": "_cai_models", "zsh": "_cai_models"}
_OVERRIDES = {"bash": "_cai_overrides", "zsh": "_cai_overrides"}
_OF_ARGUMENT = {
    "run": _RUNS,
    "runs": _RUNS,
    "model": _MODELS,
    "checkpoint": _MODELS,
    "base": _MODELS,
    "against": _MODELS,
    "overrides": _OVERRIDES,
}
_FOLDERS = {"config_dir", "output_dir", "keep", "bundle"}
_FILES = {"file", "before", "after", "guidelines", "constitution", "text", "requests"}

# Bash begins a new word at "=", unless "=" was taken out of COMP_WORDBREAKS. It replaces only the last word.
_BASH = r"""
_cai_keys='{keys}'
_cai_values='{values}'

_cai_runs() {{
  local folder=outputs i
  for ((i = 1; i < COMP_CWORD; i++)); do
    [[ ${{COMP_WORDS[i]}} == --output-dir ]] || continue
    folder=${{COMP_WORDS[i+1]}}
    [[ $folder == "=" ]] && folder=${{COMP_WORDS[i+2]}}
    folder=${{folder/#\~/$HOME}}
  done
  compgen -W "$(ls "$folder/runs" 2>/dev/null)" -- "$1"
  compgen -d -S / -- "$1"
}}

_cai_models() {{
  compgen -W "embedded" -- "$1"
  [[ ${{COMP_WORDS[COMP_CWORD-1]}} == --against ]] && compgen -W "base" -- "$1"
  _cai_runs "$1"
}}

_cai_overrides() {{
  local key="" done="" word
  [[ ${{COMP_WORDS[COMP_CWORD-1]}} == "=" ]] && key=${{COMP_WORDS[COMP_CWORD-2]}}
  [[ $1 == "=" ]] && key=${{COMP_WORDS[COMP_CWORD-1]}}
  [[ $1 == *,* ]] && done=${{1%,*}},  # the values before the last comma of a sweep
  if [[ -n $key ]]; then
    word=${{1#=}}
    for word in $(compgen -W "$_cai_values" -- "$key=${{word##*,}}"); do echo "$done${{word#*=}}"; done
  elif [[ $1 == *=* ]]; then
    compgen -W "$_cai_values" -- "$1"
  else
    compgen -W "$_cai_keys" -- "$1"
  fi
}}
"""
# After "key=" and "folder/" no space is wanted.
_BASH_END = r"""
_cai() {
  _shtab_cai
  [[ ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace 2>/dev/null
  return 0
}
complete -o bashdefault -o default -F _cai cai
"""
_ZSH = r"""
_cai_keys='{keys}'
_cai_values='{values}'

_cai_runs() {{
  compadd -- ${{opt_args[--output-dir]:-outputs}}/runs/*(N:t)
  _files -/
}}

_cai_models() {{
  compadd -- embedded
  [[ $words[CURRENT-1] == --against ]] && compadd -- base
  _cai_runs
}}

_cai_overrides() {{
  local key
  if [[ $PREFIX != *=* ]]; then
    compadd -S '' -- ${{=_cai_keys}}
  else
    key=${{PREFIX%%=*}}
    compset -P '*[=,]'  # the values before the last comma of a sweep
    compadd -- ${{${{(M)${{=_cai_values}}:#$key=*}}#*=}} || _files
  fi
}}
"""


def completion(args: argparse.Namespace) -> int:
    from pipeline.cli.parser import parser

    print(script(parser(), args.shell), end="")
    return 0


def script(root: argparse.ArgumentParser, shell: str) -> str:
    """The script for a shell: ``bash`` or ``zsh``."""
    import shtab

    from pipeline.chain.reference import known_groups

    for action in _arguments(root):
        if action.dest == "group":
            action.choices = known_groups()
        elif action.dest in _OF_ARGUMENT:
            action.complete = _OF_ARGUMENT[action.dest]  # type: ignore[attr-defined]
        elif action.dest in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.dest in _FILES or action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    words = {"keys": " ".join(f"{key}=" for key in _keys()), "values": " ".join(_values())}
    if shell == "bash":
        return str(shtab.complete(root, shell, preamble=_BASH.format(**words))) + "\n" + _BASH_END
    text = str(shtab.complete(root, shell, preamble=_ZSH.format(**words)))
    return re.sub(r'"\(\*\)::?', '"*:', text)  # shtab's "(*)" completes only the first of several words


def _arguments(root: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument of every command."""
    for action in root._actions:  # argparse has no public way to them
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _arguments(command)
        else:
            yield action


def _keys() -> list[str]:
    """What an override can set: the groups of ``configs/``, and every setting."""
    from pipeline.chain.compose import group_options
    from pipeline.chain.reference import settings_of

    return sorted({setting["key"] for setting in settings_of()} | group_options().keys())


def _values() -> list[str]:
    """``key=value`` of every group, of the settings that have few values, and of those that choose one of several
    classes, such as a labeller."""
    from pipeline.chain.compose import group_options
    from pipeline.chain.reference import settings_of

    found = {f"{group}={option}" for group, options in group_options().items() for option in options}
    for setting in settings_of():
        kind = setting["type"].removesuffix(" or null")
        if setting["choice"] and kind == setting["default"]:
            found.add(f"{setting['key']}={kind}")
        elif " | " in kind and not kind.startswith("list of "):
            found |= {f"{setting['key']}={value}" for value in kind.split(" | ")}
    return sorted(found)
