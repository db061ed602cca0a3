import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from conftest import ROOT, tier, write_jsonl

from jobs.cli import main

README = (ROOT / "README.md").read_text()
ROWS = [{"id": str(i), "prompt": f"p{i}"} for i in range(3)]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def config_file(tmp_path: Path, **sections: Any) -> Path:
    raw = {
        "input": {"path": str(write_jsonl(tmp_path / "prompts.jsonl", ROWS))},
        "output": {"path": str(tmp_path / "out")},
        "tiers": [tier("only")],
        "route": {"policy": "fixed", "tier": "only"},
        **sections,
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def commands() -> list[str]:
    return sorted(main.commands)


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_and_stands_in_the_readme(name: str) -> None:
    command = main.commands[name]
    assert command.help
    assert f"nightmill {name}" in README
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"


def test_check_prints_the_resolved_config(tmp_path: Path) -> None:
    done = invoke("check", config_file(tmp_path), "--set", "tiers.only.replicas=2")
    assert done.exit_code == 0
    assert yaml.safe_load(done.output)["tiers"][0]["replicas"] == 2


def test_what_a_user_wrote_is_shown_as_it_is(tmp_path: Path) -> None:
    accept = {"by": "python", "entry_point": "nope:x"}
    steps = [{"tier": "only", "accept": [accept]}]
    route = {"policy": "cascade", "steps": steps, "otherwise": "only"}
    assert "nope:x:" in invoke("check", config_file(tmp_path, route=route)).output
    unknown = config_file(tmp_path, route={"policy": "fixed", "tier": "[bold]"})
    assert "'[bold]'" in invoke("check", unknown).output


def broken(tmp_path: Path, name: str) -> list[object]:
    """Arguments of a run that cannot start."""
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "noparquet.parquet").write_bytes(b"nothing of the kind")
    (tmp_path / "file").write_text("")
    write_jsonl(tmp_path / "other.jsonl", [{"text": "x"}])
    write_jsonl(tmp_path / "clash.jsonl", [{"prompt": "x", "tier": "y"}])
    write_jsonl(tmp_path / "twice.jsonl", [{"id": "q7", "prompt": "x"}] * 2)
    gone = {"kind": "vllm", "model": "./no/such/model"}
    unpinned = {"kind": "vllm", "model": "org/name"}
    model = str(ROOT / "demo/models/small")
    adapted = {"kind": "vllm", "model": model, "lora_adapters": {"law": str(tmp_path)}}
    parsed = {"kind": "vllm", "model": model, "task": "embed", "tool_parser": "hermes"}
    cases: dict[str, tuple[dict[str, Any], list[object]]] = {
        "no config": ({}, ["nowhere.yaml"]),
        "unknown key": ({"tires": []}, []),
        "no input": ({}, ["--input", tmp_path / "none.jsonl"]),
        "empty input": ({}, ["--input", tmp_path / "empty.jsonl"]),
        "broken parquet": ({}, ["--input", tmp_path / "noparquet.parquet"]),
        "no prompt column": ({}, ["--input", tmp_path / "other.jsonl"]),
        "clashing column": ({}, ["--input", tmp_path / "clash.jsonl"]),
        "duplicate ids": ({}, ["--input", tmp_path / "twice.jsonl"]),
        "no model": ({"tiers": [{**tier("only"), "engine": gone}]}, []),
        "hub model without revision": ({"tiers": [{**tier("only"), "engine": unpinned}]}, []),
        "no adapter": ({"tiers": [{**tier("only"), "engine": adapted}]}, []),
        "parser without text": ({"tiers": [{**tier("only"), "engine": parsed}]}, []),
        "output is a file": ({}, ["--output", tmp_path / "file"]),
        "output below a file": ({}, ["--output", tmp_path / "file/out"]),
        "output in input": ({}, ["--input", tmp_path, "--output", tmp_path / "out"]),
        "no such scheme": ({}, ["--input", "ftq://x/y.jsonl"]),
        "bad override": ({}, ["--set", "tiers.none.replicas=1"]),
    }
    sections, extra = cases[name]
    path = config_file(tmp_path, **sections)
    return [extra[0]] if name == "no config" else [path, *extra]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no config", ["nowhere.yaml", "cannot be read"]),
        ("unknown key", ["run.yaml", "tires", "unknown key"]),
        ("no input", ["input.path", "none.jsonl", "no such file"]),
        ("empty input", ["input.path", "empty.jsonl", "no rows"]),
        ("broken parquet", ["input.path", "cannot be read"]),
        ("no prompt column", ["prompt", "text", "To fix"]),
        ("clashing column", ["tier", "rename"]),
        ("duplicate ids", ["q7", "row 0", "row 1", "To fix"]),
        ("no model", ["tiers.only.engine.model", "no such folder"]),
        ("hub model without revision", ["tiers.only.engine.revision", "pin"]),
        ("no adapter", ["tiers.only.engine.lora_adapters.law", "adapter_config.json"]),
        ("parser without text", ["tiers.0.engine", "embed", "remove the parsers"]),
        ("output is a file", ["output.path", "cannot be written"]),
        ("output below a file", ["output.path", "cannot be written"]),
        ("output in input", ["output.path", "lies in the input folder"]),
        ("no such scheme", ["ftq://x/y.jsonl", "cannot be opened"]),
        ("bad override", ["--set tiers.none.replicas", "no item"]),
    ],
)
def test_what_cannot_work_ends_with_2_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: list[str]
) -> None:
    monkeypatch.setattr("jobs.batch.connect", lambda *_: pytest.fail("Ray was started"))
    done = invoke("run", *broken(tmp_path, name))
    assert done.exit_code == 2, done.output
    message = " ".join(done.stderr.split())
    for words in says:
        assert words in message
    assert "Traceback" not in message


@pytest.mark.usefixtures("ray_here")
def test_run_prints_a_summary_or_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config_file(tmp_path)
    done = invoke("run", path)
    assert done.exit_code == 0
    assert "generated" in done.output
    again = invoke("run", path, "--json")
    assert json.loads(again.stdout)["rows"] == 3
    other = invoke("run", path, "--output", tmp_path / "other", "--budget-usd", 1e-9, "--json")
    assert other.exit_code == 4
    assert json.loads(other.stdout)["pending"] == 3
    monkeypatch.setattr("jobs.batch.settle", lambda *_: print("(raylet) WARNING"))
    noisy = invoke("run", path, "--output", tmp_path / "noisy", "--json")
    assert json.loads(noisy.stdout)["ok"] == 3, "what libraries print is no part of the JSON"


def test_a_run_starts_its_own_ray_beside_a_strangers_cluster(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    # Ray's sockets lie there, whose paths must be short.
    with tempfile.TemporaryDirectory() as folder:
        # What `ray start --head` leaves for everybody on the machine; nobody listens there.
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:1")
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", "run", str(config_file(tmp_path))],
            env={**environment, "RAY_TMPDIR": folder},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
