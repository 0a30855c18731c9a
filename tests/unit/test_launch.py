"""How ranks are started: presets, files of Accelerate, and what is refused before a run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from pipeline.chain import preflight as checks
from pipeline.chain.compose import compose_config
from pipeline.chain.launch import ACCELERATE, launch_command
from pipeline.core import accelerate_file
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError


def given(folder: Path, **fields: object) -> str:
    """A file as ``accelerate config`` writes it."""
    path = folder / "given.yaml"
    common = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "mixed_precision": "bf16"}
    ClusterConfig(**{**common, "use_cpu": False, "debug": False, "num_processes": 4, **fields}).to_yaml_file(str(path))
    return str(path)


def as_launched(launch: LaunchConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment that Accelerate's launcher gives to the ranks on GPUs, from the command that starts them."""
    accelerate_file.write(launch, folder / ACCELERATE)
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        command = launch_command(launch, folder)
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    parsed = launch_command_parser().parse_args([*command[3:], "-m", "module"])
    arguments, *_ = _validate_launch_command(parsed)
    assert arguments.num_processes == launch.world_size
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(accelerate_file.ZERO3)  # as the launcher does
        return dict(prepare_deepspeed_cmd_env(arguments)[1])
    return dict(prepare_multi_gpu_env(arguments))


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("ddp", {"ACCELERATE_MIXED_PRECISION": "no"}),
        ("fsdp2", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}),
        ("zero3", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}),
    ],
)
def test_accelerate_reads_what_a_preset_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, expected: dict[str, str]
):
    launch = compose_config([f"launch={preset}"]).launch
    found = as_launched(launch, tmp_path, monkeypatch)
    assert expected.items() <= found.items()
    assert ("ACCELERATE_USE_FSDP" in found) == (preset == "fsdp2")
    again = LaunchConfig(accelerate_config=str(tmp_path / ACCELERATE))
    assert (again.num_processes, again.sharding) == (launch.num_processes, launch.sharding)


def test_a_given_file_decides_how_ranks_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = given(
        tmp_path,
        distributed_type="FSDP",
        num_machines=2,
        machine_rank=1,
        main_process_ip="10.0.0.1",
        main_process_port=29999,
        fsdp_config={"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"},
    )
    launch = compose_config([f"launch.accelerate_config={path}"]).launch
    assert (launch.num_processes, launch.world_size, launch.machine_rank, launch.sharding) == (2, 4, 1, "fsdp2")
    found = as_launched(launch, tmp_path, monkeypatch)
    assert found["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    assert found["ACCELERATE_MIXED_PRECISION"] == "no", "model.precision decides"


def test_machines_may_share_one_file(tmp_path: Path):
    path = given(tmp_path, num_machines=2, machine_rank=0, main_process_ip="10.0.0.1")
    found = compose_config([f"launch.accelerate_config={path}", "launch.machine_rank=1"]).launch
    assert (found.machine_rank, found.world_size) == (1, 4)


def test_a_file_for_cpus_starts_ranks_on_gpus_where_there_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    launch = LaunchConfig(accelerate_config=given(tmp_path, distributed_type="MULTI_CPU", use_cpu=True))
    as_launched(launch, tmp_path, monkeypatch)
    assert load_config_from_file(str(tmp_path / ACCELERATE)).distributed_type == "MULTI_GPU"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"distributed_type": "MEGATRON_LM"}, "with distributed_type MEGATRON_LM; use one of"),
        ({"num_processes": 3, "num_machines": 2}, "with num_processes 3 on 2 machines"),
        ({"num_processes": 3, "num_machines": 0}, "with num_processes 3 on 0 machines"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}, "set fsdp_version: 2"),
        (
            {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2, "fsdp_activation_checkpointing": True}},
            "set launch.gradient_checkpointing=true",
        ),
        ({"parallelism_config": {"parallelism_config_tp_size": 2}}, "with a parallelism_config"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "with a dynamo_backend"),
        ({"num_machines": 2}, "launch.main_process_ip must be set"),
    ],
)
def test_a_file_that_asks_too_much_is_one_sentence(tmp_path: Path, fields: dict[str, object], expected: str):
    with pytest.raises(ConfigError, match=expected):
        compose_config([f"launch.accelerate_config={given(tmp_path, **fields)}"])


@pytest.mark.parametrize("text", ["", "- a list", "distributed_type: [", "nonsense: 1", "distributed_type: X"])
def test_a_file_that_can_t_be_read_is_one_sentence(tmp_path: Path, text: str):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"launch.accelerate_config is .*, which Accelerate can't read \(.+\); write"):
        compose_config([f"launch.accelerate_config={path}"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["launch.accelerate_config=none.yaml"], "which is not a file; write one with `accelerate config"),
        (["launch.sharding=fsdp2"], "there is one process; set launch.num_processes"),
        (["launch.num_machines=2"], "launch.main_process_ip must be set"),
        (["launch.machine_rank=1"], "count the machines from 0 to 0"),
    ],
)
def test_settings_that_don_t_fit_are_one_sentence(overrides: list[str], expected: str):
    with pytest.raises(ConfigError, match=expected):
        compose_config(overrides)


@pytest.mark.parametrize(
    ("gpu", "overrides", "expected"),
    [
        (False, ["launch=ddp", "launch.num_processes=4096", "sft.global_batch_size=4096"], "cores; use at most"),
        (False, ["launch=fsdp2"], "there is no GPU, and Accelerate divides weights only among GPUs"),
        (True, ["launch=fsdp2", "model.tuning=qlora"], "in 4 bits can't be divided"),
        (True, ["launch=zero3"], "DeepSpeed is not installed"),
    ],
)
def test_what_the_hardware_can_t_do_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, overrides: list[str], expected: str
):
    more = [f"{stage}.global_batch_size=4096" for stage in ("reward", "align")]
    config = compose_config([*more, "sft.global_batch_size=4096", *overrides])
    monkeypatch.setattr(checks, "can_shard", lambda: gpu)
    with pytest.raises(ConfigError, match=expected):
        checks._check_hardware(config) if not gpu else checks._check_sharding(config)


def test_qlora_without_bitsandbytes_names_the_package(monkeypatch: pytest.MonkeyPatch):
    """Not this project's own name, which may be another package on an index."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="bitsandbytes is not installed; pip install bitsandbytes"):
        checks._check_hardware(compose_config(["model.tuning=qlora"]))
