import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, RUN_CONFIGS
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.tiers import ACCELERATORS
from pipelines.config import RunConfig
from pipelines.config_file import load_config
from pipelines.tier import Tier

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = ["cluster.yaml", "cluster-gcp.yaml"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def as_ray_reads(name: str) -> dict[str, Any]:
    """With everything that Ray fills in where the file is silent."""
    return prepare_config(yaml.safe_load((ROOT / name).read_text()))


@pytest.fixture(params=FILES)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    return as_ray_reads(request.param)


def is_spot(node: dict[str, Any]) -> bool:
    return "spot" in str(node["node_config"]).lower()


def start_of(cluster: dict[str, Any], role: str) -> list[str]:
    (start,) = [c for c in cluster[f"{role}_start_ray_commands"] if "ray start" in c]
    return shlex.split(start)


def test_ray_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    validate_config(cluster)


def test_workers_come_with_the_work_and_leave_after_it(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert all(node["min_workers"] == 0 for node in types.values())
    assert 0 < sum(node["max_workers"] for node in types.values()) <= cluster["max_workers"]
    assert 0 < cluster["idle_timeout_minutes"] <= 10
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_the_head_survives_and_takes_no_gpu_work(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert not is_spot(head)
    assert head["max_workers"] == 0
    assert not head["resources"].get("GPU")
    assert "tier" not in head["labels"]
    assert "--num-gpus=0" in start_of(cluster, "head")


def test_every_gpu_machine_is_spot_and_says_whose_it_is(cluster: dict[str, Any]) -> None:
    gpus = [n for n in cluster["available_node_types"].values() if n["resources"].get("GPU")]
    assert gpus
    for node in gpus:
        assert is_spot(node)
        (kind,) = [name for name in node["resources"] if name.startswith("accelerator_type:")]
        assert kind.removeprefix("accelerator_type:") in ACCELERATORS
    labels = [node["labels"] for node in cluster["available_node_types"].values()]
    allowed = Tier.model_fields["placement"].annotation.__args__
    assert all(label["placement"] in allowed for label in labels)


@pytest.mark.parametrize("name", FILES)
def test_a_run_made_for_the_cluster_finds_a_machine_for_each_tier(name: str) -> None:
    types = as_ray_reads(name)["available_node_types"].values()
    config = load_config(ROOT / "configs/cluster.yaml", {})
    assert isinstance(config, RunConfig)
    for tier in config.tiers:
        assert tier.labels
        fitting = [
            node
            for node in types
            if tier.labels.items() <= node["labels"].items()
            and node["resources"].get("GPU", 0) >= tier.num_gpus
            and node["resources"]["CPU"] >= tier.num_cpus
        ]
        assert fitting, f"{name}: no machine for tier {tier.name}"
        assert tier.replica_range.max <= sum(node["max_workers"] for node in fitting)


def test_every_label_that_a_shipped_run_asks_for_is_there(cluster: dict[str, Any]) -> None:
    known = [node["labels"] for node in cluster["available_node_types"].values()]
    for path in RUN_CONFIGS:
        for tier in load_config(path, {}).tiers:
            assert not tier.labels or any(tier.labels.items() <= k.items() for k in known), path


def test_machines_come_for_their_tier_and_go_when_it_is_idle(tmp_path: Path) -> None:
    """The file's own machines, limits and labels, with Ray's stand-in for a cloud."""
    told = tmp_path / "told"
    alone = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    subprocess.run(
        [sys.executable, "tests/growing_cluster.py", "cluster.yaml", str(told)],
        env={**alone, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
        cwd=ROOT,
        check=True,
        timeout=240,
    )
    seen = json.loads(told.read_text())
    assert (seen["before"], seen["after"]) == (1, 1), "the head alone"
    for tier in load_config(ROOT / "configs/cluster.yaml", {}).tiers:
        assert tier.labels.items() <= seen["tiers"][tier.name].items()


def test_nothing_is_open_to_the_internet(cluster: dict[str, Any]) -> None:
    assert "0.0.0.0" not in str(cluster)
    assert "--dashboard-host=127.0.0.1" in start_of(cluster, "head")
    # Ray's own security group, or a network that it finds, lets everybody try SSH.
    assert "security_group" not in cluster["provider"]
    own = "SecurityGroupIds" if cluster["provider"]["type"] == "aws" else "networkInterfaces"
    assert all(node["node_config"][own] for node in cluster["available_node_types"].values())


def test_commanding_the_cluster_takes_its_token(cluster: dict[str, Any]) -> None:
    assert "--env=RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for role in ("head", "worker"):
        assert any("chmod 600 ~/.ray/auth_token" in c for c in cluster[f"{role}_setup_commands"])


def test_every_node_runs_the_image_of_this_version_and_installs_nothing(
    cluster: dict[str, Any],
) -> None:
    _, _, tag = cluster["docker"]["image"].rpartition(":")
    assert tag == PROJECT["project"]["version"]
    commands = [c for key in cluster if key.endswith("_commands") for c in cluster[key]]
    assert not [c for c in commands if re.search(r"pip|whl|curl|wget|apt|conda", c)]


def test_the_image_is_pinned_and_is_not_root() -> None:
    (base,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1] != "root"
    assert not re.search(r"^ADD|curl|wget|nightly|\.whl|EXPOSE", DOCKERFILE, re.MULTILINE)
    installs = re.findall(r"pip install ([^&\n]+)", DOCKERFILE)
    assert len(installs) == 3
    # Torch names what it is made of; nothing else may bring in what is not pinned.
    assert ["--no-deps" in i for i in installs] == ["torch==" not in i for i in installs]


def test_only_code_goes_into_the_image() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    assert not [k for k in kept if fnmatch.fnmatch("auth_token", k) or fnmatch.fnmatch(".env", k)]


def test_an_installed_package_has_all_of_its_parts() -> None:
    """An image has no checkout to fall back on."""
    parts = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for name in ("pipelines", "actors", "jobs")
        for init in (ROOT / name).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == parts
