"""What the endpoint adds to vLLM's own API server: on this machine, in turns.

    python -m bench.serve --json

Both serve the same model with the same sizes, each in processes of its own, and both run all the
time; only one is asked at once. `ttft_overhead_ms`: streams one after the other, the difference of
the median times to the first text. `throughput_ratio`: requests a second with as many at once as
the engine takes, ours over theirs; the median of the rounds' ratios. `cached_p50_ms`: the same
request again. `overload_errors`: answers but 200 and 429 while twice as many requests come as are
answered at saturation; and how much the memory of the endpoint's processes grows meanwhile.
On a GPU both engines share it: `--num-gpus 0.5`, and a model of `bench.shapes`.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import aiohttp
import click
import psutil
import yaml

ENGINE_ARGS = {
    "dtype": "bfloat16",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 64,
}
_START_S = 240
_numbers = count()


@contextmanager
def running(command: list[str], port: int, path: str, log: Path) -> Iterator[int]:
    """A server, once it is ready; its process id."""
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=env)
    try:
        until = time.monotonic() + _START_S
        while not _answers(f"http://127.0.0.1:{port}{path}"):
            if process.poll() is not None or time.monotonic() > until:
                raise click.ClickException(f"{command[2]}: {log.read_text()[-3000:]}")
            time.sleep(0.5)
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def our_command(
    folder: Path, model: str, port: int, arguments: dict[str, Any], num_gpus: float
) -> list[str]:
    config = {
        "input": {"path": "none.jsonl"},
        "output": {"path": str(folder / "out")},
        "tiers": [
            {
                "name": "only",
                "engine": {"kind": "vllm", "model": model, "engine_args": arguments},
                "billing": {"kind": "provisioned", "usd_per_replica_hour": 1.0},
                "num_gpus": num_gpus,
            }
        ],
        "route": {"policy": "fixed", "tier": "only"},
        "response_cache": {"path": str(folder / "cache")},
        "sampling": {"temperature": 0.0},
        "serve": {
            "port": port,
            "data_dir": str(folder / "data"),
            "max_queued": arguments["max_num_seqs"],
        },
    }
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "jobs.cli", "serve", str(path)]


def their_command(model: str, port: int, arguments: dict[str, Any]) -> list[str]:
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in arguments.items()
    ]
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model,
        "--served-model-name", "only", "--host", "127.0.0.1", "--port", str(port),
        "--no-enable-log-requests", "--disable-uvicorn-access-log", *flags,
    ]  # fmt: skip


def body(text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "only", "messages": messages, "temperature": 0.0, **fields}


def fresh() -> str:
    """A prompt that nobody has asked before."""
    return f"What is {next(_numbers)} + {os.getpid()}? Sort these words: elm birch ash oak."


async def first_text_s(session: aiohttp.ClientSession, url: str) -> float:
    asked = body(fresh(), stream=True, max_tokens=8, ignore_eos=True)
    began, first = time.monotonic(), 0.0
    async with session.post(f"{url}/v1/chat/completions", json=asked) as response:
        response.raise_for_status()
        async for line in response.content:
            if not first and line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    first = time.monotonic()
    return first - began


@dataclass(frozen=True)
class Load:
    """Requests of so many tokens, so many at once."""

    at_once: int
    tokens: int

    def request(self) -> dict[str, Any]:
        return body(fresh(), max_tokens=self.tokens, ignore_eos=True)


async def per_second(session: aiohttp.ClientSession, url: str, requests: int, load: Load) -> float:
    turns = asyncio.Semaphore(load.at_once)

    async def one() -> None:
        asked = load.request()
        async with turns, session.post(f"{url}/v1/chat/completions", json=asked) as response:
            response.raise_for_status()
            await response.read()

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(requests)))
    return requests / (time.monotonic() - began)


async def cached_s(session: aiohttp.ClientSession, url: str, requests: int) -> list[float]:
    asked, seconds = body("What is 20 + 22?", max_tokens=8), list[float]()
    while len(seconds) < requests:
        began = time.monotonic()
        async with session.post(f"{url}/v1/chat/completions", json=asked) as response:
            await response.read()
            if response.headers.get("x-nightmill-source") == "cache_exact":
                seconds.append(time.monotonic() - began)
            else:
                await asyncio.sleep(0.5)
    return seconds


async def overloaded(
    session: aiohttp.ClientSession, url: str, a_second: float, seconds: float, load: Load
) -> Counter[str]:
    """What came of requests that come so often, whether they are answered or not."""
    outcomes: Counter[str] = Counter()

    async def one() -> None:
        asked = load.request()
        try:
            async with session.post(f"{url}/v1/chat/completions", json=asked) as response:
                await response.read()
                outcomes[str(response.status)] += 1
        except aiohttp.ClientError as error:
            outcomes[type(error).__name__] += 1

    began, tasks = time.monotonic(), list[asyncio.Task[None]]()
    while (passed := time.monotonic() - began) < seconds:
        while len(tasks) < passed * a_second:
            tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    return outcomes


def memory_mb(pid: int) -> float:
    """Of the endpoint's processes, without pages that they share. Ray's are no children of it."""
    total = 0
    for process in psutil.process_iter():
        try:
            title = " ".join(process.cmdline())
            if process.pid == pid or "ServeReplica" in title or "ProxyActor" in title:
                memory = process.memory_info()
                total += memory.rss - memory.shared
        except psutil.Error:
            continue
    return total / 1e6


async def measured(
    ours: str, theirs: str, rounds: int, requests: int, overload_s: float, pid: int, load: Load
) -> dict[str, Any]:
    first: dict[str, list[float]] = {ours: [], theirs: []}
    rates: dict[str, list[float]] = {ours: [], theirs: []}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        for url in (ours, theirs):
            await per_second(session, url, load.at_once, load)
        for number in range(rounds):
            # Each goes first in half of the rounds: what the machine does besides hits both alike.
            for url in (ours, theirs) if number % 2 else (theirs, ours):
                first[url] += [await first_text_s(session, url) for _ in range(15)]
                rates[url].append(await per_second(session, url, requests, load))
        cached = await cached_s(session, ours, 100)
        before = memory_mb(pid)
        outcomes = await overloaded(session, ours, 2 * median(rates[ours]), overload_s, load)
        grown = memory_mb(pid) - before
    wrong = {name: n for name, n in outcomes.items() if name not in ("200", "429")}
    return {
        "ttft_overhead_ms": round((median(first[ours]) - median(first[theirs])) * 1e3, 2),
        "throughput_ratio": round(median(map(truediv, rates[ours], rates[theirs])), 3),
        "cached_p50_ms": round(median(cached) * 1e3, 2),
        "overload_errors": sum(wrong.values()),
        "ttft_p50_ms": [round(median(first[url]) * 1e3, 2) for url in (ours, theirs)],
        "requests_per_s": [[round(rate, 1) for rate in rates[url]] for url in (ours, theirs)],
        "overload": dict(outcomes),
        "memory_growth_mb": round(grown, 1),
    }


@click.command()
@click.option("--model", default="demo/models/large", show_default=True)
@click.option("--engine-args", default="{}", help="JSON, for both engines")
@click.option("--num-gpus", default=0.0, show_default=True, help="of a GPU, for our tier")
@click.option("--rounds", default=5, show_default=True)
@click.option("--requests", default=512, show_default=True, help="of each turn at saturation")
@click.option("--tokens", default=32, show_default=True, help="of each answer at saturation")
@click.option("--overload-s", default=60.0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    model: str,
    engine_args: str,
    num_gpus: float,
    rounds: int,
    requests: int,
    tokens: int,
    overload_s: float,
    as_json: bool,
) -> None:
    """Measure the endpoint beside vLLM's own server; the first of each pair is ours."""
    arguments = json.loads(engine_args) or ENGINE_ARGS
    load = Load(arguments["max_num_seqs"], tokens)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, ours, theirs = Path(name), free_port(), free_port()
        command = our_command(folder, model, ours, arguments, num_gpus)
        pid = stack.enter_context(running(command, ours, "/ready", folder / "ours.log"))
        command = their_command(model, theirs, arguments)
        stack.enter_context(running(command, theirs, "/health", folder / "theirs.log"))
        urls = (f"http://127.0.0.1:{ours}", f"http://127.0.0.1:{theirs}")
        result = asyncio.run(measured(*urls, rounds, requests, overload_s, pid, load))
    if as_json:
        click.echo(json.dumps(result))
        return
    for key, value in result.items():
        click.echo(f"{key:18} {value}")


if __name__ == "__main__":
    main()
