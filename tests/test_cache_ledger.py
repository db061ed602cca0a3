from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from actors.audit import Audit
from actors.cache_evidence import EvidenceStore
from actors.hit_bounds import HitBounds
from pipelines.cache_ledger import (
    LEDGER_COLUMNS,
    evidence_by_group,
    evidence_of_rows,
    evidence_table,
    merged,
    not_served_now,
    report,
    served_by_group,
)
from pipelines.config import ResponseCacheConfig, Semantic, Storage
from pipelines.schema import RESULT
from pipelines.wrong_hits import LEVELS, Evidence, evidence_of

DAY = timedelta(days=1)
NOW = datetime(2026, 11, 25, tzinfo=UTC)
CLEAN = evidence_of([(0.99, False)] * 400, LEVELS)


def rows(*some: dict[str, Any]) -> pa.Table:
    schema = pa.schema([RESULT.field(name) for name in LEDGER_COLUMNS])
    return pa.Table.from_pylist([{"cache_group": "g", **row} for row in some], schema)


def hit(row: str, similarity: float, **more: Any) -> dict[str, Any]:
    fields = {"source": "cache_semantic", "cache_entry": "e", "similarity": similarity}
    return {"row_id": row, **fields, **more}


def test_evidence_of_a_run_is_what_its_rows_say() -> None:
    audited = {"source": "generated", "cache_audit": "agree"}
    table = rows(
        hit("a", 0.982),
        hit("b", 0.982, **audited),
        hit("c", 0.996, **{**audited, "cache_audit": "differ"}),
        hit("d", 0.991, **audited, cache_group="h"),
        {"row_id": "e", "source": "generated"},
    )
    assert evidence_of_rows(table, LEVELS) == {
        "g": evidence_of([(0.982, False), (0.996, True)], LEVELS),
        "h": evidence_of([(0.991, False)], LEVELS),
    }
    assert served_by_group(table) == {"g": 1}


def test_hits_that_would_not_be_served_now_are_listed_with_their_repeats() -> None:
    table = rows(
        hit("low", 0.982),
        hit("high", 0.996),
        hit("repeat", 0.982, source="duplicate"),
        hit("closed", 1.0, cache_group="h"),
        hit("audited", 0.982, source="generated"),
        {"row_id": "other", "source": "duplicate"},
    )
    listed = not_served_now(table, {"g": 0.99, "h": None})
    assert listed["row_id"].to_pylist() == ["low", "repeat", "closed"]


def test_a_report_bounds_what_is_served_by_all_evidence() -> None:
    own = evidence_of([(0.99, False)] * 30, LEVELS)
    line = report("g", 7, own, merged({"g": own}, {"g": CLEAN})["g"], 0.01, 0.95, 0)
    assert (line.served, line.audited, line.wrong) == (7, 30, 0)
    assert line.threshold == 0.98
    assert 0 < line.bound < 0.01
    alone = report("g", 7, own, own, 0.01, 0.95, 7)
    assert alone.threshold is None
    assert alone.bound > 0.01


def test_recorded_evidence_adds_up_over_runs_and_is_void_before_a_change() -> None:
    first = evidence_table({"g": CLEAN, "h": CLEAN}, [], NOW)
    second = evidence_table({"g": CLEAN}, ["g"], NOW + DAY)
    third = evidence_table({"g": CLEAN}, [], NOW + 2 * DAY)
    found = evidence_by_group([third, first, second], LEVELS)
    assert found == {"g": CLEAN + CLEAN, "h": CLEAN}


def test_evidence_at_other_levels_counts_for_what_it_can_show() -> None:
    table = evidence_table(
        {"g": evidence_of([(0.96, False), (0.992, True)], (0.95, 0.99))}, [], NOW
    )
    assert evidence_by_group([table], LEVELS) == {"g": evidence_of([(0.99, True)], LEVELS)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EvidenceStore]:
    warnings: list[str] = []
    cache = ResponseCacheConfig(path=str(tmp_path / "cache"))
    yield EvidenceStore(cache, Storage(), "rule", warnings.append)
    assert not warnings


def test_a_run_is_recorded_once_and_does_not_see_itself(store: EvidenceStore) -> None:
    table = evidence_table({"g": CLEAN}, [], NOW)
    store.record("one", table)
    store.record("one", table)
    assert store.earlier(LEVELS, "two") == {"g": CLEAN}
    assert store.earlier(LEVELS, "one") == {}


def test_evidence_that_cannot_be_read_is_none_and_said_so(tmp_path: Path) -> None:
    warnings: list[str] = []
    cache = ResponseCacheConfig(path=str(tmp_path))
    store = EvidenceStore(cache, Storage(), "rule", warnings.append)
    store.record("one", evidence_table({"g": CLEAN}, [], NOW))
    next(tmp_path.rglob("*.parquet")).write_bytes(b"torn")
    assert store.earlier(LEVELS, "two") == {}
    assert len(warnings) == 1


def bounds(earlier: dict[str, Evidence]) -> HitBounds:
    return HitBounds(Semantic(embedder="none"), lambda: earlier)


def audits(count: int, wrong: bool, prefix: str = "r") -> list[Audit]:
    return [Audit(f"{prefix}{i}", "g", 0.99, wrong) for i in range(count)]


def test_a_group_opens_with_its_evidence_and_not_before() -> None:
    known = bounds({})
    known.add(audits(300, wrong=False))
    assert known.thresholds(["g", "h"]) == {"g": None, "h": None}
    known.add(audits(400, wrong=False))
    assert known.thresholds(["g", "h"]) == {"g": 0.98, "h": None}


def test_an_audit_that_is_reported_again_counts_once() -> None:
    known = bounds({})
    for _ in range(2):
        known.add(audits(300, wrong=False))
    assert known.thresholds(["g"]) == {"g": None}


def test_a_group_whose_hits_turn_wrong_closes_and_what_was_before_is_void() -> None:
    known = bounds({"g": evidence_of([(0.99, False)] * 50_000, LEVELS)})
    assert known.thresholds(["g"]) == {"g": 0.98}
    known.add(audits(10, wrong=True))
    assert known.thresholds(["g"]) == {"g": None}
    assert sum(known.voided()["g"].audited) < 10
