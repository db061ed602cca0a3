"""What an API tier adds to the API: 2,000 requests of 0.2 s, 256 in flight, and under faults.

    python -m bench.api_tier --json
    python -m bench.api_tier --peer

The API is the stand-in of the tests, in a process of its own. The ideal is the waves that 256
in flight need, each as long as one request. `--peer` runs ray.data.llm's HTTP stage on the same
requests, without faults. It sends the requests of a batch one after the other, so that what it has
in flight is batches: four actors work on 64 batches of one row each.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from operator import truediv
from statistics import median
from typing import Any
from urllib.request import urlopen

import aiohttp
import click

from actors.api_engine import APIEngine
from actors.engine import Answer
from pipelines.api_tier import API
from pipelines.requests import Request

IN_FLIGHT = 256
LATENCY_S = 0.2
FAULT_SHARE = 0.2
LIMITED_S = 6.0
_PEER_S = 240
_PEER_ACTORS = 4


@contextmanager
def served(**script: Any) -> Iterator[str]:
    """The stand-in in a process of its own: its URL."""
    command = [sys.executable, "-m", "tests.standin", "--script", json.dumps(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def stats(url: str) -> dict[str, Any]:
    with urlopen(f"{url}/stats") as response:
        told: dict[str, Any] = json.load(response)
    return told


def texts(rows: int) -> list[str]:
    return [f"Question {i}: what comes after amber birch cedar delta ember?" for i in range(rows)]


def answered(url: str, prompts: list[str], **fields: Any) -> tuple[float, list[Answer]]:
    """Seconds for all prompts at once, by an engine whose connections are not yet open."""
    raw = {"kind": "api", "base_url": f"{url}/v1", "model": "m", "concurrency": IN_FLIGHT}

    async def run() -> tuple[float, list[Answer]]:
        engine = APIEngine(API.model_validate({**raw, **fields}), {"temperature": 0.0})
        await engine.start()
        requests = [Request([{"role": "user", "content": text}], {}) for text in prompts]
        started = time.monotonic()
        answers = await asyncio.gather(*(engine.answer(request) for request in requests))
        seconds = time.monotonic() - started
        await engine.stop()
        return seconds, answers

    return asyncio.run(run())


def bare(url: str, prompts: list[str]) -> float:
    """Seconds for the same by aiohttp alone: what this machine and the stand-in take for it."""

    async def run() -> float:
        turns = asyncio.Semaphore(IN_FLIGHT)

        async def one(text: str) -> None:
            asked = {"model": "m", "messages": [{"role": "user", "content": text}]}
            async with turns, session.post(f"{url}/v1/chat/completions", json=asked) as response:
                await response.json()

        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            started = time.monotonic()
            await asyncio.gather(*(one(text) for text in prompts))
            return time.monotonic() - started

    return asyncio.run(run())


def lost(prompts: list[str], answers: list[Answer]) -> int:
    pairs = zip(prompts, answers, strict=True)
    return sum(answer.response != text.upper() for text, answer in pairs)


def timed(rows: int, runs: int) -> dict[str, Any]:
    """The median of a few runs without faults, in turns with a client that does nothing else."""
    ideal = ceil(rows / IN_FLIGHT) * LATENCY_S
    prompts, seconds, cpu, bare_s = texts(rows), [], [], []
    for _ in range(runs):
        with served(latency_s=LATENCY_S) as url:
            began = time.process_time()
            took, answers = answered(url, prompts)
            cpu.append((time.process_time() - began) / rows * 1e3)
            assert lost(prompts, answers) == 0
            seconds.append(took)
        with served(latency_s=LATENCY_S) as url:
            bare_s.append(bare(url, prompts))
    return {
        "ideal_s": round(ideal, 3),
        "seconds": [round(s, 3) for s in seconds],
        "cpu_ms_per_request": round(median(cpu), 3),
        "ideal_ratio": round(median(seconds) / ideal, 3),
        "bare_ideal_ratio": round(median(bare_s) / ideal, 3),
        "over_bare": round(median(map(truediv, seconds, bare_s)), 3),
    }


def faulty(rows: int) -> dict[str, Any]:
    """Every fifth request is refused with 429 or 500."""
    prompts = texts(rows)
    with served(latency_s=LATENCY_S, share=FAULT_SHARE, faults=["429", "500"]) as url:
        seconds, answers = answered(url, prompts, max_retries=20)
        told = stats(url)
    return {
        "faulty_s": round(seconds, 3),
        "faults": sum(told["faults"].values()),
        "lost": lost(prompts, answers),
        "paid_twice": told["paid_twice"],
    }


def limited(per_minute: int) -> dict[str, Any]:
    """As many requests as the limit allows in a few seconds, every fifth refused; the server
    counts the most that came in any second, where a sixtieth of the limit may."""
    prompts = texts(int(per_minute / 60 * LIMITED_S * (1 - FAULT_SHARE)))
    script = {"share": FAULT_SHARE, "faults": ["429", "500"], "window_s": 1.0}
    with served(latency_s=LATENCY_S, **script) as url:
        seconds, answers = answered(
            url, prompts, requests_per_minute=per_minute, max_retries=20, concurrency=IN_FLIGHT
        )
        told = stats(url)
    return {
        "limited_s": round(seconds, 3),
        "limited_lost": lost(prompts, answers),
        "limited_paid_twice": told["paid_twice"],
        "limit_used_share": round(told["requests"] / seconds / (per_minute / 60), 3),
        "most_in_a_second": told["most_in_window"],
    }


def rate_exceeded(per_minute: int) -> dict[str, Any]:
    """The share by which a whole minute's limit was passed, at worst, over 75 seconds."""
    script = {"share": FAULT_SHARE, "faults": ["429", "500"], "window_s": 60.0}
    prompts = texts(int(per_minute * 1.25 * (1 - FAULT_SHARE)))
    with served(latency_s=LATENCY_S, **script) as url:
        _, answers = answered(url, prompts, requests_per_minute=per_minute, max_retries=20)
        told = stats(url)
    share = max(told["most_in_window"] / per_minute - 1, 0.0)
    return {
        "most_in_a_minute": told["most_in_window"],
        "minute_limit": per_minute,
        "minute_lost": lost(prompts, answers),
        "minute_paid_twice": told["paid_twice"],
        "rate_exceeded_share": round(share, 4),
    }


