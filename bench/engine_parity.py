"""Ours beside `LLM.generate`, `ray.data.llm` and `vllm run-batch`: same model, rows and sampling.

    python -m bench.engine_parity --json
    python -m bench.engine_parity --steady --json

The first measures what a plain user waits for: 2,000 rows with every engine argument at its
default, from the command to its end, imports and loading included. The second leaves start-up
out: two mixes of distinct prompts (16 and 200 tokens each) with the same engine arguments, from
the engine's first request to its last answer. They take turns, each in a process tree of its
own. Ours is the whole main job: `nightmill run` from JSONL to committed, settled Parquet.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from bench.peers import ENGINE_ARGS, read_rows

MIXES = {"small": (4000, 16), "long": (400, 200)}
PLAIN = (2000, 16)
PEERS = {"LLM.generate": "generate", "ray.data.llm": "ray_data_llm", "vllm run-batch": "run_batch"}
STEADY_PEERS = ("LLM.generate", "ray.data.llm")


def write_mix(path: Path, rows: int, tokens: int) -> None:
    """Distinct prompts whose answers have exactly `tokens` tokens."""
    with path.open("w") as file:
        for i in range(rows):
            text = f"Sort the numbers: {i} {(i * 7919) % 1000} {(i * 104729) % 997}"
            row = {"id": f"r{i}", "prompt": text, "max_tokens": tokens, "min_tokens": tokens}
            file.write(json.dumps(row) + "\n")


def run_json(command: list[str]) -> dict[str, Any]:
    """The JSON that a command printed: a line of seconds among others, or all of it."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise click.ClickException(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    result: dict[str, Any] = json.loads(lines[0] if lines else done.stdout)
    return result


def ours_command(
    path: Path, output: Path, engine: dict[str, Any], order: str = "stream", **tier: Any
) -> list[str]:
    """The main job over a file with one vLLM tier; its configuration lies beside the output."""
    config = {
        "input": {"path": str(path), "order": order},
        "output": {"path": str(output)},
        "tiers": [
            {
                "name": "only",
                "engine": {"kind": "vllm", **engine},
                "billing": {"kind": "provisioned", "usd_per_replica_hour": 1.0},
                **tier,
            }
        ],
        "route": {"policy": "fixed", "tier": "only"},
    }
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "jobs.cli", "run", str(file), "--json"]


def run_ours(path: Path, folder: Path, engine: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The summary of the main job, each time with an output of its own."""
    output = Path(tempfile.mkdtemp(dir=folder))
    summary = run_json(ours_command(path, output, engine, **settings))
    assert summary["ok"] == len(read_rows(str(path)))
    return summary


@dataclass(frozen=True)
class Setting:
    """What all engines have in common, and whom ours is measured beside."""

    model: str
    engine_args: dict[str, Any]
    num_gpus: float
    peers: Sequence[str]


def rate(path: Path, setting: Setting, folder: Path) -> float:
    """Rows a second of the main job, from its engine's first request to its last answer."""
    engine = {"model": setting.model, "engine_args": setting.engine_args}
    summary = run_ours(path, folder, engine, num_gpus=setting.num_gpus)
    (engine,) = summary["engines"]
    return summary["ok"] / engine["active_s"]


def peer(name: str, paths: list[Path], model: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.peers", name, *map(str, paths), "--model", model]
    return run_json([*command, *options])


def rates_of(name: str, paths: list[Path], setting: Setting) -> list[float]:
    options = ["--engine-args", json.dumps(setting.engine_args)]
    seconds = peer(name, paths, setting.model, *options)["seconds"]
    return [len(read_rows(str(p))) / s for p, s in zip(paths, seconds, strict=True)]


def steady(setting: Setting, repeats: int, times: int, folder: Path) -> dict[str, Any]:
    rates: dict[str, list[float]] = {}
    paths = {name: folder / f"{name}.jsonl" for name in MIXES}
    for name, (rows, tokens) in MIXES.items():
        write_mix(paths[name], times * rows, tokens)
    for _ in range(repeats):
        for mix, path in paths.items():
            rates.setdefault(f"ours {mix}", []).append(rate(path, setting, folder))
        for name in setting.peers:
            measured = rates_of(PEERS[name], list(paths.values()), setting)
            for mix, value in zip(paths, measured, strict=True):
                rates.setdefault(f"{name} {mix}", []).append(value)
    show(rates, "rows/s")
    ours = {f"ours_{mix}_rps": statistics.median(rates[f"ours {mix}"]) for mix in paths}
    over = {
        f"{PEERS[name]}_{mix}": ratio(rates[f"ours {mix}"], rates[f"{name} {mix}"])
        for name in setting.peers
        for mix in paths
    }
    return {name: round(value, 1) for name, value in ours.items()} | {"ours_over": over}


def plain(model: str, repeats: int, folder: Path) -> dict[str, Any]:
    path = folder / "plain.jsonl"
    write_mix(path, *PLAIN)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Any) -> None:
        started = time.monotonic()
        work()
        seconds.setdefault(name, []).append(time.monotonic() - started)
        click.echo(f"{name}: {seconds[name][-1]:.1f} s", err=True)

    for _ in range(repeats):
        timed("ours", lambda: run_ours(path, folder, {"model": model}))
        for name, command in PEERS.items():
            options = [] if command == "run_batch" else ["--engine-args", "{}"]
            timed(name, lambda c=command, o=options: peer(c, [path], model, *o))
    show(seconds, "s")
    return {
        "ours_s": round(statistics.median(seconds["ours"]), 1),
        **{
            f"{command}_over_ours": ratio(seconds[name], seconds["ours"])
            for name, command in PEERS.items()
        },
    }


def ratio(a: list[float], b: list[float]) -> float:
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)


def show(values: dict[str, list[float]], unit: str) -> None:
    for name, measured in values.items():
        listed = ", ".join(f"{value:.1f}" for value in measured)
        click.echo(f"{name:20} {statistics.median(measured):8.1f} {unit}   ({listed})", err=True)


@click.command()
@click.option("--model", default="demo/models/large", show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--steady", "only_steady", is_flag=True, help="Leave start-up out.")
@click.option("--engine-args", default="{}", help="With --steady: JSON, for all engines.")
@click.option("--num-gpus", default=0.0, help="With --steady: of our tier.")
@click.option("--times", default=1, help="With --steady: so many times as many rows.")
@click.option(
    "--peer", "peers", type=click.Choice(STEADY_PEERS), multiple=True, default=STEADY_PEERS
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def main(
    model: str,
    repeats: int,
    only_steady: bool,
    engine_args: str,
    num_gpus: float,
    times: int,
    peers: tuple[str, ...],
    as_json: bool,
) -> None:
    """Take turns REPEATS times; the ratios are medians of those within a turn."""
    with tempfile.TemporaryDirectory() as folder:
        if only_steady:
            arguments = json.loads(engine_args) or ENGINE_ARGS
            setting = Setting(model, arguments, num_gpus, peers)
            result = steady(setting, repeats, times, Path(folder))
        else:
            result = plain(model, repeats, Path(folder))
    click.echo(json.dumps(result, indent=None if as_json else 1))


if __name__ == "__main__":
    main()
