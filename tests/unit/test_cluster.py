"""The templates for clusters are well-formed, and their commands are ones that ``cai`` accepts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.chain.compose import compose_config

FOLDER = Path(__file__).parents[2] / "scripts" / "cluster"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def overrides(command: str) -> list[str]:
    """Those of a shell command; what the cluster fills in is machine 1 of 2."""
    words = re.sub(r"\$\(.*?\)", "host", command.replace('"', "").replace("'", "")).split()
    filled = {"num_processes": "8", "num_machines": "2", "machine_rank": "1"}
    found = [word for word in words if re.fullmatch(r"[\w.]+=\S+", word)]
    return [
        f"{key}={filled.get(key.rpartition('.')[2], 'x') if '$' in value else value}"
        for key, _, value in (word.partition("=") for word in found)
    ]


def test_the_slurm_template(tmp_path: Path):
    script = FOLDER / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "#SBATCH --ntasks-per-node=1" in text and "srun --kill-on-bad-exit=1" in text
    command = text[text.index("run launch=nodes") :]
    launch = compose_config(overrides(command)).launch
    assert (launch.num_machines, launch.machine_rank, launch.world_size) == (2, 1, 16)


def test_the_jobset_template(monkeypatch: pytest.MonkeyPatch):
    jobset = load("jobset.yaml")
    assert jobset["kind"] == "JobSet" and jobset["apiVersion"].startswith("jobset.x-k8s.io/")
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value", "1") for entry in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert int(given["WORLD_SIZE"]) == spec["parallelism"] == spec["completions"]
    assert given["MASTER_ADDR"] == f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}"
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    launch = compose_config(container["command"][2:]).launch
    assert (launch.num_machines, launch.machine_rank, launch.main_process_ip) == (2, 1, given["MASTER_ADDR"])
    assert str(launch.num_processes) == container["resources"]["limits"]["nvidia.com/gpu"]


def test_the_skypilot_template():
    task = load("skypilot.yaml")
    assert task["num_nodes"] == 2 and {"name", "resources", "setup", "run"} <= task.keys()
    launch = compose_config(overrides(task["run"].partition("cai run")[2])).launch
    assert (launch.num_machines, launch.machine_rank, launch.sharding) == (2, 1, "fsdp2")
