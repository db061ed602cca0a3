"""What batch work at the same endpoint costs those who ask online, with and without a priority.

    python -m bench.priority --json

One request after the other on an endpoint with a real model: alone, beside half as much again of
batch work as the engine runs at once, and beside the same work with a later priority. `p50` and
`p95` are milliseconds of the whole answer; `batch` is what the other work gets done in requests a
second.
"""

import asyncio
import json
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import click

from bench.serve import body, free_port, fresh, our_command, running

SEQS, BATCH_TOKENS, TOKENS = 16, 64, 8
ARGUMENTS = {
    "dtype": "bfloat16",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": SEQS,
}


async def batch(session: aiohttp.ClientSession, url: str, priority: int, done: list[float]) -> None:
    """One lane of batch work, until it is cancelled."""
    while True:
        asked = body(fresh(), max_tokens=BATCH_TOKENS, ignore_eos=True, priority=priority)
        async with session.post(f"{url}/v1/chat/completions", json=asked) as response:
            await response.read()
            if response.status == 200:
                done.append(time.monotonic())
            else:
                await asyncio.sleep(0.1)


async def online(session: aiohttp.ClientSession, url: str, requests: int) -> list[float]:
    """Milliseconds of each."""
    took = []
    for _ in range(requests):
        began = time.monotonic()
        asked = body(fresh(), max_tokens=TOKENS, ignore_eos=True)
        async with session.post(f"{url}/v1/chat/completions", json=asked) as response:
            response.raise_for_status()
            await response.read()
        took.append((time.monotonic() - began) * 1e3)
    return took


async def beside(
    session: aiohttp.ClientSession, url: str, priority: int | None, requests: int
) -> dict[str, float]:
    """Args: priority: of the batch work; None for none."""
    done = list[float]()
    # Half as many wait as may: one more of the same priority would not be taken, and no figure.
    lanes = 0 if priority is None else SEQS + SEQS // 2
    work = [asyncio.ensure_future(batch(session, url, priority or 0, done)) for _ in range(lanes)]
    await asyncio.sleep(3.0 if work else 0.0)
    began, before = time.monotonic(), len(done)
    took = await online(session, url, requests)
    rate = (len(done) - before) / (time.monotonic() - began)
    for lane in work:
        lane.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    return {
        "p50": round(median(took), 1),
        "p95": round(quantiles(took, n=20)[-1], 1),
        "batch": round(rate, 1),
    }


async def measured(url: str, requests: int) -> dict[str, Any]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await online(session, url, 10)
        return {
            name: await beside(session, url, priority, requests)
            for name, priority in (("alone", None), ("same_priority", 0), ("later_priority", 1))
        }


@click.command()
@click.option("--model", default="demo/models/large", show_default=True)
@click.option("--requests", default=30, show_default=True, help="online, one after the other")
@click.option("--json", "as_json", is_flag=True)
def main(model: str, requests: int, as_json: bool) -> None:
    """Measure one who asks online beside batch work."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        command = our_command(folder, model, port, ARGUMENTS, 0.0)
        with running(command, port, "/ready", folder / "log"):
            result = asyncio.run(measured(f"http://127.0.0.1:{port}", requests))
    if as_json:
        click.echo(json.dumps(result))
        return
    for key, value in result.items():
        click.echo(f"{key:16} {value}")


if __name__ == "__main__":
    main()
