"""Whatever happens to the response cache, answers are right or missing (invariant 6)."""

import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cached import (
    KEYS,
    REVISION,
    SCOPE,
    entries,
    filled,
    opened,
    questions,
    unit_vectors,
)

from actors.cache_care import tend
from actors.cache_check import cache_stats, damaged_rows
from actors.cache_repair import compact
from actors.cache_store import CacheStore
from actors.cache_writer import CacheWriter
from pipelines.cache_entries import RESPONSES, questions_table
from pipelines.config import ResponseCacheConfig, Storage

VECTORS = unit_vectors(len(KEYS))
KILLS = int(os.environ.get("NIGHTMILL_CACHE_KILLS", "8"))
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def config(tmp_path: Path) -> ResponseCacheConfig:
    return ResponseCacheConfig(path=str(tmp_path / "cache"))


@pytest.fixture
def warnings() -> list[str]:
    return []


def store(config: ResponseCacheConfig) -> CacheStore:
    return CacheStore(config, Storage())


def write_slowly(path: str, slices: list[tuple[int, int]]) -> None:
    """A writer of its own that flushes after every few entries and is never closed."""
    writer = CacheWriter(ResponseCacheConfig(path=path), Storage(), print, REVISION)
    for first, last in slices:
        keys = KEYS[first:last]
        writer.append(entries(keys, scope=SCOPE), questions(keys, VECTORS[first:last]))
        writer.flush()


def test_eight_writers_at_once_leave_no_duplicates(config: ResponseCacheConfig) -> None:
    slices = [(at, at + 100) for at in range(0, 300, 100)]
    with ThreadPoolExecutor(8) as clients:
        list(clients.map(lambda _: write_slowly(config.path, slices), range(8)))
    for name in (RESPONSES, questions_table(REVISION)):
        table = store(config).open(name)
        stored = table.search().select(["request_key"]).to_arrow()["request_key"].to_pylist()
        assert sorted(key.hex() for key in stored) == KEYS


def test_readers_are_not_disturbed_by_care(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, (entries(KEYS[:99]), questions(KEYS[:99], VECTORS[:99])))
    done = threading.Event()

    def read() -> int:
        reader, reads = opened(config, warnings), 0
        while not done.is_set() or not reads:
            assert set(reader.recall(KEYS[:99])) == set(KEYS[:99])
            found = reader.nearest([SCOPE] * 99, VECTORS[:99], 0.98, 1)
            assert [some[0].request_key for some in found] == KEYS[:99]
            reader.refresh()
            reads += 1
        return reads

    with ThreadPoolExecutor(3) as readers:
        reads = [readers.submit(read) for _ in range(3)]
        writer = CacheWriter(config, Storage(), warnings.append, REVISION)
        for at in range(99, 300, 20):
            keys = KEYS[at : at + 20]
            writer.append(entries(keys), questions(keys, VECTORS[at : at + 20]))
            writer.flush()
            tend(store(config), config)
        done.set()
        assert all(read.result() for read in reads)
    assert not warnings


def test_flipped_bits_give_a_miss_or_the_right_answer(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, (entries(KEYS), questions(KEYS, VECTORS)))
    files = [f for f in Path(config.path).rglob("*") if f.is_file()]
    rng = random.Random(5)
    hits = 0
    for _ in range(120):
        file = rng.choices(files, [f.stat().st_size for f in files])[0]
        sound = file.read_bytes()
        at = rng.randrange(len(sound))
        flipped = bytes([sound[at] ^ (1 << rng.randrange(8))])
        file.write_bytes(sound[:at] + flipped + sound[at + 1 :])
        reader = opened(config, warnings)
        answers = reader.recall(KEYS)
        assert all(a.response == f"answer {key}" for key, a in answers.items())
        found = reader.nearest([SCOPE] * 300, VECTORS, 0.98, 1)
        for key, candidates in zip(KEYS, found, strict=True):
            assert [c.question for c in candidates] in ([], [f"question {key}"])
            assert [c.request_key for c in candidates] in ([], [key])
        hits += len(answers)
        file.write_bytes(sound)
    assert hits > 100 * 300


