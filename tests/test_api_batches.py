import asyncio
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from conftest import PRICE, MakeConfig
from pydantic import ValidationError

from actors.api_batches import BatchEngine
from actors.engine import Answer
from pipelines.api_tier import API
from pipelines.cost import Usage
from pipelines.errors import RunFailure, UsageProblem
from pipelines.prices import TokenRate, price_list
from pipelines.requests import Request
from pipelines.tier import Tier
from tests.standin import Standin, standin

ROWS = [f"row {i}" for i in range(30)]


def api(url: str, batch: dict[str, Any] | None = None, **fields: Any) -> API:
    raw = {
        "kind": "api",
        "base_url": f"{url}/v1",
        "model": "m",
        "mode": "batch",
        "batch": {"poll_s": 0.02, "collect_s": 0.05, **(batch or {})},
        **fields,
    }
    return API.model_validate(raw)


async def answers(engine: BatchEngine, rows: Sequence[str]) -> list[Answer]:
    requests = [Request([{"role": "user", "content": text}], {}) for text in rows]
    return list(await asyncio.gather(*(engine.answer(request) for request in requests)))


def ask(config: API, rows: Sequence[str], run: str = "run-1") -> list[Answer]:
    async def asked() -> list[Answer]:
        engine = BatchEngine(config, {}, run)
        await engine.start()
        done = await answers(engine, rows)
        await engine.stop()
        return done

    return asyncio.run(asked())


def kill_after_submitting(config: API, rows: Sequence[str], server: Standin) -> None:
    """An engine that is dropped as soon as its batch is made, as by a kill."""

    async def killed() -> None:
        engine = BatchEngine(config, {}, "run-1")
        await engine.start()
        asking = asyncio.create_task(answers(engine, rows))
        while not server.batches:
            await asyncio.sleep(0.01)
        asking.cancel()
        await engine.stop()

    asyncio.run(killed())


def said(done: Sequence[Answer]) -> list[str | None]:
    return [answer.response for answer in done]


def test_rows_are_answered_by_one_batch_and_matched_by_id() -> None:
    with standin() as (server, url):
        done = ask(api(url), [*ROWS, "row 3"])
    assert said(done) == [text.upper() for text in [*ROWS, "row 3"]]
    assert {(a.usage, a.attempts) for a in done} == {(Usage(2, 0, 2), 1)}
    assert len(server.batches) == 1
    assert not server.arrivals


@pytest.mark.parametrize("limits", [{"max_rows": 8}, {"max_bytes": 1400}])
def test_limits_on_rows_and_bytes_are_kept(limits: dict[str, int]) -> None:
    with standin() as (server, url):
        done = ask(api(url, limits), ROWS)
    assert said(done) == [text.upper() for text in ROWS]
    assert 4 <= len(server.batches) <= 6
    assert server.stats()["paid_twice"] == 0


def test_a_row_that_is_at_fault_is_an_error_and_the_others_are_not() -> None:
    with standin() as (_, url):
        good, bad = ask(api(url), ["good", "refuse me"])
    assert good.response == "GOOD"
    assert bad.problem
    assert (bad.problem.kind, bad.attempts) == ("invalid_request", 1)


def test_what_an_expired_batch_left_unanswered_is_sent_again() -> None:
    with standin(expire=1, batch_share=0.4) as (server, url):
        done = ask(api(url), ROWS)
    assert said(done) == [text.upper() for text in ROWS]
    assert sorted(a.attempts for a in done) == [1] * 12 + [2] * 18
    assert len(server.batches) == 2
    assert server.stats()["paid_twice"] == 0


def test_what_every_batch_leaves_unanswered_is_given_up_on() -> None:
    with standin(expire=99, batch_share=0.0) as (server, url):
        done = ask(api(url, {"max_submissions": 2}), ROWS[:3])
    assert {a.problem.kind for a in done if a.problem} == {"unavailable"}
    assert all(a.problem and a.attempts == 2 for a in done)
    assert len(server.batches) == 2


