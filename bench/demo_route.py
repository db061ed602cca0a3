"""Routing with a floor on the demo's models: what it saves, and what it loses on held-out rows.

    python -m bench.demo_route --json

Each seed makes its own file of distinct prompts of the demo's families and runs
`configs/demo-route.yaml` over it: the run draws its sample, certifies a threshold, and routes the
rest. A second run answers the same file with the large model alone. `saving` is the share of that
run's bill that the first did not need, its calibration included; no row repeats another, so that
none of it comes from deduplication. `loss_points` compares answers on the rows outside the sample:
`by_strong` counts answers that differ from the large model's, which is what the floor is about,
`by_label` how many more answers are wrong.
"""

import json
import sys
import tempfile
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.engine_parity import run_json
from demo.make_prompts import distinct_rows

CONFIG = "configs/demo-route.yaml"


def write_prompts(path: Path, rows: int, seed: int) -> None:
    made = distinct_rows(Random(f"route {seed}"), rows)
    lines = [json.dumps({"id": f"q{i}", **row}) + "\n" for i, row in enumerate(made)]
    path.write_text("".join(lines), encoding="ascii")


def answered(folder: Path, name: str, *options: str) -> tuple[dict[str, Any], pa.Table]:
    """A run's summary, and its rows in the order of their ids."""
    output = folder / name
    command = [sys.executable, "-m", "jobs.cli", "run", CONFIG, "--json"]
    command += ["--input", str(folder / "prompts.jsonl"), "--output", str(output)]
    summary = run_json([*command, *(f"--set={option}" for option in options)])
    columns = ["id", "source", "tier", "response", "label"]
    parts = sorted((output / "rows").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(part, columns=columns) for part in parts])
    return summary, table.sort_by("id")


def share(hits: Any) -> float:
    return float(pc.mean(pc.fill_null(hits, False).cast(pa.float64())).as_py())


def once(rows: int, sample: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prompts(folder / "prompts.jsonl", rows, seed)
        strong, told = answered(folder, "strong", "route={policy: fixed, tier: large}")
        routed, given = answered(
            folder, "routed", f"route.plans={folder}/routes", f"route.sample_rows={sample}"
        )
    held_out = pc.equal(given["source"], "generated")
    told, given = told.filter(held_out), given.filter(held_out)
    right = [share(pc.equal(table["response"], table["label"])) for table in (told, given)]
    return {
        "saving": 1 - routed["bill_usd"] / strong["bill_usd"],
        "by_strong": 100 * (1 - share(pc.equal(told["response"], given["response"]))),
        "by_label": 100 * (right[0] - right[1]),
        "large_right": right[0],
        "held_out": given.num_rows,
        "stayed_small": share(pc.equal(given["tier"], "small")),
        "bill_usd": routed["bill_usd"],
        "strong_bill_usd": strong["bill_usd"],
        "routing": routed["routing"],
    }


@click.command()
@click.option("--rows", default=30_000, show_default=True)
@click.option("--sample", default=800, show_default=True, help="rows of them to calibrate with")
@click.option("--seeds", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(rows: int, sample: int, seeds: int, as_json: bool) -> None:
    """Route SEEDS files of ROWS prompts, and print medians."""
    runs = [once(rows, sample, seed) for seed in range(seeds)]
    result = {
        "demo_saving": median(r["saving"] for r in runs),
        "demo_loss_points": median(r["by_strong"] for r in runs),
        "worst_loss_points": max(r["by_strong"] for r in runs),
    }
    if not as_json:
        for each in runs:
            click.echo(json.dumps(each))
    click.echo(json.dumps({k: round(v, 4) for k, v in result.items()}))


if __name__ == "__main__":
    main()
