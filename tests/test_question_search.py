import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cached import (
    DIMENSIONS,
    KEYS,
    OTHER_SCOPE,
    REVISION,
    SCOPE,
    entries,
    filled,
    opened,
    questions,
    unit_vectors,
)

import actors.cache_care
import actors.question_search
import pipelines.cache_index
from actors.cache_care import tend
from actors.cache_places import Places
from actors.cache_store import CacheStore
from pipelines.cache_entries import question_schema, questions_table
from pipelines.cache_index import index_work
from pipelines.config import ResponseCacheConfig, Storage

VECTORS = unit_vectors(len(KEYS))


@pytest.fixture
def config(tmp_path: Path) -> ResponseCacheConfig:
    return ResponseCacheConfig(path=str(tmp_path / "cache"))


@pytest.fixture
def warnings() -> list[str]:
    return []


def near(vectors: np.ndarray, similarity: float, seed: int = 9) -> np.ndarray:
    """For each vector one at this similarity to it."""
    aside = unit_vectors(len(vectors), seed, vectors.shape[1])
    aside -= (aside * vectors).sum(1, keepdims=True) * vectors
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    return similarity * vectors + np.sqrt(1 - similarity**2) * aside


def asked(keys: list[str], scope: bytes = SCOPE) -> tuple[pa.Table, pa.Table]:
    numbers = [KEYS.index(key) for key in keys]
    return entries(keys, scope=scope), questions(keys, VECTORS[numbers], scope)


def test_a_similar_question_of_the_same_scope_is_proposed(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, asked(KEYS[:200]))
    found = opened(config, warnings).nearest([SCOPE] * 2, near(VECTORS[3:5], 0.985), 0.98, 3)
    for number, candidates in zip((3, 4), found, strict=True):
        assert [c.request_key for c in candidates] == [KEYS[number]]
        assert candidates[0].question == f"question {KEYS[number]}"
        assert candidates[0].similarity == pytest.approx(0.985, abs=1e-3)
    assert not warnings


