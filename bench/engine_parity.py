"""Our steady generation rate beside `LLM.generate` and `ray.data.llm`, same model and sampling.

    python -m bench.engine_parity --json

Two mixes of distinct prompts: many small requests (16 tokens each) and long outputs (200 tokens
each). The three take turns, each in a process tree of its own; what is timed is from the
engine's first request to its last answer, so that loading the model counts for nobody. Ours is
the whole main job: `nightmill run` from JSONL to committed, settled Parquet.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import yaml

from bench.peers import ENGINE_ARGS, read_rows

MIXES = {"small": (4000, 16), "long": (400, 200)}


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


def ours(path: Path, model: str, folder: Path) -> float:
    """Rows a second of the main job, from its engine's first request to its last answer."""
    config = {
        "input": {"path": str(path)},
        "output": {"path": tempfile.mkdtemp(dir=folder)},
        "tiers": [
            {
                "name": "only",
                "engine": {"kind": "vllm", "model": model, "engine_args": ENGINE_ARGS},
                "billing": {"kind": "provisioned", "usd_per_replica_hour": 1.0},
            }
        ],
        "route": {"policy": "fixed", "tier": "only"},
    }
    file = folder / "ours.yaml"
    file.write_text(yaml.safe_dump(config))
    summary = run_json([sys.executable, "-m", "jobs.cli", "run", str(file), "--json"])
    (engine,) = summary["engines"]
    assert summary["ok"] == len(read_rows(str(path)))
    return summary["ok"] / engine["active_s"]


def peer(name: str, paths: list[Path], model: str) -> list[float]:
    command = [sys.executable, "-m", "bench.peers", name, *map(str, paths), "--model", model]
    seconds = run_json(command)["seconds"]
    return [len(read_rows(str(p))) / s for p, s in zip(paths, seconds, strict=True)]


@click.command()
@click.option("--model", default="demo/models/large", show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(model: str, repeats: int, as_json: bool) -> None:
    """Take turns REPEATS times and compare the medians of the ratios."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder, f"{name}.jsonl") for name in MIXES}
        for name, (rows, tokens) in MIXES.items():
            write_mix(paths[name], rows, tokens)
        for _ in range(repeats):
            for name, path in paths.items():
                rates.setdefault(f"ours {name}", []).append(ours(path, model, Path(folder)))
                click.echo(f"ours {name}: {rates[f'ours {name}'][-1]:.1f} rows/s", err=True)
            for name, rate in zip(
                paths, peer("generate", list(paths.values()), model), strict=True
            ):
                rates.setdefault(f"LLM.generate {name}", []).append(rate)
            rates.setdefault("ray.data.llm small", []).extend(
                peer("ray_data_llm", [paths["small"]], model)
            )
    report(rates, as_json)


def report(rates: dict[str, list[float]], as_json: bool) -> None:
    def median(name: str) -> float:
        return statistics.median(rates[name])

    def ratio(a: str, b: str) -> float:
        pairs = zip(rates[a], rates[b], strict=True)
        return round(statistics.median(x / y for x, y in pairs), 3)

    if not as_json:
        for name, values in rates.items():
            listed = ", ".join(f"{value:.1f}" for value in values)
            click.echo(f"{name:22} {median(name):8.1f} rows/s   ({listed})")
    result = {
        "ours_rps": round(median("ours small"), 1),
        "generate_rps": round(median("LLM.generate small"), 1),
        "ray_data_llm_rps": round(median("ray.data.llm small"), 1),
        "vs_generate": ratio("ours small", "LLM.generate small"),
        "vs_generate_long": ratio("ours long", "LLM.generate long"),
        "vs_ray_data_llm": ratio("ours small", "ray.data.llm small"),
    }
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
