"""The response cache at a million entries: exact recall, similar questions, memory.

    python -m bench.response_cache --json

`semantic`: rows/s of recall by similarity (keys, embedding, search among 10,000 answered questions,
gates, rows in flight) as a share of raw `encode` of the same texts, the median of five rounds in
turns. `exact`: recall of keys in random order, 2,048 at once, from a million answers; resident
bytes that a reader takes per entry. `nearest`: random unit vectors of 384 dimensions in one scope,
10,000, 100,000 and a million of them; the queries are entries disturbed to a similarity of .98 to
1, asked 256 at once; `recall` is the share that finds its entry. The median of five rounds of other
queries, after one that fills the caches. Each part reads in a process of its own. A part can be run
alone with `--part`, and smaller with `--rows`; it needs up to 4 GiB of disk for a while.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import click
import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from actors.cache_care import build_index, tend
from actors.cache_store import CacheStore
from actors.response_cache import ResponseCache
from bench.semantic_recall import beside_encode
from pipelines.cache_entries import (
    ENTRY,
    RESPONSES,
    entry_digest,
    question_digest,
    question_schema,
    questions_table,
)
from pipelines.config import ResponseCacheConfig, Storage

REVISION, SCOPE, NOW = "0123456789ab", b"s" * 16, datetime(2026, 11, 24, tzinfo=UTC)
DIMENSIONS, AT_LEAST = 384, 0.98
_WRITTEN_AT_ONCE = 20_000
_KNOWN = 10_000
_RECALLED_AT_ONCE, _ASKED_AT_ONCE, _ROUNDS, _ROUND_QUERIES = 2048, 256, 5, 1024


def key(number: int) -> bytes:
    return blake2b(b"%d" % number, digest_size=16).digest()


def unit_vectors(first: int, rows: int) -> np.ndarray:
    """Random vectors of length 1: float32 of shape (rows, DIMENSIONS), by their first's number."""
    vectors = np.random.default_rng(first).standard_normal((rows, DIMENSIONS), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def disturbed(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Each vector turned away to a similarity between .981 and 1."""
    rng = np.random.default_rng(seed)
    aside = rng.standard_normal(vectors.shape, dtype=np.float32)
    aside -= (aside * vectors).sum(1, keepdims=True) * vectors
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    similarity = rng.uniform(AT_LEAST + 0.001, 1, (len(vectors), 1)).astype(np.float32)
    return similarity * vectors + np.sqrt(1 - similarity**2) * aside


def answers(first: int, rows: int) -> pa.Table:
    entries = []
    for number in range(first, first + rows):
        entry: dict[str, Any] = {
            "request_key": key(number),
            "response": f"The answer to question {number} is of a usual length. " * 3,
            "finish_reason": "stop",
            "prompt_tokens": 120,
            "completion_tokens": 40,
            "tier": "only",
            "model": "m",
            "tenant": "",
            "scope": SCOPE,
            "run_id": "run",
            "row_id": str(number),
            "created_at": NOW,
        }
        entries.append({**entry, "digest": entry_digest(entry)})
    return pa.Table.from_pylist(entries, schema=ENTRY)


def asked(first: int, rows: int) -> pa.Table:
    vectors = unit_vectors(first, rows).astype(np.float16)
    keys = [key(number) for number in range(first, first + rows)]
    texts = [f"What about {number}?" for number in range(first, first + rows)]
    digests = [
        question_digest(k, SCOPE, text, vector.tobytes(), NOW)
        for k, text, vector in zip(keys, texts, vectors, strict=True)
    ]
    schema = question_schema(DIMENSIONS)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSIONS)
    moments = pa.array([NOW] * rows, schema.field("created_at").type)
    columns = [keys, [SCOPE] * rows, texts, flat, moments, digests]
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.table(arrays, schema=schema)


def written(path: str, name: str, rows: int, part: Callable[[int, int], pa.Table]) -> None:
    """Keys are distinct here, so that nothing has to be merged."""
    store = CacheStore(ResponseCacheConfig(path=path), Storage())
    for first in range(0, rows, _WRITTEN_AT_ONCE):
        table = part(first, min(_WRITTEN_AT_ONCE, rows - first))
        store.open_or_create(name, table.schema).add(table)


def exact(rows: int) -> dict[str, Any]:
    """`exact_rps` and `bytes_per_entry`."""
    with tempfile.TemporaryDirectory() as path:
        apart(written, path, RESPONSES, rows, answers)
        return apart(read_exactly, path, rows)


def read_exactly(path: str, rows: int) -> dict[str, Any]:
    # A first reader takes what LanceDB takes for itself.
    opened(f"{path}/none")
    before = resident()
    reader = opened(path)
    kept = resident() - before
    order = np.random.default_rng(1).permutation(rows)[: 100 * _RECALLED_AT_ONCE]
    keys = [key(int(number)).hex() for number in order]
    start, found = time.perf_counter(), 0
    for at in range(0, len(keys), _RECALLED_AT_ONCE):
        found += len(reader.recall(keys[at : at + _RECALLED_AT_ONCE]))
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    reader.refresh()
    idle_refresh_s = time.perf_counter() - start
    assert found == len(keys)
    return {
        "entries": rows,
        "exact_rps": round(len(keys) / seconds),
        "bytes_per_entry": round(kept / rows, 1),
        "idle_refresh_ms": round(1000 * idle_refresh_s, 2),
    }


def semantic(rows: int) -> dict[str, Any]:
    """`semantic_vs_encode`."""
    with tempfile.TemporaryDirectory() as path:
        return apart(beside_encode, path, min(rows, _KNOWN))


def nearest(rows: int) -> dict[str, Any]:
    """Milliseconds a query at three sizes, `growth_100k_1m` and `recall`, its worst."""
    sizes = [size for size in (10_000, 100_000, 1_000_000) if size <= rows] or [rows]
    by_size = {size: nearest_of(size) for size in sizes}
    figures: dict[str, Any] = {
        "nearest": by_size,
        "recall": min(figure["recall"] for figure in by_size.values()),
    }
    if 1_000_000 in by_size:
        ratio = by_size[1_000_000]["query_ms"] / by_size[100_000]["query_ms"]
        figures["growth_100k_1m"] = round(ratio, 2)
    return figures


def nearest_of(rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as path:
        apart(written, path, questions_table(REVISION), rows, asked)
        built = apart(indexed, path)
        return {**built, **apart(read_nearest, path, rows)}


def indexed(path: str) -> dict[str, Any]:
    config = ResponseCacheConfig(path=path)
    store = CacheStore(config, Storage())
    start = time.perf_counter()
    built = build_index(store.open(questions_table(REVISION)))
    seconds = time.perf_counter() - start
    tend(store, config)
    return {
        "index_build_s": round(seconds, 1) if built else None,
        "build_peak_mib": round(peak() / 2**20),
        "disk_mib": round(store.bytes_on_disk(questions_table(REVISION)) / 2**20),
    }


def read_nearest(path: str, rows: int) -> dict[str, Any]:
    opened(f"{path}/none")
    before = resident()
    reader = opened(path)
    kept = resident() - before
    seconds, found = [], 0
    for round_ in range(_ROUNDS + 1):
        numbers, queries = some_queries(rows, round_)
        start = time.perf_counter()
        candidates = []
        for at in range(0, len(queries), _ASKED_AT_ONCE):
            part = queries[at : at + _ASKED_AT_ONCE]
            candidates += reader.nearest([SCOPE] * len(part), part, AT_LEAST, 4)
        seconds.append(time.perf_counter() - start)
        found += sum(
            key(number).hex() in {candidate.request_key for candidate in some}
            for number, some in zip(numbers, candidates, strict=True)
        )
    return {
        "query_ms": round(1000 * statistics.median(seconds[1:]) / _ROUND_QUERIES, 3),
        "first_round_query_ms": round(1000 * seconds[0] / _ROUND_QUERIES, 3),
        "recall": round(found / (_ROUNDS + 1) / _ROUND_QUERIES, 4),
        "bytes_per_question": round(kept / rows, 1),
        "resident_after_mib": round(resident() / 2**20),
    }


def some_queries(rows: int, seed: int) -> tuple[list[int], np.ndarray]:
    """Entries' numbers and a disturbed vector of each, spread over all that were written."""
    parts = range(0, rows, _WRITTEN_AT_ONCE)
    share = -(-_ROUND_QUERIES // len(parts))
    rng = np.random.default_rng(1000 + seed)
    numbers: list[int] = []
    vectors = []
    for first in parts:
        size = min(_WRITTEN_AT_ONCE, rows - first)
        at = rng.choice(size, share, replace=False)
        numbers += (first + at).tolist()
        vectors.append(unit_vectors(first, size)[at])
    order = rng.permutation(len(numbers))[:_ROUND_QUERIES]
    return [numbers[i] for i in order], disturbed(np.concatenate(vectors)[order], seed)


def opened(path: str) -> ResponseCache:
    return ResponseCache(ResponseCacheConfig(path=path), Storage(), print, REVISION)


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(task: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a process of its own, whose memory nobody else filled."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(task, arguments)


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "exact": exact,
    "semantic": semantic,
    "nearest": nearest,
}


def lines(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from ((f"{name} {inner}", text) for inner, text in lines(value))
        else:
            yield str(name), f"{value:,}" if isinstance(value, int | float) else str(value)


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Only these.")
@click.option("--rows", default=1_000_000, show_default=True, help="Entries, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(parts: tuple[str, ...], rows: int, as_json: bool) -> None:
    """Measure the response cache."""
    figures: dict[str, Any] = {}
    for part in parts or PARTS:
        figures |= PARTS[part](rows)
    if as_json:
        click.echo(json.dumps(figures))
        return
    table = Table("figure", "value")
    for name, value in lines(figures):
        table.add_row(name, value)
    Console().print(table)


if __name__ == "__main__":
    main()
