"""Whole runs over a provider's batches, with a stand-in for the provider."""

import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import MakeConfig, write_jsonl

from jobs.batch import run
from jobs.summary import Summary
from pipelines.config import RunConfig
from pipelines.errors import EXIT_ERRORS, EXIT_OK
from tests.killed import kill, started
from tests.standin import Standin, standin

pytestmark = pytest.mark.usefixtures("ray_here")

BOOK = """
version: "1"
models:
  - {model: m, from: 2026-01-01, input: 4, output: 20, batch_input: 2, batch_output: 10, source: s}
"""
ROWS = 60
ROW_NUSD = 3 * 2_000 + 3 * 10_000
"""Three words in and three out, at the price of batches."""


def configured(
    make_config: MakeConfig, folder: Path, url: str, prompts: list[str], **batch: Any
) -> RunConfig:
    (folder / "book.yaml").write_text(BOOK)
    rows = [{"id": f"r{i}", "prompt": prompt} for i, prompt in enumerate(prompts)]
    path = write_jsonl(folder / "rows.jsonl", rows)
    engine = {
        "kind": "api",
        "base_url": f"{url}/v1",
        "model": "m",
        "mode": "batch",
        "batch": {"poll_s": 0.05, "collect_s": 0.5, **batch},
    }
    return make_config(
        path,
        input={"path": str(path), "block_rows": 20},
        tiers=[
            {"name": "only", "engine": engine, "billing": {"kind": "serverless", "price_of": "m"}}
        ],
        prices=str(folder / "book.yaml"),
    )


def prompts() -> list[str]:
    return [f"row number {i}" for i in range(ROWS)]


def rows_of(config: RunConfig) -> dict[str, dict[str, Any]]:
    out = pq.read_table(f"{config.output.path}/rows").to_pylist()
    assert len(out) == len({row["row_id"] for row in out})
    return {row["row_id"]: row for row in out}


def check_books(config: RunConfig, summary: Summary, server: Standin, answered: int) -> None:
    """What the provider has charged, at the price of batches, is the bill."""
    paid = [row for row in rows_of(config).values() if row["cost_usd"]]
    assert {row["cost_usd"] * 10**9 for row in paid} == {ROW_NUSD}
    assert len(paid) == answered
    lines = pq.read_table(f"{config.output.path}/bill.parquet").to_pylist()
    assert sum(line["cost_nusd"] for line in lines) == summary.bill_nusd == answered * ROW_NUSD
    told = server.stats()
    assert (told["paid_twice"], told["answered"], told["requests"]) == (0, answered, 0)


def test_a_run_is_answered_by_batches_at_their_price(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Equal rows are asked once; a row at fault ends in errors/ and costs nothing."""
    with standin() as (server, url):
        asked = [*prompts(), "row number 7", "refuse me please"]
        config = configured(make_config, tmp_path, url, asked)
        summary = run(config)
        check_books(config, summary, server, answered=ROWS)
    assert (summary.exit_code, summary.ok, summary.errors) == (EXIT_ERRORS, ROWS + 1, 1)
    rows = rows_of(config)
    bad, twin = rows.pop(f"r{ROWS + 1}"), rows[f"r{ROWS}"]
    assert (bad["status"], bad["error_kind"]) == ("error", "invalid_request")
    assert twin["source"] == "duplicate"
    assert [rows[f"r{i}"]["response"] for i in range(ROWS + 1)] == [
        prompt.upper() for prompt in asked[: ROWS + 1]
    ]


def test_what_an_expired_batch_left_is_sent_again_and_paid_once(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    with standin(expire=1, batch_share=0.5) as (server, url):
        config = configured(make_config, tmp_path, url, prompts())
        summary = run(config)
        check_books(config, summary, server, answered=ROWS)
    assert (summary.exit_code, summary.ok) == (EXIT_OK, ROWS)
    assert {row["attempts"] for row in rows_of(config).values()} == {1, 2}


def test_a_run_that_is_killed_while_a_batch_is_out_takes_its_answers_when_it_goes_on(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """kill -9 of the driver and all its processes, when some rows are committed and others wait for
    their batch; the first batch had expired half done."""
    with standin(batch_s=3600.0, expire=1) as (server, url):
        config = configured(make_config, tmp_path, url, prompts(), max_rows=20)
        process = started(config, tmp_path)
        try:
            out = kept_waiting(server, Path(config.output.path, "rows"))
        finally:
            kill(process)
        committed = len(rows_of(config))
        assert 0 < committed < ROWS
        assert server.batches[out]["status"] == "validating"
        server.script.batch_s = 0.0
        summary = run(config)
        check_books(config, summary, server, answered=ROWS)
        assert server.batches[out]["status"] == "completed", "its answers were fetched"
    assert (summary.exit_code, summary.ok) == (EXIT_OK, ROWS)
    rows = rows_of(config)
    assert [rows[f"r{i}"]["response"] for i in range(ROWS)] == [p.upper() for p in prompts()]


def kept_waiting(server: Standin, rows: Path) -> str:
    """Let batches end until a block is committed; the name of the one that is out then."""
    deadline, ended = time.monotonic() + 120, set[str]()
    while time.monotonic() < deadline:
        out = [name for name in list(server.batches) if name not in ended]
        if out and list(rows.glob("*.parquet")):
            # Time to note what its replica has spent, also on rows that are not committed.
            time.sleep(2.0)
            return out[0]
        if out:
            server.end(out[0])
            ended.add(out[0])
        time.sleep(0.02)
    pytest.fail("no block was committed while a batch was out")
