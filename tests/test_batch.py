import json
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import MakeConfig, tier, write_jsonl

from jobs.batch import run
from jobs.summary import Summary
from pipelines.config import RunConfig
from pipelines.errors import RunFailure, UsageProblem
from pipelines.schema import RESULT, nano_dollars
from pipelines.tier import Tier
from tests.killed import kill, started

pytestmark = pytest.mark.usefixtures("ray_here")


def prompts(count: int, distinct: int | None = None) -> list[dict[str, Any]]:
    distinct = distinct or count
    return [{"id": f"r{i}", "prompt": f"say {i % distinct}", "note": i} for i in range(count)]


def results(config: RunConfig) -> pa.Table:
    parts = sorted(Path(config.output.path, "rows").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts])


def answers(config: RunConfig) -> dict[str, str]:
    table = results(config)
    ids = table["row_id"].to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, table["response"].to_pylist(), strict=True))


def assert_books_balance(config: RunConfig, summary: Summary) -> None:
    """Invariants 1 and 2 on what stands in the files."""
    table = results(config)
    bill = pq.read_table(Path(config.output.path, "bill.parquet"))
    rows = bill.filter(pc.equal(bill["kind"], "row"))
    overhead = bill.filter(pc.not_equal(bill["kind"], "row"))
    assert table.num_rows == summary.rows - summary.pending
    assert sorted(rows["row_id"].to_pylist()) == sorted(table["row_id"].to_pylist())
    spent = int(nano_dollars(table["cost_usd"]).sum())
    assert spent + (pc.sum(overhead["cost_nusd"]).as_py() or 0) == summary.bill_nusd


def test_every_row_comes_out_once_with_an_answer_a_tier_and_a_cost(
    make_config: MakeConfig,
) -> None:
    config = make_config(prompts(500, distinct=300))
    summary = run(config)
    assert summary.exit_code == 0
    assert summary.by_source == {"generated": 300, "duplicate": 200}
    table = results(config)
    assert table.schema.names == ["id", "prompt", "note", *RESULT.names]
    assert answers(config) == {f"r{i}": f"SAY {i % 300}" for i in range(500)}
    assert table.sort_by("note")["note"].to_pylist() == list(range(500))
    assert set(table["tier"].to_pylist()) == {"only"}
    assert_books_balance(config, summary)


def test_rows_of_several_tiers_take_one_chain(make_config: MakeConfig) -> None:
    rules = [{"when": {"regex": "[02468]$"}, "tier": "even"}]
    config = make_config(
        prompts(200),
        tiers=[tier("even"), tier("odd")],
        route={"policy": "rules", "rules": rules, "otherwise": "odd"},
        baseline="odd",
    )
    summary = run(config)
    assert {t: c["rows"] for t, c in summary.by_tier.items()} == {"even": 100, "odd": 100}
    table = results(config)
    assert all(
        (t == "even") == (i % 2 == 0)
        for t, i in zip(table["tier"].to_pylist(), table["note"].to_pylist(), strict=True)
    )