def test_after_a_kill_the_same_batch_is_found_and_nothing_is_paid_twice() -> None:
    with standin(batch_s=0.3) as (server, url):
        kill_after_submitting(api(url), ROWS, server)
        # Rows come back in another order and in other company.
        done = ask(api(url, {"max_rows": 7}), ROWS[::-1])
        assert said(done) == [text.upper() for text in ROWS[::-1]]
        assert len(server.batches) == 1
        assert server.stats()["paid_twice"] == 0
        # Another run is another matter.
        ask(api(url), ROWS, run="run-2")
        assert len(server.batches) == 2


def test_after_a_kill_only_what_the_batch_lacks_is_sent() -> None:
    with standin(batch_s=0.1, expire=1, batch_share=0.5) as (server, url):
        kill_after_submitting(api(url), ROWS, server)
        done = ask(api(url), [*ROWS, "new"])
    assert said(done) == [text.upper() for text in [*ROWS, "new"]]
    # What is new need not wait for what comes back.
    assert len(server.batches) <= 3
    assert server.stats()["answered"] == 31
    assert server.stats()["paid_twice"] == 0


def test_a_batch_whose_making_was_answered_by_an_error_is_not_made_again() -> None:
    with standin(lose_batches=1) as (server, url):
        done = ask(api(url), ROWS[:3])
    assert said(done) == [text.upper() for text in ROWS[:3]]
    assert len(server.batches) == 1


def test_results_that_cannot_be_read_are_read_again_and_not_bought_again() -> None:
    with standin(garble=2) as (server, url):
        assert said(ask(api(url), ROWS)) == [text.upper() for text in ROWS]
    assert len(server.batches) == 1


def test_what_was_never_read_is_there_when_the_run_is_tried_again() -> None:
    with standin(garble=99) as (server, url):
        done = ask(api(url), ROWS)
        assert {a.problem.kind for a in done if a.problem} == {"unavailable"}
        assert all(a.problem and "nightmill retry" in a.problem.message for a in done)
        # Nor does another start that cannot read them.
        assert all(answer.problem for answer in ask(api(url), ROWS))
        server.script.garble = 0
        assert said(ask(api(url), ROWS)) == [text.upper() for text in ROWS]
        assert len(server.batches) == 1
        assert server.stats()["paid_twice"] == 0


def test_a_refused_key_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-wrong")
    with standin(key="sk-right") as (_, url):
        config = api(url, api_key_file=str(tmp_path / "key"))
        with pytest.raises(RunFailure, match="the file") as error:
            ask(config, ROWS)
    assert "sk-wrong" not in str(error.value)


def tier(billing: dict[str, Any], **fields: Any) -> dict[str, Any]:
    engine = {"kind": "api", "base_url": "http://h/v1", "model": "m", "mode": "batch"}
    return {"name": "only", "engine": engine, "billing": billing, **fields}


BOOK = """
version: "1"
models:
  - {model: a, from: 2026-01-01, input: 4, output: 20, cached_input: 0.2, batch_input: 2,
     batch_output: 10, source: s}
  - {model: b, from: 2026-01-01, input: 4, output: 20, source: s}
"""


def test_batches_are_priced_as_batches(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "book.yaml").write_text(BOOK)

    def rate(**billing: Any) -> Any:
        tiers = [tier({"kind": "serverless", **billing})]
        config = make_config([], tiers=tiers, prices=str(tmp_path / "book.yaml"))
        return price_list(config, date(2026, 11, 24)).tiers["only"]

    assert rate(price_of="a") == TokenRate(2 * 10**9, 2 * 10**9, 10 * 10**9)
    assert rate(usd_per_mtok=PRICE) == TokenRate(5 * 10**8, 5 * 10**8, 15 * 10**8)
    with pytest.raises(UsageProblem, match="batch_input"):
        rate(price_of="b")


@pytest.mark.parametrize(
    ("billing", "fields", "said"),
    [
        ({"kind": "provisioned", "usd_per_gpu_hour": 1.0}, {}, "serverless"),
        ({"kind": "serverless", "usd_per_mtok": PRICE}, {"replicas": 2}, "replicas"),
    ],
)
def test_what_a_batch_tier_cannot_be(
    billing: dict[str, Any], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        Tier.model_validate(tier(billing, **fields))