def peer(rows: int) -> dict[str, Any]:
    """ray.data.llm's HTTP stage in a process of its own, for so long at most."""
    with served(latency_s=LATENCY_S) as url:
        command = [sys.executable, "-m", "bench.api_tier", "--rows", str(rows), "--peer-at", url]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PEER_S)
        except subprocess.TimeoutExpired:
            return {"peer_s": None, "peer_problem": f"not done after {_PEER_S} s"}
    if done.returncode:
        raise click.ClickException(done.stderr[-2000:])
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    ideal = ceil(rows / IN_FLIGHT) * LATENCY_S
    return {**told, "peer_ideal_ratio": round(told["peer_s"] / ideal, 3)}


def run_peer(rows: int, url: str) -> dict[str, Any]:
    """Time from the first request's start to the last answer, Ray's start left out."""
    import ray
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    os.environ["RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY"] = str(IN_FLIGHT // _PEER_ACTORS)
    ray.init(num_cpus=2 * _PEER_ACTORS, log_to_driver=False, include_dashboard=False)
    config = HttpRequestProcessorConfig(
        url=f"{url}/v1/chat/completions", qps=None, batch_size=1, concurrency=_PEER_ACTORS
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "payload": {
                "model": "m",
                "messages": [{"role": "user", "content": row["item"]}],
                "temperature": 0.0,
            }
        },
        postprocess=lambda row: {
            "text": row["http_response"]["choices"][0]["message"]["content"],
            "at": time.time(),
        },
    )
    given = ray.data.from_items(texts(rows), override_num_blocks=2 * _PEER_ACTORS)
    done = processor(given).take_all()
    seconds = stats(url)["arrived_s"] + LATENCY_S
    return {"peer_s": round(seconds, 3), "peer_rows": len(done)}


@click.command()
@click.option("--rows", default=2000, show_default=True)
@click.option("--runs", default=3, show_default=True, help="timed runs, of which the median counts")
@click.option("--per-minute", default=12_000, show_default=True, help="the rate limit's test")
@click.option("--minute/--no-minute", default=True, help="count a whole minute (75 s)")
@click.option("--peer", "with_peer", is_flag=True, help="time ray.data.llm's HTTP stage too")
@click.option("--peer-at", hidden=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    rows: int,
    runs: int,
    per_minute: int,
    minute: bool,
    with_peer: bool,
    peer_at: str | None,
    as_json: bool,
) -> None:
    """Measure the engine against a server that it cannot make wait."""
    if peer_at:
        click.echo(json.dumps(run_peer(rows, peer_at)))
        return
    result = {**timed(rows, runs), **faulty(rows), **limited(per_minute)}
    if minute:
        result |= rate_exceeded(1200)
    if with_peer:
        result |= peer(rows)
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:20} {value}")


if __name__ == "__main__":
    main()