def test_candidates_stand_best_first_and_reach_the_bar(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    base = unit_vectors(1)
    bars = (0.97, 0.999, 0.981, 0.99, 0.979)
    alike = np.concatenate([near(base, bar, seed) for seed, bar in enumerate(bars, 1)])
    filled(config, warnings, (entries(KEYS[:5]), questions(KEYS[:5], alike)))
    reader = opened(config, warnings)
    assert [c.request_key for c in reader.nearest([SCOPE], base, 0.98, 9)[0]] == [
        KEYS[1], KEYS[3], KEYS[2]
    ]  # fmt: skip
    assert [c.request_key for c in reader.nearest([SCOPE], base, 0.98, 1)[0]] == [KEYS[1]]


@pytest.mark.parametrize("indexed", [False, True])
def test_nothing_is_found_across_scopes(
    config: ResponseCacheConfig,
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    indexed: bool,
) -> None:
    if indexed:
        small_index(monkeypatch)
    filled(config, warnings, asked(KEYS[:200]), asked(KEYS[200:], OTHER_SCOPE))
    reader = opened(config, warnings)
    scopes = [SCOPE] * 300 + [OTHER_SCOPE] * 300
    found = reader.nearest(scopes, np.concatenate([VECTORS, VECTORS]), 0.98, 3)
    own = [[KEYS[i]] if i < 200 else [] for i in range(300)]
    other = [[] if i < 200 else [KEYS[i]] for i in range(300)]
    assert [[c.request_key for c in some] for some in found] == own + other
    assert reader.nearest([b"x" * 16], VECTORS[:1], 0.98, 3) == [[]]
    assert not warnings


def small_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes and scopes as in a big cache, at a hundredth of its size."""
    monkeypatch.setattr(actors.question_search, "EXACT_ROWS", 20)
    monkeypatch.setattr(pipelines.cache_index, "EXACT_ROWS", 20)
    monkeypatch.setattr(pipelines.cache_index, "_INDEX_FROM", 100)
    monkeypatch.setattr(pipelines.cache_index, "_ROWS_PER_PARTITION", 50)


def test_what_the_index_lacks_is_found_too(
    config: ResponseCacheConfig, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_index(monkeypatch)
    filled(config, warnings, asked(KEYS[:200]))
    reader = opened(config, warnings)
    table = CacheStore(config, Storage()).open(questions_table(REVISION))
    assert actors.cache_care.index_state(table) == (4, 0)
    monkeypatch.setattr(actors.cache_writer, "tend", lambda *_: None)
    filled(config, warnings, asked(KEYS[200:]))
    reader.refresh()
    table.checkout_latest()
    assert actors.cache_care.index_state(table) == (4, 100)
    found = reader.nearest([SCOPE] * 300, near(VECTORS, 0.99), 0.98, 1)
    assert [[c.request_key for c in some] for some in found] == [[key] for key in KEYS]
    assert not warnings


def test_a_damaged_question_is_not_proposed(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, asked(KEYS[:3]))
    table = CacheStore(config, Storage()).open(questions_table(REVISION))
    table.update(where=f"request_key = X'{KEYS[1]}'", values={"question": "tampered"})
    table.update(where=f"request_key = X'{KEYS[2]}'", values={"scope": OTHER_SCOPE})
    reader = opened(config, warnings)
    found = reader.nearest([SCOPE, SCOPE, OTHER_SCOPE], VECTORS[:3], 0.98, 1)
    assert [len(some) for some in found] == [1, 0, 0]


def test_questions_of_another_embedder_are_not_compared(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, asked(KEYS[:3]))
    from actors.response_cache import ResponseCache

    other = ResponseCache(config, Storage(), warnings.append, "ffffffffffff")
    assert other.nearest([SCOPE], VECTORS[:1], 0.98, 1) == [[]]
    assert not warnings


def test_expired_questions_are_not_proposed(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    now = datetime.now(UTC)
    for i in range(2):
        when = now - timedelta(days=i)
        part = questions(KEYS[i : i + 1], VECTORS[i : i + 1], created_at=when)
        filled(config, warnings, (entries(KEYS[i : i + 1], created_at=when), part))
    config = config.model_copy(update={"ttl_days": 0.5})
    found = opened(config, warnings).nearest([SCOPE] * 2, VECTORS[:2], 0.98, 1)
    assert [len(some) for some in found] == [1, 0]


def test_vectors_of_a_wrong_length_are_misses_with_one_warning(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, asked(KEYS[:3]))
    reader = opened(config, warnings)
    for _ in range(3):
        assert reader.nearest([SCOPE], unit_vectors(1, dimensions=8), 0.98, 1) == [[]]
    assert len(warnings) == 1


def test_a_scope_of_its_own_for_each_row_is_searched_in_one_read(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    """Template traffic: thousands of scopes of one entry each."""
    scopes = [i.to_bytes(16, "big") for i in range(300)]
    parts = [questions([KEYS[i]], VECTORS[i : i + 1], scopes[i]) for i in range(300)]
    filled(config, warnings, (entries(KEYS), pa.concat_tables(parts)))
    found = opened(config, warnings).nearest(scopes, VECTORS, 0.98, 2)
    assert [[c.request_key for c in some] for some in found] == [[key] for key in KEYS]
    elsewhere = [i.to_bytes(16, "big") for i in range(1000, 1300)]
    assert opened(config, warnings).nearest(elsewhere, VECTORS, 0.98, 2) == [[]] * 300


def test_places_are_found_after_any_order_of_joining() -> None:
    rng = np.random.default_rng(3)
    names = [bytes([i % 7, *range(15)]) for i in rng.integers(0, 99, 60)]
    places = Places()
    for at in range(0, 60, 13):
        part = names[at : at + 13]
        places = places.joined(b"".join(part), np.arange(at, at + len(part), dtype=np.uint64))
    begin, end = places.ranges(sorted(set(names)))
    for name, first, last in zip(sorted(set(names)), begin, end, strict=True):
        assert places.rows[first:last].tolist() == [i for i in range(60) if names[i] == name]


def test_caring_for_a_table_leaves_its_index_its_partitions(config: ResponseCacheConfig) -> None:
    """LanceDB joins those that it takes for too small, and searches then read every row."""
    rows, vectors = 40_960, unit_vectors(40_960, dimensions=8).astype(np.float16)
    schema = question_schema(8)
    columns = {name: [b"0" * 16] * rows for name in ("request_key", "scope", "digest")}
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8)
    moments = pa.array([datetime.now(UTC)] * rows, schema.field("created_at").type)
    given = {**columns, "question": ["q"] * rows, "vector": flat, "created_at": moments}
    store = CacheStore(config, Storage())
    name = questions_table(REVISION)
    table = store.open_or_create(name, schema)
    table.add(pa.table([given[field.name] for field in schema], schema=schema))
    for _ in range(2):
        tend(store, config)
    search = store.open(name).search(vectors[0], vector_column_name="vector")
    plan = search.fast_search().nprobes(1).limit(1).analyze_plan()
    assert "partitions_searched=1," in plan
    assert float(re.findall(r"index_comparisons=([\d.]+) K", plan)[0]) < 0.3 * rows / 1000


@pytest.mark.parametrize(
    ("rows", "partitions", "unindexed", "work"),
    [
        (32_767, 0, 32_767, "none"),
        (32_768, 0, 32_768, "build"),
        (100_000, 24, 8_192, "none"),
        (100_000, 24, 8_193, "extend"),
        (1_000_000, 244, 50_000, "none"),
        (1_000_000, 244, 50_001, "extend"),
        (131_072, 8, 0, "none"),
        (131_073, 8, 0, "build"),
    ],
)
def test_when_an_index_is_due(rows: int, partitions: int, unindexed: int, work: str) -> None:
    assert index_work(rows, partitions, unindexed) == work


def test_half_precision_moves_no_similarity_by_more_than_a_ten_thousandth() -> None:
    vectors = unit_vectors(400, dimensions=12 * DIMENSIONS)
    exact = vectors @ near(vectors, 0.98).T
    half = vectors.astype(np.float16).astype(np.float32) @ near(vectors, 0.98).T
    assert np.abs(exact - half).max() < 1e-4