def test_a_second_run_on_the_same_cache_pays_nothing(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    cache = {"path": str(tmp_path / "cache")}
    first = make_config(prompts(100), response_cache=cache)
    assert run(first).by_source == {"generated": 100}
    second = make_config(
        prompts(100), response_cache=cache, output={"path": str(tmp_path / "second")}
    )
    summary = run(second)
    assert summary.by_source == {"cache_exact": 100}
    assert summary.bill_nusd == 0
    assert summary.saved_usd == summary.baseline_usd > 0
    assert answers(second) == answers(first)
    changed = make_config(
        prompts(100),
        response_cache=cache,
        output={"path": str(tmp_path / "third")},
        sampling={"temperature": 0.0, "max_tokens": 5},
    )
    assert run(changed).by_source == {"generated": 100}, "a changed default is another question"


def test_sampled_rows_are_neither_merged_nor_cached(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    rows = [{"prompt": "same", "temperature": 1.0}] * 10
    for name in ("one", "two"):
        config = make_config(
            rows,
            response_cache={"path": str(tmp_path / "cache")},
            output={"path": str(tmp_path / name)},
        )
        assert run(config).by_source == {"generated": 10}


def test_failed_rows_are_in_errors_with_their_input(make_config: MakeConfig) -> None:
    rows: list[dict[str, Any]] = [*prompts(200), {"id": "bad", "prompt": 7, "note": None}]
    config = make_config(rows, tiers=[tier("only", fail_every=7)])
    summary = run(config)
    assert summary.exit_code == 3
    parts = Path(config.output.path, "errors").glob("*.parquet")
    errors = {e["row_id"]: e for p in parts for e in pq.read_table(p).to_pylist()}
    assert len(errors) == summary.errors > 1
    assert json.loads(errors.pop("bad")["input"]) == rows[-1]
    for row_id, error in errors.items():
        assert error["error_kind"] == "engine"
        assert json.loads(error["input"]) == rows[int(row_id[1:])]
    assert_books_balance(config, summary)


def test_a_retry_answers_what_failed_and_keeps_what_it_cost(make_config: MakeConfig) -> None:
    """A cured cause cures the rows; a broken row stays broken; no row is lost or doubled."""
    rows: list[dict[str, Any]] = [*prompts(200, distinct=120), {"id": "bad", "prompt": 7}]
    config = make_config(rows, tiers=[tier("only", fail_every=7)])
    first = run(config)
    assert first.errors > 1
    still = run(config, retry=True)
    assert (still.rows, still.errors) == (201, first.errors), "nothing was cured"
    cured = config.model_copy(update={"tiers": [Tier.model_validate(tier("only"))]})
    second = run(cured, retry=True)
    assert (second.rows, second.ok, second.errors) == (201, 200, 1)
    assert second.bill_nusd >= first.bill_nusd
    found = answers(config)
    assert found.pop("bad") is None
    assert found == {f"r{i}": f"SAY {i % 120}" for i in range(200)}
    assert results(config).sort_by("note")["note"].to_pylist()[:200] == list(range(200))
    (left,) = Path(config.output.path, "errors").glob("*.parquet")
    assert pq.read_table(left)["row_id"].to_pylist() == ["bad"]
    assert_books_balance(config, second)


def test_a_budget_stops_the_run_and_a_bigger_one_goes_on(make_config: MakeConfig) -> None:
    rows = prompts(300)
    whole = 300 * (2 * 500 + 2 * 1500) / 1e9
    config = make_config(rows, budget_usd=whole / 2, sampling={"temperature": 0, "max_tokens": 4})
    summary = run(config)
    assert summary.exit_code == 4
    assert 0 < summary.pending < 300
    assert summary.bill_usd <= whole / 2
    assert_books_balance(config, summary)
    bigger = config.model_copy(update={"budget_usd": whole * 10})
    summary = run(bigger)
    assert (summary.exit_code, summary.pending) == (0, 0)
    assert summary.bill_usd == pytest.approx(whole)
    assert answers(bigger) == {f"r{i}": f"SAY {i}" for i in range(300)}
    assert_books_balance(bigger, summary)


def test_a_finished_run_is_not_run_again(make_config: MakeConfig) -> None:
    config = make_config(prompts(50))
    first = run(config)
    before = {p: p.stat().st_mtime_ns for p in Path(config.output.path, "rows").iterdir()}
    assert run(config) == first
    assert {p: p.stat().st_mtime_ns for p in Path(config.output.path, "rows").iterdir()} == before


def test_an_edited_input_is_another_input(make_config: MakeConfig) -> None:
    run(make_config(prompts(20)))
    edited = [{**row, "prompt": row["prompt"].replace("say", "yell")} for row in prompts(20)]
    with pytest.raises(UsageProblem, match="another input"):
        run(make_config(edited))


def test_a_retry_that_was_killed_before_it_settled_is_finished_by_the_next_start(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = prompts(100, distinct=60)
    config = make_config(rows, tiers=[tier("only", fail_every=5)])
    assert run(config).errors > 0
    cured = config.model_copy(update={"tiers": [Tier.model_validate(tier("only"))]})
    with monkeypatch.context() as patched:
        patched.setattr("jobs.batch.retire_failed", lambda _: None)
        patched.setattr("jobs.batch.settle", lambda *_: pytest.fail("killed"))
        with pytest.raises(BaseException, match="killed"):
            run(cured, retry=True)
    summary = run(config)
    assert (summary.rows, summary.ok) == (100, 100)
    assert answers(config) == {f"r{i}": f"SAY {i % 60}" for i in range(100)}
    assert_books_balance(config, summary)


def test_a_run_that_is_not_finished_is_not_retried(make_config: MakeConfig) -> None:
    config = make_config(prompts(50), budget_usd=1e-9)
    assert run(config).exit_code == 4
    with pytest.raises(UsageProblem, match="not finished"):
        run(config, retry=True)


def test_another_runs_output_is_refused(make_config: MakeConfig) -> None:
    run(make_config(prompts(20)))
    with pytest.raises(UsageProblem, match="another input"):
        run(make_config(prompts(21)))
    with pytest.raises(UsageProblem, match="another input"):
        run(make_config(prompts(20), sampling={"temperature": 0.0, "max_tokens": 3}))


def test_a_time_paid_tier_is_billed_for_all_its_time(make_config: MakeConfig) -> None:
    billing = {"kind": "provisioned", "usd_per_gpu_hour": 3600.0}
    timed = {**tier("only", delay_s=0.01), "billing": billing}
    config = make_config(prompts(100), tiers=[timed])
    summary = run(config)
    (engine,) = summary.engines
    assert summary.bill_usd == pytest.approx(engine["alive_s"], abs=2e-3)
    assert summary.saved_usd is None, "no baseline price, no claim"
    assert_books_balance(config, summary)


def test_an_engine_that_cannot_start_ends_the_run_with_its_reason(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    empty = tmp_path / "no-model"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    engine = {"kind": "vllm", "model": str(empty)}
    config = make_config(prompts(5), tiers=[{**tier("only"), "engine": engine}])
    with pytest.raises(RunFailure, match="run the same command again"):
        run(config)


BATCH = {"method": "POST", "url": "/v1/chat/completions"}


def test_openai_batch_input_comes_back_as_openai_batch_output(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi there"}]}
    rows = [
        {"custom_id": "a", **BATCH, "body": body},
        {"custom_id": "b", **BATCH, "body": body},
        {"custom_id": "c", **BATCH, "body": {**body, "messages": []}},
    ]
    config = make_config(rows, output={"path": str(tmp_path / "out"), "openai_batch": True})
    run(config)
    output = (tmp_path / "out/batch_output.jsonl").read_text().splitlines()
    lines = {line["custom_id"]: line for line in map(json.loads, output)}
    assert set(lines) == {"a", "b"}
    completion = lines["b"]["response"]["body"]
    assert completion["choices"][0]["message"] == {"role": "assistant", "content": "HI THERE"}
    assert completion["usage"]["total_tokens"] == 4
    (error,) = map(json.loads, (tmp_path / "out/batch_errors.jsonl").read_text().splitlines())
    assert (error["custom_id"], error["error"]["code"]) == ("c", "invalid_row")


def test_a_killed_run_goes_on_where_it_was(make_config: MakeConfig, tmp_path: Path) -> None:
    """Invariant 1 after kill -9 of the driver and all its processes, in mid-run."""
    config = make_config(
        prompts(1200, distinct=800),
        tiers=[{**tier("only", delay_s=0.2, max_num_seqs=32)}],
        input={
            "path": str(tmp_path / "prompts.jsonl"),
            "block_rows": 40,
        },
    )
    process = started(config, tmp_path)
    rows = Path(config.output.path, "rows")
    deadline = time.monotonic() + 90
    while len(list(rows.glob("*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    kill(process)
    kept = {p.name: p.stat().st_mtime_ns for p in rows.glob("*.parquet")}
    assert 3 <= len(kept) < 30, "killed in mid-run"
    summary = run(config)
    assert summary.exit_code == 0
    assert answers(config) == {f"r{i}": f"SAY {i % 800}" for i in range(1200)}
    assert Counter(results(config)["source"].to_pylist())["generated"] <= 800
    assert {n: (rows / n).stat().st_mtime_ns for n in kept} == kept, "nothing committed is redone"
    assert_books_balance(config, summary)


def test_a_second_driver_is_kept_out(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(prompts(200), tiers=[tier("only", delay_s=1.0)])
    process = started(config, tmp_path)
    try:
        lock = Path(config.output.path, ".nightmill/lock.json")
        deadline = time.monotonic() + 60
        while not lock.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(UsageProblem, match="is working here"):
            run(config)
    finally:
        kill(process)


def test_a_sorted_input_brings_rows_of_one_prefix_together_long_ones_first(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    documents = [f"document {i} " + "word " * 150 for i in range(4)]
    rows: list[dict[str, Any]] = [
        {
            "id": f"r{i}",
            "messages": [
                {"role": "system", "content": documents[i * 7 % 4]},
                {"role": "user", "content": f"question {i}"},
            ],
            "max_tokens": 1 + i * 13 % 29,
        }
        for i in range(200)
    ]
    rows[17] = {"id": "r17", "prompt": ""}
    path = write_jsonl(tmp_path / "mixed.jsonl", rows)
    config = make_config(path, input={"path": str(path), "order": "whole", "block_rows": 20})
    summary = run(config)
    assert (summary.rows, summary.ok, summary.errors) == (200, 199, 1)
    limits = {row["id"]: row.get("max_tokens") for row in rows}
    changes = 0
    for part in sorted(Path(config.output.path, "rows").glob("part-*")):
        written = pq.read_table(part)
        systems = [m[0]["content"] if m else None for m in written["messages"].to_pylist()]
        own = [limits[i] or 0 for i in written["row_id"].to_pylist()]
        for (system, limit), (next_system, next_limit) in pairwise(zip(systems, own, strict=True)):
            changes += system != next_system
            assert system != next_system or limit >= next_limit
    assert changes <= 4
    assert run(config) == summary


def test_replicas_share_the_rows(make_config: MakeConfig) -> None:
    pool = {**tier("only", delay_s=0.01, max_num_seqs=8), "replicas": 2}
    config = make_config([{"prompt": f"row {i}"} for i in range(600)], tiers=[pool])
    summary = run(config)
    assert summary.ok == 600
    busy = sorted(engine["busy_s"] for engine in summary.engines)
    assert len(busy) == 2
    assert busy[0] > 0
