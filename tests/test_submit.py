"""Runs as jobs on real heads, one open and one with a token, started as the README says."""

import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import tier, write_jsonl
from ray_head import Head, ray_head

ROWS = 24


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "auth_token"
    path.write_text(secrets.token_hex(32))
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def head(token_file: Path) -> Iterator[Head]:
    """Protected by the token; commands in its environment have none."""
    with ray_head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token_file)) as started:
        yield started


@pytest.fixture
def token(token_file: Path) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}


def project(folder: Path, **sections: Any) -> Path:
    """A folder like a user's: a configuration whose paths are relative."""
    write_jsonl(folder / "prompts.jsonl", [{"id": f"r{i}", "prompt": f"p{i}"} for i in range(ROWS)])
    raw = {
        "input": {"path": "prompts.jsonl"},
        "output": {"path": "answers"},
        "tiers": [tier("only")],
        "route": {"policy": "fixed", "tier": "only"},
        **sections,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(raw))
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", "submit", "run.yaml", *arguments]


def submit(
    head: Head, folder: Path, *arguments: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments),
        env={**head.environment, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def open_head() -> Iterator[Head]:
    with ray_head(RAY_AUTH_MODE="disabled") as started:
        yield started


def test_a_run_is_submitted_once_and_ends_with_its_own_exit_code(
    head: Head, token: dict[str, str], tmp_path: Path
) -> None:
    folder = project(
        tmp_path, tiers=[tier("only", fail_every=6)], submit={"env_vars": ["GREETING"]}
    )
    first = submit(head, folder, GREETING="hello", **token)
    assert first.returncode == 3, first.stderr
    assert "answered" in first.stdout, "the job's output is shown"
    parts = list((folder / "answers/rows").glob("*.parquet"))
    assert sum(pq.read_table(part).num_rows for part in parts) == ROWS
    again = submit(head, folder, **token)
    assert again.returncode == 3
    assert "this run is over: finished, some rows are in errors/" in again.stderr
    unset = submit(head, folder, "--output", "other", **token)
    assert unset.returncode == 2
    assert "submit.env_vars: GREETING" in unset.stderr


def test_a_live_run_is_followed_stopped_and_taken_up_again(open_head: Head, tmp_path: Path) -> None:
    head, token = open_head, {"RAY_AUTH_MODE": "disabled"}
    slow = tier("only", delay_s=4.0, max_num_seqs=2)
    columns = {"path": "prompts.jsonl", "block_rows": 2}
    folder = project(tmp_path, tiers=[slow], input=columns)
    started = submit(head, folder, "--no-wait", **token)
    assert started.returncode == 0, started.stderr
    follower = subprocess.Popen(
        command(),
        env={**head.environment, **token},
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # Tests that run in the background of a shell inherit that it is ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert follower.stderr is not None
    # Before it follows, Ctrl-C would only break off its start.
    assert any("already" in line for line in follower.stderr)
    _until(lambda: len(list((folder / "answers/rows").glob("*.parquet"))) > 0)
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert "--stop" in said
    stopped = submit(head, folder, "--stop", **token)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped" in stopped.stderr
    assert submit(head, folder, "--stop", **token).returncode == 2
    committed = len(list((folder / "answers/rows").glob("*.parquet")))
    assert 0 < committed < ROWS / 2, committed
    quick = submit(head, folder, **token)
    assert quick.returncode == 0, quick.stderr
    assert "-2: every row is answered" in quick.stderr
    assert json.loads((folder / "answers/summary.json").read_text())["ok"] == ROWS


def _until(is_so: Any) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "wants a token"),
        ({"RAY_AUTH_MODE": "token", "HOME": "/nowhere"}, "wants a token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, "refuses this token"),
    ],
    ids=["no token", "no file", "another token"],
)
def test_a_job_without_the_token_is_refused(
    head: Head, tmp_path: Path, environment: dict[str, str], says: str
) -> None:
    done = submit(head, project(tmp_path), **environment)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "answers").exists()


def test_a_token_that_others_can_read_is_told_of(
    head: Head, token_file: Path, tmp_path: Path
) -> None:
    loose = tmp_path / "loose"
    loose.write_text(token_file.read_text())
    loose.chmod(0o644)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(loose)}
    done = submit(head, project(tmp_path), "--stop", **environment)
    assert f"chmod 600 {loose}" in done.stderr
    assert "chmod" not in submit(head, tmp_path, "--stop", RAY_AUTH_TOKEN="x").stderr


@pytest.mark.parametrize(
    ("sections", "arguments", "says"),
    [
        ({"tires": []}, (), "unknown key"),
        ({"submit": {"max_upload_mib": 1}}, (), "submit.max_upload_mib"),
        ({"submit": {"excludes": ["*.yaml"]}}, (), "run.yaml: is not sent"),
        ({}, ("--stop",), "no job of this run is live"),
        ({}, ("--address", "127.0.0.1:8265"), "http://127.0.0.1:8265"),
        ({}, ("--address", "http://127.0.0.1:1"), "no Ray cluster answers there"),
    ],
)
def test_what_cannot_be_submitted_ends_with_2(
    head: Head,
    token: dict[str, str],
    tmp_path: Path,
    sections: dict[str, Any],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    folder = project(tmp_path, **sections)
    (folder / "model.bin").write_bytes(bytes(3 << 20))
    done = submit(head, folder, *arguments, **token)
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
