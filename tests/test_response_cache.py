from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest
from cached import KEYS, NOW, entries, filled, opened

from actors.cache_writer import CacheWriter
from actors.recall import recall_rows
from pipelines.cache_admission import admissible
from pipelines.cache_entries import ENTRY, RESPONSES
from pipelines.config import ResponseCacheConfig, Storage
from pipelines.schema import BEYOND_TEXT, empty_columns, patch


@pytest.fixture
def config(tmp_path: Path) -> ResponseCacheConfig:
    return ResponseCacheConfig(path=str(tmp_path / "cache"))


@pytest.fixture
def warnings() -> list[str]:
    return []


def stored(config: ResponseCacheConfig) -> Any:
    return lancedb.connect(config.path).open_table(RESPONSES)


def test_what_one_run_wrote_the_next_recalls(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, entries(KEYS[:200]), entries(KEYS[100:250]))
    found = opened(config, warnings).recall(KEYS)
    assert set(found) == set(KEYS[:250])
    assert all(answer.response == f"answer {key}" for key, answer in found.items())
    assert not warnings


def test_a_key_is_written_once_and_its_first_answer_stays(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    twice = pa.concat_tables([entries(KEYS[:2]), entries(KEYS[:2], "second")])
    filled(config, warnings, twice)
    filled(config, warnings, entries(KEYS[:3], "later"))
    assert stored(config).count_rows() == 3
    found = opened(config, warnings).recall(KEYS[:2])
    assert all(answer.response.startswith("answer") for answer in found.values())


def test_a_reader_is_not_disturbed_by_a_writer_that_compacts(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, entries(KEYS[:50]))
    reader = opened(config, warnings)
    for i in range(50, 300, 50):
        filled(config, warnings, entries(KEYS[i : i + 50]))
    assert set(reader.recall(KEYS)) == set(KEYS[:50])
    assert set(opened(config, warnings).recall(KEYS)) == set(KEYS)


def test_a_refreshed_reader_sees_what_was_written_since(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, entries(KEYS[:50]))
    reader = opened(config, warnings)
    # Also in the second half of the test, where the table was compacted and has deletions.
    for i in range(50, 300, 50):
        filled(config, warnings, entries(KEYS[i : i + 50]))
        stored(config).delete(f"request_key = X'{KEYS[i]}'")
        reader.refresh()
        gone = {KEYS[j] for j in range(50, i + 1, 50)}
        assert set(reader.recall(KEYS)) == set(KEYS[: i + 50]) - gone
    assert not warnings


def test_a_reader_follows_to_the_table_that_replaced_a_broken_one(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, entries(KEYS[:9]))
    reader = opened(config, warnings)
    lancedb.connect(config.path).drop_table(RESPONSES)
    reader.refresh()
    assert reader.recall(KEYS) == {}
    # As many versions and rows as before, with other keys in their places.
    filled(config, warnings, entries(KEYS[9:18]))
    reader.refresh()
    assert set(reader.recall(KEYS)) == set(KEYS[9:18])


def test_answers_expire(config: ResponseCacheConfig, warnings: list[str]) -> None:
    config = config.model_copy(update={"ttl_days": 2.0})
    now = datetime.now(UTC)
    old, young = (entries(KEYS[i : i + 1], created_at=now - timedelta(days=1 + i)) for i in (1, 0))
    writer = CacheWriter(config, Storage(), warnings.append)
    writer.append(pa.concat_tables([old, young]))
    writer.flush()
    assert stored(config).count_rows() == 2
    assert set(opened(config, warnings).recall(KEYS)) == {KEYS[0]}
    writer.close()
    assert stored(config).count_rows() == 1


def test_the_oldest_answers_leave_a_full_cache(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    config = config.model_copy(update={"max_entries": 30})
    for i in (2, 0, 1):
        when = NOW + timedelta(hours=i)
        filled(config, warnings, entries(KEYS[20 * i : 20 * i + 20], created_at=when))
    kept = set(opened(config, warnings).recall(KEYS))
    assert len(kept) == 30
    assert set(KEYS[40:60]) <= kept <= set(KEYS[20:60])


def test_an_empty_cache_is_all_misses_without_a_warning(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    assert opened(config, warnings).recall(KEYS) == {}
    assert not warnings


@pytest.mark.parametrize("column", ["response", "finish_reason", "tier"])
def test_a_damaged_entry_is_a_miss(
    config: ResponseCacheConfig, warnings: list[str], column: str
) -> None:
    """Invariant 6: never a wrong answer."""
    filled(config, warnings, entries(KEYS[:3]))
    stored(config).update(where=f"request_key = X'{KEYS[1]}'", values={column: "tampered"})
    assert set(opened(config, warnings).recall(KEYS)) == {KEYS[0], KEYS[2]}
    assert "damaged" in warnings[0]


def test_an_unusable_cache_is_all_misses_and_its_writer_starts_anew(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, entries(KEYS[:3]))
    for manifest in Path(config.path).rglob("*.manifest"):
        manifest.write_bytes(b"torn")
    assert opened(config, warnings).recall(KEYS) == {}
    filled(config, warnings, entries(KEYS[3:6]))
    assert len(warnings) == 2
    assert "unusable" in warnings[0]
    assert "moved to quarantine/responses-" in warnings[1]
    assert set(opened(config, warnings).recall(KEYS)) == set(KEYS[3:6])


def test_another_schema_version_is_refused(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    schema = ENTRY.with_metadata({"nightmill.response_cache": "99"})
    lancedb.connect(config.path).create_table(RESPONSES, entries(KEYS[:1]).cast(schema))
    assert opened(config, warnings).recall(KEYS) == {}
    assert "schema '99'" in warnings[0]


def block(**columns: list[Any]) -> pa.Table:
    rows = len(next(iter(columns.values())))
    return patch(pa.table(empty_columns(rows)), range(rows), columns)


def test_only_rows_that_one_answer_may_serve_are_recalled(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    filled(config, warnings, entries(KEYS[:3]))
    table = block(
        request_key=[*KEYS[:3], KEYS[9]],
        _shareable=[True, False, True, True],
        source=[None, None, "duplicate", None],
    )
    recalled = recall_rows(table, opened(config, warnings))
    assert recalled["source"].to_pylist() == ["cache_exact", None, "duplicate", None]
    assert recalled["response"].to_pylist()[0] == f"answer {KEYS[0]}"


def test_a_block_without_open_rows_passes(config: ResponseCacheConfig, warnings: list[str]) -> None:
    table = block(source=["duplicate"], request_key=[KEYS[0]], _shareable=[True])
    assert recall_rows(table, opened(config, warnings)) is table


def test_no_hit_lacks_what_the_first_answer_had(
    config: ResponseCacheConfig, warnings: list[str]
) -> None:
    """Whatever an answer holds, a hit gives back the same; else the answer is not kept."""
    beyond: dict[str, list[Any]] = {name: [None] * 8 for name in BEYOND_TEXT.names}
    for row, name in enumerate(BEYOND_TEXT.names, 1):
        beyond[name][row] = [0.5] if name == "embedding" else "{}"
    columns: dict[str, list[Any]] = {
        "request_key": KEYS[:8],
        "status": ["ok"] * 8,
        "response": [*"abcdefg", None],
        "finish_reason": ["stop"] * 8,
        "prompt_tokens": [5] * 8,
        "completion_tokens": [3] * 8,
        "tier": ["only"] * 8,
        "model": ["m"] * 8,
        **beyond,
    }
    first = block(**columns, source=["generated"] * 8, _shareable=[True] * 8)
    filled(config, warnings, admissible(first, NOW)[0])
    asked = block(request_key=KEYS[:8], _shareable=[True] * 8)
    again = recall_rows(asked, opened(config, warnings))
    hits = [i for i, source in enumerate(again["source"].to_pylist()) if source == "cache_exact"]
    assert hits == [0]
    for name in columns:
        assert again[name].take(hits).to_pylist() == first[name].take(hits).to_pylist(), name


def test_only_own_complete_deterministic_answers_are_admitted() -> None:
    table = block(
        request_key=KEYS[:5],
        row_id=list("abcde"),
        status=["ok", "error", "ok", "ok", "pending"],
        source=["generated", None, "cache_exact", "generated", None],
        response=["x"] * 5,
        finish_reason=["stop"] * 5,
        _shareable=[True, True, True, False, True],
    )
    entries, questions = admissible(table, NOW)
    assert entries["row_id"].to_pylist() == ["a"]
    assert questions is None
