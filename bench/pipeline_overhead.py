"""What everything but generation costs: a million scripted rows from file to settled Parquet.

    python -m bench.pipeline_overhead --json

Half of the rows are exact duplicates. The time is that of the whole command, Ray's start
included. Memory is compared between a tenth of the rows and all of them.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from bench.processes import growth_mb, watched_memory

_TEXT = "amber birch cedar delta ember flint grove hazel indigo jasper koala lemon"
_CONFIG = """
input: {{path: {input}}}
output: {{path: {output}}}
tiers:
  - name: only
    engine: {{kind: scripted}}
    billing: {{kind: serverless, usd_per_mtok: {{input: 0.5, output: 1.5}}}}
route: {{policy: fixed, tier: only}}
baseline: only
"""


def write_prompts(path: Path, rows: int) -> None:
    """`rows` rows of which every second repeats an earlier one, in random order."""
    rng = random.Random(rows)
    order = [i // 2 for i in range(rows)]
    rng.shuffle(order)
    with path.open("w") as file:
        for row, question in enumerate(order):
            text = f"Question {question}: what comes after {_TEXT}?"
            note = f"note {rng.randrange(1000)}"
            file.write(json.dumps({"id": f"r{row}", "prompt": text, "note": note}) + "\n")


def measure(rows: int, folder: Path) -> dict[str, Any]:
    """Run the command on `rows` rows and return what it took."""
    prompts = folder / f"{rows}.jsonl"
    write_prompts(prompts, rows)
    config = folder / f"{rows}.yaml"
    config.write_text(_CONFIG.format(input=prompts, output=folder / f"out-{rows}"))
    command = [sys.executable, "-m", "jobs.cli", "run", str(config), "--json"]
    started = time.monotonic()
    with watched_memory() as peak:
        done = subprocess.run(command, capture_output=True, text=True)
    wall_s = time.monotonic() - started
    if done.returncode != 0:
        raise click.ClickException(done.stderr)
    summary = json.loads(done.stdout)
    return {"rows": rows, "wall_s": wall_s, "summary": summary, "peak": peak}


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(rows: int, as_json: bool) -> None:
    """Measure a tenth of ROWS, then all of them."""
    with tempfile.TemporaryDirectory() as folder:
        small = measure(rows // 10, Path(folder))
        large = measure(rows, Path(folder))
    private, private_in = growth_mb(small["peak"].private, large["peak"].private)
    rss, rss_in = growth_mb(small["peak"].rss, large["peak"].rss)
    result = {
        "rows_per_s": round(rows / large["wall_s"], 1),
        "rows_per_s_tenth": round(rows / 10 / small["wall_s"], 1),
        "rss_growth_mb": round(private, 1),
        "rss_growth_in": private_in,
        "rss_growth_with_shared_mb": round(rss, 1),
        "rss_growth_with_shared_in": rss_in,
        "bytes_per_claimed_key": large["summary"]["bytes_per_claimed_key"],
        "by_source": large["summary"]["by_source"],
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:28} {value}")


if __name__ == "__main__":
    main()
