"""The ready files of `configs/schedule`, read by what will read them, where that can be."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT

from pipelines.config_file import load_config
from pipelines.path_template import check_templates

FOLDER = ROOT / "configs/schedule"
CALL = "nightmill nightly "
KUBERNETES = "1.37"
RAY_JOB_FIELDS = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "entrypoint",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
}


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def ray_jobs() -> list[dict[str, Any]]:
    return [read("rayjob.yaml")["spec"], read("raycronjob.yaml")["spec"]["jobTemplate"]]


def pod_specs() -> Iterator[dict[str, Any]]:
    yield read("cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for job in ray_jobs():
        cluster = job["rayClusterSpec"]
        yield cluster["headGroupSpec"]["template"]["spec"]
        yield from (group["template"]["spec"] for group in cluster["workerGroupSpecs"])


def assert_cron(schedule: str) -> None:
    """Five fields, each within its range; names and other extensions are not used here."""
    fields = schedule.split()
    assert len(fields) == 5
    for field, (low, high) in zip(
        fields, [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)], strict=True
    ):
        assert re.fullmatch(r"(\*|\d+(-\d+)?)(/\d+)?(,\d+(-\d+)?)*", field), field
        span = field.split("/")[0]
        assert all(low <= int(n) <= high for n in re.findall(r"\d+", span)), field


def test_the_configuration_is_valid() -> None:
    check_templates(load_config(FOLDER / "nightly.yaml"))


def test_the_crontab_is_one() -> None:
    lines = [
        line for line in (FOLDER / "crontab").read_text().splitlines() if line and line[0] != "#"
    ]
    assert lines[0] == "CRON_TZ=Europe/Berlin"
    assert_cron(" ".join(lines[1].split()[:5]))
    assert CALL in lines[1]
    assert "%" not in lines[1], "cron reads a percent sign as the end of the line"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """What the unit starts is not installed here, so another program stands for it."""
    for name in ("nightmill-nightly.service", "nightmill-nightly.timer"):
        text = (FOLDER / name).read_text()
        started = text.replace("/srv/nightmill/.venv/bin/nightmill", "/bin/true")
        (tmp_path / name).write_text(started.replace("User=nightmill", "User=root"))
    units = [str(path) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "nightmill-nightly" in line]
    assert ours == []
    (calendar,) = re.findall("OnCalendar=(.*)", (FOLDER / "nightmill-nightly.timer").read_text())
    subprocess.run(["systemd-analyze", "calendar", calendar], check=True, capture_output=True)


def test_kubernetes_takes_the_cron_job() -> None:
    job = read("cronjob.yaml")
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    assert_cron(job["spec"]["schedule"])
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    assert job["spec"]["timeZone"] == "Europe/Berlin"
    assert job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("spec", pod_specs())
def test_every_pod_is_valid_bounded_and_holds_no_secret(spec: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    mounted = {volume["name"] for volume in spec["volumes"]}
    for container in spec["containers"]:
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"]["cpu"]
        assert not container["image"].endswith((":latest", ":nightly"))
        assert {mount["name"] for mount in container["volumeMounts"]} <= mounted
        for variable in container["env"]:
            assert "secretKeyRef" in variable["valueFrom"]


def test_the_ray_jobs_are_the_same_and_use_fields_that_exist() -> None:
    once, scheduled = ray_jobs()
    assert once == scheduled
    assert set(once) <= RAY_JOB_FIELDS
    assert once["entrypoint"].startswith(CALL)
    assert once["shutdownAfterJobFinishes"] is True
    assert once["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    cron = read("raycronjob.yaml")
    assert set(cron["spec"]) == {"schedule", "jobTemplate"}
    assert_cron(cron["spec"]["schedule"])
    assert {cron["apiVersion"], read("rayjob.yaml")["apiVersion"]} == {"ray.io/v1"}


def test_the_airflow_file_calls_the_maintained_operator_once_at_a_time() -> None:
    tree = ast.parse((FOLDER / "airflow_nightly.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "airflow.providers.cncf.kubernetes.operators.pod" in imported
    calls = {
        ast.unparse(node.func): {k.arg: k.value for k in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    dag, task = calls["DAG"], calls["KubernetesPodOperator"]
    assert_cron(ast.literal_eval(dag["schedule"]))
    assert ast.literal_eval(dag["max_active_runs"]) == 1
    assert ast.literal_eval(dag["catchup"]) is False
    assert {"secrets", "container_resources", "on_finish_action"} <= set(task)
    words = [*ast.literal_eval(task["cmds"]), *ast.literal_eval(task["arguments"])]
    assert " ".join(words).startswith(CALL)
