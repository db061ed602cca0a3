"""Evidence in a run, and between runs."""

from pathlib import Path

import pyarrow as pa
import pytest

from actors.audit import Audit
from actors.cache_evidence import EvidenceStore
from actors.hit_bounds import HitBounds
from pipelines.cache_ledger import Account, Terms, evidence_lines
from pipelines.config import ResponseCacheConfig, Storage
from pipelines.wrong_hits import LEVELS, Evidence, Group, audits_needed, levels_from

TERMS = Terms(0.01, 0.95, LEVELS)
NONE = Evidence.none(LEVELS)
CLEAN = NONE.count(2, 500, 0)


def audits(count: int, wrong: bool) -> list[Audit]:
    return [Audit(f"{wrong}{i}", "g", 0.99, wrong) for i in range(count)]


def bounds(evidence: Evidence = NONE) -> HitBounds:
    return HitBounds(TERMS, {"g": Group(evidence)})


def test_a_group_opens_with_its_evidence_and_not_before() -> None:
    needed = audits_needed(TERMS.limit, TERMS.confidence, LEVELS)
    known = bounds()
    known.add(audits(needed - 1, wrong=False))
    assert known.thresholds(["g", "h"]) == {"g": None, "h": None}
    known.add([Audit("one more", "g", 0.985, wrong=False)])
    assert known.thresholds(["g", "h"]) == {"g": 0.98, "h": None}


def test_an_audit_that_is_reported_again_counts_once() -> None:
    known = bounds()
    for _ in range(2):
        known.add(audits(300, wrong=False))
    assert known.thresholds(["g"]) == {"g": None}


def test_a_group_whose_hits_turn_wrong_closes_whatever_was_before() -> None:
    known = bounds(NONE.count(2, 50_000, 0))
    assert known.thresholds(["g"]) == {"g": 0.98}
    known.add(audits(10, wrong=True))
    assert known.thresholds(["g"]) == {"g": None}


def test_candidates_that_begin_lower_need_evidence_as_all_others() -> None:
    levels = levels_from(0.9)
    assert levels == (0.9, *LEVELS)
    known = HitBounds(Terms(0.01, 0.95, levels), {})
    assert known.thresholds(["g"]) == {"g": None}


def lines(evidence: Evidence, run_id: str) -> pa.Table:
    return evidence_lines({"g": Account(NONE, Group(evidence))}, run_id)


def store(folder: Path, warnings: list[str], rule: str = "rule") -> EvidenceStore:
    return EvidenceStore(ResponseCacheConfig(path=str(folder)), Storage(), rule, warnings.append)


def test_a_run_is_recorded_once_and_does_not_see_itself(tmp_path: Path) -> None:
    warnings: list[str] = []
    kept = store(tmp_path, warnings)
    for _ in range(2):
        kept.record("one", lines(CLEAN, "one"))
    kept.record("two", lines(CLEAN, "two"))
    assert kept.of_other_runs(LEVELS, "three") == {"g": CLEAN + CLEAN}
    assert kept.of_other_runs(LEVELS, "one") == {"g": CLEAN}
    assert not warnings


def test_evidence_of_another_rule_is_none(tmp_path: Path) -> None:
    warnings: list[str] = []
    store(tmp_path, warnings).record("one", lines(CLEAN, "one"))
    assert store(tmp_path, warnings, "other").of_other_runs(LEVELS, "two") == {}
    assert not warnings


@pytest.mark.parametrize("damage", [b"torn", b""])
def test_evidence_that_cannot_be_read_serves_nothing_and_is_said(
    tmp_path: Path, damage: bytes
) -> None:
    warnings: list[str] = []
    kept = store(tmp_path, warnings)
    kept.record("one", lines(CLEAN, "one"))
    next(tmp_path.rglob("*.parquet")).write_bytes(damage)
    assert kept.of_other_runs(LEVELS, "two") == {}
    assert len(warnings) == 1
