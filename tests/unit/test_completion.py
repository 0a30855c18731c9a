"""Bash completes commands, options, runs and overrides with the script of ``cai completion``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.chain.compose import configs_folder, group_options
from pipeline.chain.config import Config
from pipeline.cli.completion import _keys, script
from pipeline.cli.parser import parser


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "cai.bash"
    path.write_text(script(parser(), "bash"), encoding="utf-8")
    return path


def complete(bash_script: Path, folder: Path, *words: str) -> set[str]:
    """What bash offers for the last word. ``words`` are as bash cuts them: "=" is a word."""
    line = (
        f'source "{bash_script}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _cai; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    shell = ["bash", "--norc", "-c", line, "bash", "cai", *words]
    return set(subprocess.run(shell, cwd=folder, capture_output=True, text=True, check=True).stdout.split())


def test_commands_options_and_choices(bash_script: Path, tmp_path: Path):
    assert {"run", "evaluate", "chat", "completion"} <= complete(bash_script, tmp_path, "")
    assert complete(bash_script, tmp_path, "com") == {"compare", "completion"}
    assert complete(bash_script, tmp_path, "constitution", "s") == {"show", "schema", "stress"}
    assert complete(bash_script, tmp_path, "run", "--") == {"--help", "--multirun", "--cfg", "--config-dir"}
    assert complete(bash_script, tmp_path, "export", "--to", "") == {"merged", "adapter", "gguf", "ollama", "vllm"}
    assert complete(bash_script, tmp_path, "completion", "") == {"bash", "zsh"}
    assert {"align", "tracking"} <= complete(bash_script, tmp_path, "config", "")


def test_groups_settings_and_their_values(bash_script: Path, tmp_path: Path):
    assert complete(bash_script, tmp_path, "run", "const") >= {"constitution=", "constitution.path="}
    assert complete(bash_script, tmp_path, "run", "constitution", "=") == {"default", "minimal", "plain_speech"}
    assert complete(bash_script, tmp_path, "run", "seed", "=", "1", "model", "=", "qwen2.5-1") == {"qwen2.5-1.5b"}
    assert complete(bash_script, tmp_path, "run", "--cfg", "align", "=", "r") == {"rloo"}
    assert complete(bash_script, tmp_path, "run", "-m", "align", "=", "ppo,d") == {
        "ppo,decide",
        "ppo,dpo",
        "ppo,dpo_whole",
    }
    assert complete(bash_script, tmp_path, "evaluate", "embedded", "evaluate/judge", "=", "pat") == {"patterns"}
    assert complete(bash_script, tmp_path, "run", "tracking.mode", "=", "o") == {"online", "offline"}
    assert complete(bash_script, tmp_path, "run", "preferences.labeller.kind", "=", "c") == {"channel", "cot"}
    assert complete(bash_script, tmp_path, "run", "constitution=pl") == {"constitution=plain_speech"}, (
        "= is no word break"
    )


def test_runs_and_models(bash_script: Path, tmp_path: Path):
    for name in ("outputs/runs/mine", "outputs/runs/latest", "elsewhere/runs/other"):
        (tmp_path / name).mkdir(parents=True)
    assert complete(bash_script, tmp_path, "report", "") == {"mine", "latest", "outputs/", "elsewhere/"}
    assert complete(bash_script, tmp_path, "why", "--output-dir", "elsewhere", "o") == {"other", "outputs/"}
    assert complete(bash_script, tmp_path, "compare", "mine", "l") == {"latest"}
    assert complete(bash_script, tmp_path, "chat", "mine", "--against", "") >= {"base", "embedded", "latest"}
    assert complete(bash_script, tmp_path, "run", "--config-dir", "o") == {"outputs"}


def test_every_file_of_the_groups_can_be_chosen_and_every_setting_exists():
    options = group_options()
    assert set(options["preferences"]) == {p.stem for p in configs_folder().glob("preferences/[a-z]*.yaml")}
    assert "judge" not in options and "patterns" in options["evaluate/judge"]
    assert {key.partition(".")[0].partition("/")[0] for key in _keys()} <= {*Config.model_fields, *options}


def test_the_command_loads_no_torch_and_zsh_has_the_overrides_too():
    code = (
        "import sys; from pipeline.cli import main; main(['completion', 'zsh']); "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("#compdef cai") and "constitution=plain_speech" in done.stdout
    assert r'"*:group\=option or key\=value:_cai_overrides"' in done.stdout
    assert '"(*)' not in done.stdout, "zsh would complete only the first override"
