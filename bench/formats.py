"""What a weight format buys at each batch size: one model's shape, no weights, one device.

    python -m bench.formats --json

Each format has an engine of its own, ours, in a process tree that is stopped when it is not its
turn. They answer the same rows in turns; a ratio is the median of those within a turn. Random
weights say nothing of quality: that is `bench.distillation`'s.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bench import shapes
from jobs.trial import EngineTrial, Sample
from pipelines.requests import Request
from pipelines.tier import VLLM

BATCHES = (1, 16, 64, 256)
ROWS, TOKENS = 1024, 128


def requests() -> list[str]:
    """Distinct prompts of some 20 tokens, each answered with `TOKENS`."""
    sampling = {"max_tokens": TOKENS, "min_tokens": TOKENS}
    texts = (f"Sort the numbers: {i} {(i * 7919) % 1000}" for i in range(ROWS))
    return [Request([{"role": "user", "content": t}], sampling).to_json() for t in texts]


@contextmanager
def engines(shape: str, formats: tuple[str, ...], kv_gib: float) -> Iterator[dict[str, Any]]:
    """A started engine for each format; all start at once, for starting takes longest."""
    arguments = {
        "load_format": "dummy",
        "max_model_len": 2048,
        "max_num_seqs": max(BATCHES),
        # Of a device that they share, each takes what it needs and not what it finds free.
        "gpu_memory_utilization": 0.1,
        "kv_cache_memory_bytes": int(kv_gib * 2**30),
    }
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(formats)) as pool:
        folder, asked = Path(name), requests()

        def start(weights: str) -> EngineTrial:
            model = folder / weights
            shapes.write(shape, weights, model, Path("demo/models/large"))
            engine = VLLM(kind="vllm", model=str(model), engine_args=arguments)
            return EngineTrial(engine, {"temperature": 0.0}, {}, asked, folder / f"{weights}.log")

        started = list(pool.map(start, formats))
        try:
            yield dict(zip(formats, started, strict=True))
        finally:
            for trial in started:
                trial.close()


def turn(trials: dict[str, EngineTrial], batch: int) -> dict[str, float]:
    """Tokens a second of every format on the same rows."""
    sample = Sample(batch, 0, max(2 * batch, 4))
    return {name: trial.measure(sample).tokens_per_s for name, trial in trials.items()}


@click.command()
@click.option("--shape", type=click.Choice(list(shapes.SHAPES)), default="llama-8b")
@click.option("--weights", "formats", multiple=True, default=shapes.WEIGHTS, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--kv-gib", default=8.0, show_default=True, help="KV cache of each engine")
@click.option("--json", "as_json", is_flag=True)
def main(shape: str, formats: tuple[str, ...], repeats: int, kv_gib: float, as_json: bool) -> None:
    """Tokens a second of each format, and over the first of them."""
    with engines(shape, formats, kv_gib) as trials:
        for trial in trials.values():
            trial.measure(Sample(64, 0, 64))
        turns = {batch: [turn(trials, batch) for _ in range(repeats)] for batch in BATCHES}
    first = formats[0]
    result = {
        name: {
            str(batch): {
                "tokens_per_s": round(statistics.median(rates[name] for rates in turns[batch]), 1),
                f"over_{first}": round(
                    statistics.median(rates[name] / rates[first] for rates in turns[batch]), 3
                ),
            }
            for batch in BATCHES
        }
        for name in formats
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{'tokens/s':8}" + "".join(f"{f'batch {batch}':>18}" for batch in BATCHES))
    for name, of in result.items():
        cells = (f"{v['tokens_per_s']:.0f} ({v[f'over_{first}']:.2f}x)" for v in of.values())
        click.echo(f"{name:8}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
