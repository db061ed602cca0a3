"""A run whose tier is an API that fails a fifth of its requests."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import PRICE, MakeConfig, tier

from jobs.batch import run
from pipelines.errors import RunFailure, UsageProblem
from tests.standin import standin

pytestmark = pytest.mark.usefixtures("ray_here")


def api_tier(url: str, **engine: Any) -> dict[str, Any]:
    return {
        "name": "frontier",
        "engine": {"kind": "api", "base_url": f"{url}/v1", "model": "m", **engine},
        "billing": {"kind": "serverless", "usd_per_mtok": PRICE},
    }


def test_nothing_is_lost_or_paid_twice_under_faults(make_config: MakeConfig) -> None:
    rows = [{"id": str(i), "prompt": f"row number {i}"} for i in range(300)]
    with standin(share=0.2, faults=["429-after", "429", "500", "reset", "400"]) as (state, url):
        config = make_config(
            rows,
            tiers=[api_tier(url)],
            route={"policy": "fixed", "tier": "frontier"},
            baseline="frontier",
        )
        summary = run(config)
    out = pq.read_table(f"{config.output.path}/rows").to_pylist()
    assert sorted(row["row_id"] for row in out) == sorted(row["id"] for row in rows)
    refused = [row for row in out if row["status"] == "error"]
    assert {row["error_kind"] for row in refused} == {"invalid_request"}
    assert len(refused) == state.faults["400"]
    assert state.stats()["paid_twice"] == 0
    tokens = summary.ok * 3
    cost = (tokens * 500_000_000 + tokens * 1_500_000_000) // 10**6
    assert summary.bill_nusd == cost


def test_an_outage_goes_to_the_fallback(make_config: MakeConfig) -> None:
    with standin(share=1.0, faults=["503"]) as (_, url):
        config = make_config(
            [{"id": "a", "prompt": "one"}],
            tiers=[{**api_tier(url, max_tries=1), "fallback": "spare"}, tier("spare")],
            route={"policy": "fixed", "tier": "frontier"},
            baseline="spare",
        )
        run(config)
    (row,) = pq.read_table(f"{config.output.path}/rows").to_pylist()
    assert (row["tier"], row["fallback_from"], row["response"]) == ("spare", "frontier", "ONE")


def test_a_refused_key_fails_the_run_in_words(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-wrong-key")
    with standin(key="right") as (_, url):
        engine = {"api_key_file": str(tmp_path / "key")}
        config = make_config(
            [{"prompt": "one"}],
            tiers=[api_tier(url, **engine)],
            route={"policy": "fixed", "tier": "frontier"},
            baseline="frontier",
        )
        with pytest.raises(RunFailure, match="401") as caught:
            run(config)
    assert "sk-wrong-key" not in str(caught.value)
    written = b"".join(p.read_bytes() for p in Path(config.output.path).rglob("*") if p.is_file())
    assert b"sk-wrong-key" not in written


def test_a_key_that_is_not_there_is_refused_before_the_run(make_config: MakeConfig) -> None:
    config = make_config(
        [{"prompt": "one"}],
        tiers=[api_tier("http://127.0.0.1:9", api_key_env="NO_SUCH_KEY")],
        route={"policy": "fixed", "tier": "frontier"},
        baseline="frontier",
    )
    with pytest.raises(UsageProblem, match=r"tiers\.frontier\.engine\.api_key_env: NO_SUCH_KEY"):
        run(config)