def test_a_killed_writer_leaves_whole_entries(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    slices = [(at, at + 3) for at in range(0, 300, 3)]
    rng = random.Random(7)
    before = 0
    for _ in range(KILLS):
        writer = SPAWN.Process(target=write_slowly, args=(config.path, slices))
        writer.start()
        deadline = time.monotonic() + 60
        while answers(config) <= before and before < 300 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        before = answers(config)
        for name in store(config).names():
            assert damaged_rows(name, store(config).open(name)) == []
    assert before
    filled(config, warnings, (entries(KEYS), questions(KEYS, VECTORS)))
    assert set(opened(config, warnings).recall(KEYS)) == set(KEYS)
    assert not warnings


def answers(config: ResponseCacheConfig) -> int:
    table = store(config).open(RESPONSES)
    return table.count_rows() if table is not None else 0


@pytest.mark.parametrize("torn", ["_versions/*.manifest", "data/*.lance"])
def test_after_a_torn_file_the_next_entries_are_kept_and_compacting_mends(
    config: ResponseCacheConfig, warnings: list[str], torn: str
) -> None:
    """What the torn file did not hold is served again."""
    write_slowly(config.path, [(0, 90), (90, 95)])
    for name in (RESPONSES, questions_table(REVISION)):
        files = Path(config.path, f"{name}.lance").glob(torn)
        newest = max(files, key=lambda f: f.stat().st_mtime_ns)
        newest.write_bytes(newest.read_bytes()[:40])
    reader = opened(config, warnings)
    assert reader.recall(KEYS) == {}
    assert reader.nearest([SCOPE], VECTORS[:1], 0.98, 1) == [[]]
    assert len(warnings) == 1
    filled(config, warnings, (entries(KEYS[100:]), questions(KEYS[100:], VECTORS[100:])))
    assert ["quarantine" in warning for warning in warnings] == [False, True, True]
    assert set(opened(config, warnings).recall(KEYS)) == set(KEYS[100:])
    assert compact(store(config), config).brought_back == 180
    reader = opened(config, warnings)
    kept = KEYS[:90] + KEYS[100:]
    assert set(reader.recall(KEYS)) == set(kept)
    found = reader.nearest([SCOPE] * 300, VECTORS, 0.98, 1)
    assert [c.request_key for some in found for c in some] == kept
    assert store(config).quarantined() == []
    assert len(warnings) == 3


def test_compacting_drops_damaged_entries_and_keeps_the_rest(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, (entries(KEYS[:9]), questions(KEYS[:9], VECTORS[:9])))
    for name, column in ((RESPONSES, "response"), (questions_table(REVISION), "question")):
        table = store(config).open(name)
        table.update(where=f"request_key = X'{KEYS[4]}'", values={column: "tampered"})
    assert [table.damaged for table in cache_stats(store(config)).tables] == [1, 1]
    assert compact(store(config), config).dropped == 2
    assert [table.damaged for table in cache_stats(store(config)).tables] == [0, 0]
    assert set(opened(config, warnings).recall(KEYS)) == set(KEYS[:4] + KEYS[5:9])


def test_a_place_out_of_reach_breaks_no_table(
    config: ResponseCacheConfig, warnings: list[str], tmp_path: Path
) -> None:
    """A server that does not answer must not cost the cache what it holds."""
    away = Storage(endpoint_url="http://127.0.0.1:9", region="us-east-1")
    writer = CacheWriter(
        config.model_copy(update={"path": str(tmp_path / "file" / "cache")}), away, warnings.append
    )
    (tmp_path / "file").write_text("not a folder")
    for at in range(5):
        writer.append(entries(KEYS[at : at + 1]))
        writer.flush()
    writer.close()
    assert len(warnings) == 1
    assert "writing failed" in warnings[0]


def test_a_reader_of_a_cache_that_vanished_misses_with_one_warning(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, entries(KEYS[:9]))
    reader = opened(config, warnings)
    shutil.rmtree(config.path)
    assert reader.recall(KEYS) == reader.recall(KEYS) == {}
    assert len(warnings) == 1
    reader.refresh()
    assert reader.recall(KEYS) == {}
