"""The file that ``accelerate launch`` reads: made from our settings, or written by ``accelerate config``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate.commands.config.config_args import ClusterConfig

    from pipeline.core.distributed import LaunchConfig

SHARDING = {"NO": "none", "MULTI_GPU": "none", "MULTI_CPU": "none", "FSDP": "fsdp2", "DEEPSPEED": "zero3"}
"""Accelerate's ``distributed_type`` → ours."""
FSDP2 = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_reshard_after_forward": True,
    "fsdp_offload_params": False,
    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    "fsdp_cpu_ram_efficient_loading": False,
    "fsdp_activation_checkpointing": False,
}
ZERO3 = {
    "zero_stage": 3,
    "gradient_accumulation_steps": "auto",  # the trainer's numbers
    "gradient_clipping": "auto",
    "offload_optimizer_device": "none",
    "offload_param_device": "none",
    "zero3_init_flag": False,  # the model is loaded before the trainer is made
    "zero3_save_16bit_model": True,
}


def read(path: str) -> ClusterConfig:
    """Read and check a file.

    Raises:
        ValueError: it can't be read, or it asks for what the training stages can't do; ``{here}`` is the section.
    """
    import yaml
    from accelerate.commands.config.config_args import load_config_from_file

    file = Path(path).expanduser()
    field = f"{{here}}.accelerate_config is {path!r}"
    if not file.is_file():
        raise ValueError(f"{field}, which is not a file; write one with `accelerate config --config_file {path}`")
    try:
        config: ClusterConfig = load_config_from_file(str(file))
        problem = _problem(config)
    except (ValueError, TypeError, AttributeError, KeyError, OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"{field}, which Accelerate can't read ({reason}); write one with `accelerate config --config_file {path}`"
        ) from None
    if problem:
        raise ValueError(f"{field}, {problem}")
    return config


def _problem(config: Any) -> str:
    """What the training stages can't do; an empty string if all is well."""
    kind = getattr(config.distributed_type, "value", config.distributed_type)
    num_processes, num_machines = config.num_processes, config.num_machines
    if kind not in SHARDING:
        return f"with distributed_type {kind}; use one of {', '.join(SHARDING)}"
    if num_processes < 1 or num_machines < 1 or num_processes % num_machines:
        return f"with num_processes {num_processes} on {num_machines} machines; give a multiple of the machines"
    if kind == "FSDP" and int(config.fsdp_config.get("fsdp_version", 1)) != 2:
        return "with the old FSDP; set fsdp_version: 2 in its fsdp_config"
    if config.fsdp_config.get("fsdp_activation_checkpointing"):
        return "with fsdp_activation_checkpointing; leave it out and set launch.gradient_checkpointing=true"
    if any(
        isinstance(size, int) and size > 1 and "dp_" not in name for name, size in config.parallelism_config.items()
    ):
        return "with a parallelism_config, but the stages only divide their rows; leave it out"
    if config.dynamo_config.get("dynamo_backend", "NO") not in ("NO", "no"):
        return "with a dynamo_backend, but the models can't be compiled here; leave dynamo_config out"
    return ""


def launch_settings(path: str) -> dict[str, Any]:
    """The fields of ``LaunchConfig`` that a file sets.

    Raises:
        ValueError: as in ``read``.
    """
    config = read(path)
    kind = getattr(config.distributed_type, "value", config.distributed_type)
    return {
        "num_processes": config.num_processes // config.num_machines,
        "num_machines": config.num_machines,
        "machine_rank": int(config.machine_rank),
        "main_process_ip": config.main_process_ip,
        **({"main_process_port": int(config.main_process_port)} if config.main_process_port else {}),
        "sharding": SHARDING[kind],
    }


def write(launch: LaunchConfig, path: Path) -> None:
    """Write the file for ``accelerate launch``. A file that the user gave is copied."""
    from accelerate.commands.config.config_args import ClusterConfig

    if launch.accelerate_config:
        config = read(launch.accelerate_config)
        if launch.sharding == "none":  # it may have been written for CPUs; a GPU is used where there is one
            config.distributed_type, config.use_cpu = "MULTI_GPU", False
    else:
        config = ClusterConfig(
            compute_environment="LOCAL_MACHINE",
            distributed_type={"none": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}[launch.sharding],
            mixed_precision="no",
            use_cpu=False,
            debug=False,
            num_processes=launch.world_size,
            num_machines=launch.num_machines,
            machine_rank=launch.machine_rank,
            main_process_ip=launch.main_process_ip,
            main_process_port=launch.main_process_port if launch.num_machines > 1 else 0,  # 0: a free one
            same_network=True,
            fsdp_config=dict(FSDP2) if launch.sharding == "fsdp2" else None,
            deepspeed_config=dict(ZERO3) if launch.sharding == "zero3" else None,
        )
    config.to_yaml_file(str(path))
