from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import PRICE, MakeConfig, tier

from jobs.batch import run
from pipelines.errors import RunFailure
from pipelines.storage import Directory
from tests.standin import Standin, standin

pytestmark = pytest.mark.usefixtures("ray_here")

KEY = "sk-very-secret-key-0123456789"
FAULTS = ["429", "429-after", "500", "529", "reset"]


@pytest.fixture
def faulty() -> Iterator[tuple[Standin, str]]:
    with standin(share=0.2, faults=FAULTS, key=KEY, retry_after_s=0.01, cached=1) as server:
        yield server


def api_tier(url: str, key_file: Path, **engine: Any) -> dict[str, Any]:
    return {
        "name": "only",
        "engine": {
            "kind": "api",
            "base_url": f"{url}/v1",
            "model": "frontier",
            "api_key_file": str(key_file),
            "concurrency": 16,
            "max_retries": 20,
            **engine,
        },
        "billing": {"kind": "serverless", "usd_per_mtok": {**PRICE, "cached_input": 0.1}},
        "replicas": 2,
    }


def rows_of(folder: str) -> list[dict[str, Any]]:
    return [
        row
        for path in sorted(Path(folder, "rows").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def test_a_run_over_a_faulty_api_answers_every_row_at_its_exact_cost(
    make_config: MakeConfig, faulty: tuple[Standin, str], tmp_path: Path
) -> None:
    server, url = faulty
    (tmp_path / "key").write_text(KEY)
    prompts = [{"id": f"r{i}", "prompt": f"row number {i}"} for i in range(300)]
    config = make_config(prompts, tiers=[api_tier(url, tmp_path / "key")])
    summary = run(config)
    rows = rows_of(config.output.path)
    assert (summary.rows, summary.ok, summary.errors) == (300, 300, 0)
    assert {r["row_id"]: r["response"] for r in rows} == {
        p["id"]: p["prompt"].upper() for p in prompts
    }
    assert {r["model"] for r in rows} == {"frontier"}
    for row in rows:
        fresh = row["prompt_tokens"] - row["cached_prompt_tokens"]
        nusd = fresh * 500 + row["cached_prompt_tokens"] * 100 + row["completion_tokens"] * 1500
        assert row["cost_usd"] * 10**9 == nusd
    assert sum(server.faults.values()) > 0
    assert sum(r["prompt_tokens"] for r in rows) == 3 * 300
    # A try may fail before it arrives: the server had closed the connection that it went by.
    assert sum(r["attempts"] for r in rows) >= len(server.arrivals)
    assert server.stats()["paid_twice"] == 0
    written = b"".join(p.read_bytes() for p in Path(config.output.path).rglob("*") if p.is_file())
    assert KEY.encode() not in written


def test_a_refused_key_ends_the_run_and_is_not_shown(
    make_config: MakeConfig, faulty: tuple[Standin, str], tmp_path: Path
) -> None:
    _, url = faulty
    (tmp_path / "key").write_text("sk-wrong")
    config = make_config([{"prompt": "hello"}], tiers=[api_tier(url, tmp_path / "key")])
    with pytest.raises(RunFailure, match="status 401") as error:
        run(config)
    assert str(tmp_path / "key") in str(error.value)
    assert "sk-wrong" not in str(error.value)
    assert not Directory(config.output.path, config.storage).parts("rows")


def test_an_outage_goes_to_the_fallback(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    with standin(share=1.0, faults=["503"]) as (_, url):
        frontier = {**api_tier(url, tmp_path / "key", max_retries=0), "name": "frontier"}
        config = make_config(
            [{"id": "a", "prompt": "one"}],
            tiers=[{**frontier, "fallback": "spare"}, tier("spare")],
            route={"policy": "fixed", "tier": "frontier"},
            baseline="spare",
        )
        run(config)
    (row,) = rows_of(config.output.path)
    assert (row["tier"], row["fallback_from"], row["response"]) == ("spare", "frontier", "ONE")
