"""Two replicas and a heavy tail of output lengths: does one wait while the other works?

    python -m bench.tail --json

A thousand rows whose answers have 4 to 256 tokens, most of them short, from JSONL to Parquet
with two replicas on a core each and the input sorted (`input.order: whole`). `balance` is the
busy time of the less busy replica over the other's; `vs_perfect` is the time from the first
request to the last answer over half the busy time of both, which is what a perfect split of the
same work would take; `idle_s` is how long the more idle of the two, its engine loaded, had nothing
to do. An engine that is ready later is busy for less time: then only the last says how well the
rows were shared.
"""

import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click

from bench.engine_parity import run_ours
from bench.peers import ENGINE_ARGS

ROWS, SHORTEST, LONGEST = 1000, 4, 256
FIGURES = ("balance", "vs_perfect", "idle_s")


def write_rows(path: Path) -> None:
    """Output lengths follow a Pareto law, in random order."""
    draw = random.Random(7)
    with path.open("w") as file:
        for i in range(ROWS):
            tokens = min(int(SHORTEST * draw.paretovariate(0.7)), LONGEST)
            row = {"id": f"r{i}", "prompt": f"Sort the numbers: {i} {draw.randrange(1000)}"}
            file.write(json.dumps({**row, "max_tokens": tokens, "min_tokens": tokens}) + "\n")


def once(model: str, seqs: int, order: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "rows.jsonl")
        write_rows(path)
        arguments = {**ENGINE_ARGS, "max_num_seqs": seqs}
        engine = {"model": model, "engine_args": arguments, "cpu_threads": 1}
        summary = run_ours(path, Path(name), engine, order=order, replicas=2)
    busy = sorted(engine["busy_s"] for engine in summary["engines"])
    active = max(engine["active_s"] for engine in summary["engines"])
    return {
        "balance": busy[0] / busy[-1],
        "vs_perfect": active / (sum(busy) / len(busy)),
        "idle_s": max(engine["idle_s"] for engine in summary["engines"]),
        "busy_s": busy,
    }


@click.command()
@click.option("--model", default="demo/models/large", show_default=True)
@click.option("--max-num-seqs", "seqs", default=64, show_default=True)
@click.option("--order", type=click.Choice(["stream", "whole"]), default="whole", show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(model: str, seqs: int, order: str, repeats: int, as_json: bool) -> None:
    """Run REPEATS times and print the medians."""
    runs = [once(model, seqs, order) for _ in range(repeats)]
    result = {k: round(statistics.median(r[k] for r in runs), 3) for k in FIGURES}
    if not as_json:
        for run in runs:
            busy = " and ".join(f"{seconds:.1f} s" for seconds in run["busy_s"])
            click.echo(
                f"busy {busy}: balance {run['balance']:.3f}, {run['vs_perfect']:.3f} of perfect, "
                f"at most {run['idle_s']:.2f} s idle"
            )
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
