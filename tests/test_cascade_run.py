"""Whole runs in which several tiers work on a row."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import MakeConfig, tier

from jobs.batch import run
from jobs.summary import Summary

pytestmark = pytest.mark.usefixtures("ray_here")


def finished(config: Any) -> tuple[Summary, list[dict[str, Any]], list[dict[str, Any]]]:
    """The summary, the rows by id, and the lines of the bill."""
    summary = run(config)
    out = Path(config.output.path)
    rows = sorted(pq.read_table(out / "rows").to_pylist(), key=lambda row: row["row_id"])
    return summary, rows, pq.read_table(out / "bill.parquet").to_pylist()


def paid(lines: list[dict[str, Any]], row_id: str) -> list[tuple[str, int]]:
    return [(line["tier"], line["tokens"]) for line in lines if line["row_id"] == row_id]


def check_books(summary: Summary, rows: list[dict[str, Any]], lines: list[dict[str, Any]]) -> None:
    for row in rows:
        own = sum(line["cost_nusd"] for line in lines if line["row_id"] == row["row_id"])
        assert row["cost_usd"] == Decimal(own).scaleb(-9)
    assert sum(line["cost_nusd"] for line in lines) == summary.bill_nusd
    by_tier = sum(tier["cost_usd"] for tier in summary.by_tier.values())
    assert by_tier == pytest.approx(summary.bill_usd)


def test_a_cascade_accepts_escalates_and_bills_every_tier(make_config: MakeConfig) -> None:
    replies = [
        {"regex": "easy", "response": "sure", "confidence": 0.9},
        {"regex": "hard", "response": "perhaps", "confidence": 0.2},
        {"regex": "broken", "fails": "engine"},
    ]
    rows = [{"id": name, "prompt": f"{name} one"} for name in ("broken", "easy", "hard")]
    accept = [{"by": "confidence", "at_least": 0.5}]
    config = make_config(
        rows,
        tiers=[tier("strong"), tier("cheap", replies=replies)],
        route={
            "policy": "cascade",
            "steps": [{"tier": "cheap", "accept": accept}],
            "otherwise": "strong",
        },
        baseline="strong",
    )
    summary, (broken, easy, hard), lines = finished(config)
    assert [r["status"] for r in (broken, easy, hard)] == ["ok"] * 3
    assert (easy["tier"], easy["response"], easy["escalations"]) == ("cheap", "sure", 0)
    assert easy["token_logprobs"] is None
    assert "confidence 0.9" in easy["route_reason"]
    assert (hard["tier"], hard["response"], hard["escalations"]) == ("strong", "HARD ONE", 1)
    assert hard["route_score"] == pytest.approx(0.2)
    assert broken["tier"] == "strong"
    assert paid(lines, "easy") == [("cheap", 3)]
    assert paid(lines, "hard") == [("cheap", 3), ("strong", 4)]
    assert summary.escalated == 2
    check_books(summary, [broken, easy, hard], lines)


def test_agreement_and_a_verifier_give_back_the_first_answer(make_config: MakeConfig) -> None:
    cheap = [{"regex": "alike", "response": "42"}, {"regex": "unlike", "response": "41"}]
    config = make_config(
        [{"id": "alike", "prompt": "alike"}, {"id": "unlike", "prompt": "unlike"}],
        tiers=[
            tier("judge", replies=[{"regex": "answer>", "response": '{"grade": 9}'}]),
            tier("other", replies=[{"response": "it is 42"}]),
            tier("strong"),
            tier("cheap", model="m-cheap", replies=cheap),
        ],
        route={
            "policy": "cascade",
            "steps": [
                {
                    "tier": "cheap",
                    "accept": [
                        {"by": "agreement", "tier": "other", "compare": "numeric"},
                        {"by": "verifier", "tier": "judge"},
                    ],
                }
            ],
            "otherwise": "strong",
        },
        baseline="strong",
    )
    summary, (alike, unlike), lines = finished(config)
    assert (alike["tier"], alike["model"], alike["response"]) == ("cheap", "m-cheap", "42")
    assert alike["route_score"] == 9
    assert [name for name, _ in paid(lines, "alike")] == ["cheap", "other", "judge"]
    assert (unlike["tier"], unlike["response"]) == ("strong", "UNLIKE")
    assert [name for name, _ in paid(lines, "unlike")] == ["cheap", "other", "strong"]
    check_books(summary, [alike, unlike], lines)


def test_a_gatekeeper_may_answer_what_it_graded(make_config: MakeConfig) -> None:
    replies = [
        {"regex": "<request>.*easy|<request>\nuser: easy", "response": '{"grade": 2}'},
        {"regex": "<request>", "response": '{"grade": 8}'},
        {"response": "small says"},
    ]
    config = make_config(
        [{"id": "easy", "prompt": "easy"}, {"id": "hard", "prompt": "hard"}],
        tiers=[tier("strong"), tier("small", replies=replies)],
        route={"policy": "gatekeeper", "tier": "small", "cheap": "small", "strong": "strong"},
        baseline="strong",
    )
    summary, (easy, hard), lines = finished(config)
    assert (easy["tier"], easy["response"], easy["route_score"]) == ("small", "small says", 2)
    assert (hard["tier"], hard["response"], hard["route_reason"]) == ("strong", "HARD", "grade 8")
    assert [name for name, _ in paid(lines, "easy")] == ["small", "small"]
    check_books(summary, [easy, hard], lines)


def test_an_outage_is_answered_by_the_fallback_and_never_cached(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    out = tier("main", replies=[{"regex": "down", "fails": "unavailable"}])
    cache = {"path": str(tmp_path / "cache")}
    config = make_config(
        [{"id": "a", "prompt": "down now"}, {"id": "b", "prompt": "fine"}],
        tiers=[{**out, "fallback": "spare"}, tier("spare")],
        route={"policy": "fixed", "tier": "main"},
        baseline="main",
        response_cache=cache,
    )
    summary, (a, b), lines = finished(config)
    assert (a["status"], a["tier"], a["fallback_from"]) == ("ok", "spare", "main")
    assert (b["tier"], b["fallback_from"]) == ("main", None)
    assert summary.fallbacks == 1
    check_books(summary, [a, b], lines)
    again = {**config.model_dump(), "output": {"path": str(tmp_path / "again")}}
    assert run(type(config).model_validate(again)).by_source == {"generated": 1, "cache_exact": 1}


def test_a_row_that_names_its_tier_is_on_no_ladder(make_config: MakeConfig) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "model": "cheap"}
    config = make_config(
        [{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}],
        tiers=[tier("cheap"), tier("strong")],
        route={
            "policy": "cascade",
            "steps": [{"tier": "cheap", "accept": [{"by": "regex", "pattern": "never"}]}],
            "otherwise": "strong",
        },
        baseline="strong",
    )
    _, (row,), _ = finished(config)
    assert (row["tier"], row["route_reason"]) == ("cheap", "named by the row")
