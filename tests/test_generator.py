import asyncio
from typing import Any

import pyarrow as pa
import pytest
from conftest import tier

from actors.engine import ScriptedEngine
from actors.generator import Generator
from actors.meter import Grant, RunMeter
from pipelines.ledger import Replica
from pipelines.prices import HourRate, PriceList, TokenRate
from pipelines.requests import Request
from pipelines.schema import empty_columns, patch
from pipelines.tier import Tier

RATE = TokenRate(10**6, 10**6, 10**6)


class LocalMeter:
    """A `RunMeter` in this process, as a generator sees it."""

    def __init__(self, budget_nusd: int | None = None, rate: TokenRate | HourRate = RATE) -> None:
        self.meter = RunMeter(PriceList("test", {"only": rate}, None), budget_nusd, 0)

    async def reserve(self, name: str, nusd: int) -> Grant:
        return self.meter.reserve(name, nusd)

    def settle(self, name: str, reserved_nusd: int, spent_nusd: int) -> None:
        self.meter.settle(name, reserved_nusd, spent_nusd)

    def report_replica(self, name: str, replica: Any) -> None:
        self.meter.report_replica(name, replica)


def generator(meter: LocalMeter, metered: bool = False, **engine: Any) -> Generator:
    config = Tier.model_validate(tier("only", **engine))
    return Generator(
        "replica",
        config,
        ScriptedEngine(config.engine),
        RATE,
        meter,
        "run.0",
        {"max_tokens": 16},
        metered,  # type: ignore[arg-type]
    )


def block(*texts: str, **columns: list[Any]) -> pa.Table:
    requests = [Request([{"role": "user", "content": text}], {}).to_json() for text in texts]
    values = {"_request": requests, "tier": ["only"] * len(texts), **columns}
    return patch(pa.table(empty_columns(len(texts))), range(len(texts)), values)


def test_a_stage_answers_its_own_rows_and_passes_the_others() -> None:
    table = block(
        "one two", "b", "c", "d",
        tier=["only", "other", "only", "only"],
        status=[None, None, "error", None],
        source=[None, None, None, "duplicate"],
    )  # fmt: skip
    done = asyncio.run(generator(LocalMeter()).generate(table))
    assert done["response"].to_pylist() == ["ONE TWO", None, None, None]
    assert done["status"].to_pylist() == ["ok", None, "error", None]
    assert done["source"].to_pylist() == ["generated", None, None, "duplicate"]
    assert done["completion_tokens"].to_pylist() == [2, None, None, None]


def test_an_engine_that_no_row_needs_is_not_started() -> None:
    replica = generator(LocalMeter())
    started = []
    replica._engine.start = lambda: started.append(1)  # type: ignore[method-assign,assignment,return-value]
    table = block("a", tier=["other"])
    assert asyncio.run(replica.generate(table)) is table
    assert not started


def test_a_failing_row_has_its_reason_and_the_others_their_answers() -> None:
    texts = [f"prompt {i}" for i in range(50)]
    done = asyncio.run(generator(LocalMeter(), fail_every=5).generate(block(*texts)))
    statuses = done["status"].to_pylist()
    assert 0 < statuses.count("error") < 50
    assert all(
        (kind == "engine") == (status == "error")
        for kind, status in zip(done["error_kind"].to_pylist(), statuses, strict=True)
    )


@pytest.mark.parametrize("budget", [1, 50, 200, 10**6])
def test_a_budget_is_never_passed_and_leaves_the_rest_pending(budget: int) -> None:
    texts = [f"w{i} x y z" for i in range(40)]
    meter = LocalMeter(budget_nusd=budget)
    done = asyncio.run(generator(meter, metered=True, delay_s=0.001).generate(block(*texts)))
    statuses = done["status"].to_pylist()
    snapshot = meter.meter.snapshot()
    assert snapshot.spent_nusd <= budget
    assert snapshot.spent_nusd == 8 * statuses.count("ok")
    assert set(statuses) <= {"ok", "pending"}
    assert snapshot.closed == ("pending" in statuses)
    if budget == 10**6:
        assert statuses == ["ok"] * 40
    if budget == 200:
        assert statuses.count("ok") >= 5


@pytest.mark.parametrize(
    "fields",
    [{"n": 2}, {"logprobs": True}, {"response_format": {"type": "json_object"}}, {"lora": "a"}],
)
def test_the_scripted_engine_refuses_what_it_cannot_do(fields: dict[str, Any]) -> None:
    table = block("a", "b")
    asked = Request([{"role": "user", "content": "b"}], fields).to_json()
    table = patch(table, [1], {"_request": [asked]})
    done = asyncio.run(generator(LocalMeter()).generate(table))
    assert done["error_kind"].to_pylist() == [None, "unsupported"]


def test_a_replica_that_died_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its grants are never settled; without it the budget would be held up for ever."""
    meter = LocalMeter(budget_nusd=100).meter
    meter.report_replica("dead", Replica("only"))
    assert meter.reserve("dead", 80) == "granted"
    assert meter.reserve("living", 50) == "wait"
    monkeypatch.setattr("actors.meter._SILENT_S", -1.0)
    assert meter.reserve("living", 50) == "granted"


def test_the_time_of_a_replica_is_known_after_each_block() -> None:
    meter = LocalMeter(rate=HourRate(3600 * 10**9))
    asyncio.run(generator(meter, delay_s=0.05).generate(block("a")))
    snapshot = meter.meter.snapshot()
    assert snapshot.replicas["replica"].alive_ns >= 50_000_000
    assert snapshot.spent_nusd >= 50_000_000
