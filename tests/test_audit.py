from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
import ray
from blocks import block

from actors.audit import Audit, Auditor
from actors.hit_bounds import HitBounds
from actors.in_flight import InFlight
from jobs.cache_hosts import AuditHost, Similarity
from pipelines.cache_ledger import Terms
from pipelines.config import ResponseCacheConfig, Semantic, Storage
from pipelines.gates import conflict
from pipelines.wrong_hits import LEVELS, Evidence, Group

A, B, C = "aa" * 16, "bb" * 16, "cc" * 16


def answered(key: str, response: str, **more: Any) -> dict[str, Any]:
    return {
        "row_id": f"row {key[:2]}",
        "request_key": key,
        "status": "ok",
        "source": "generated",
        "response": response,
        "finish_reason": "stop",
        "_scope": b"s" * 16,
        **more,
    }


def candidate(entry: str, **more: Any) -> dict[str, Any]:
    return {"cache_entry": entry, "cache_group": "g", "similarity": 0.5, **more}


class Run:
    """What an auditor hears and says in one run."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known, self.told, self.audits = known, dict[str, str](), list[Audit]()

    def audit(self, *rows: dict[str, Any]) -> list[str | None]:
        def equal(pairs: Sequence[tuple[str, str]]) -> list[bool]:
            return [a == b for a, b in pairs]

        def known(keys: Sequence[str]) -> dict[str, str]:
            return {key: self.known[key] for key in keys if key in self.known}

        auditor = Auditor(equal, self.audits.extend, known, self.told.update)
        table: pa.Table = auditor.audit(block("0", rows))
        verdicts: list[str | None] = table["cache_audit"].to_pylist()
        return verdicts


def test_a_fresh_answer_is_compared_with_the_one_that_the_row_would_have_got() -> None:
    run = Run({})
    verdicts = run.audit(
        answered(A, "4", **candidate(C), _cached="4"),
        answered(B, "5", **candidate(C), _cached="4"),
    )
    assert verdicts == ["agree", "differ"]
    assert run.audits == [Audit("row aa", "g", 0.5, False), Audit("row bb", "g", 0.5, True)]


def test_a_row_of_this_run_is_compared_in_its_block_or_when_its_answer_is_known() -> None:
    run = Run({C: "3"})
    verdicts = run.audit(
        answered(A, "4"),
        answered(B, "4", **candidate(A)),
        answered("dd" * 16, "4", **candidate(C)),
        answered("ee" * 16, "4", **candidate("ff" * 16)),
    )
    assert verdicts == [None, "agree", "differ", None]
    assert run.told[A] == "4"


def test_what_is_incomplete_or_was_served_is_not_compared() -> None:
    run = Run({})
    verdicts = run.audit(
        answered(A, "4", **candidate(C), _cached="5", finish_reason="length"),
        answered(B, "4", **candidate(C), _cached="5", source="cache_semantic"),
        answered(C, "4", **candidate(A), _cached="5", status="error"),
    )
    assert verdicts == [None] * 3
    assert run.audits == []
    assert run.told == {}


@pytest.mark.usefixtures("ray_here")
def test_a_run_goes_on_without_audits_and_serves_nothing_similar_any_more() -> None:
    terms = Terms(0.01, 0.95, LEVELS)
    groups = {"g": Group(Evidence.none().count(0, 500, 0))}
    bounds = ray.remote(HitBounds).remote(terms, groups)
    in_flight = ray.remote(InFlight).remote(conflict, 0.98)
    semantic = Semantic(embedder="none", agreement="exact")
    cache = ResponseCacheConfig(path="none")
    similarity = Similarity(cache, Storage(), semantic, "", b"", (), {}, bounds, in_flight, "run")
    warnings: list[str] = []
    host = AuditHost(similarity, warnings.append)
    assert ray.get(bounds.thresholds.remote(["g"])) == {"g": 0.98}
    ray.kill(in_flight)
    rows = block("0", [answered(A, "4", **candidate(C))])
    for _ in range(2):
        assert host(rows) is rows
    assert ray.get(bounds.thresholds.remote(["g"])) == {"g": None}
    assert len(warnings) == 1
    assert "no similar answer is served any more" in warnings[0]
