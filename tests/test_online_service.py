"""The life of a row online, without HTTP and without Ray."""

import asyncio
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import tier

from actors.engine import ScriptedEngine
from actors.online_request import Asked, Reservation, Unreachable
from actors.online_service import Service
from actors.online_tier import OnlineTier, TierGone
from jobs.online_app import build_app
from jobs.online_plan import OnlinePlan, plan_endpoint, policies
from jobs.online_tiers import TierReplica
from pipelines.config import RunConfig
from pipelines.errors import RowProblem, RunFailure
from pipelines.refusal import Refusal
from pipelines.requests import Request

URL = "/v1/chat/completions"
PROMPT_NUSD, ANSWER_NUSD = 500, 1500


def plan_of(folder: Path, **sections: Any) -> OnlinePlan:
    raw = {
        "input": {"path": "-"},
        "output": {"path": str(folder / "out")},
        "tiers": [tier("only", delay_s=0.2)],
        "route": {"policy": "fixed", "tier": "only"},
        **sections,
    }
    return plan_endpoint(RunConfig.model_validate(raw), date(2026, 11, 26))


class Gate:
    """Notes what is reserved and settled."""

    def __init__(self) -> None:
        self.open = 0
        self.spent = 0

    async def admit(self, tenant: str | None, most: Reservation) -> Refusal | None:
        self.open += most.nusd
        return None

    async def settle(
        self, tenant: str | None, most: Reservation, tokens: int, cost_nusd: int
    ) -> None:
        self.open -= most.nusd
        self.spent += cost_nusd


class Here:
    """A service whose one tier is in this process."""

    def __init__(self, plan: OnlinePlan, cache: Any = None) -> None:
        config = plan.config.tier("only")
        self.engine = ScriptedEngine(config.engine)  # type: ignore[arg-type]
        self.tier = OnlineTier("here", config, self.engine, plan.prices.tiers["only"], {})
        self.gate = Gate()
        self.service = Service(
            policies(plan), {"only": self.tier}, {"only": 5}, 4, cache, self.gate
        )

    def asked(self, text: str, tenant: str | None = None, **fields: Any) -> Asked:
        body = {"messages": [{"role": "user", "content": text}], **fields}
        row = self.service.read(URL, body, tenant)
        assert not isinstance(row, RowProblem)
        return Asked("id", tenant, URL, False, row)

    async def answer(self, asked: Asked) -> Asked:
        async with self.service.under_way(asked) as flight:
            await flight.row()
        return asked


def test_who_asks_the_same_at_once_shares_one_answer_and_one_pays(tmp_path: Path) -> None:
    async def together() -> tuple[list[Asked], Here]:
        here = Here(plan_of(tmp_path))
        asked = [here.asked("one two") for _ in range(5)]
        return await asyncio.gather(*(here.answer(one) for one in asked)), here

    asked, here = asyncio.run(together())
    assert sorted(one.row["source"] for one in asked) == [*["duplicate"] * 4, "generated"]
    assert {one.row["response"] for one in asked} == {"ONE TWO"}
    assert sum(one.price.cost_nusd > 0 for one in asked if one.price) == 1
    assert (here.gate.open, here.gate.spent) == (0, 4000)


def test_a_request_goes_on_while_anybody_waits_for_it(tmp_path: Path) -> None:
    async def one_leaves() -> Asked:
        here = Here(plan_of(tmp_path))
        first = asyncio.ensure_future(here.answer(here.asked("one")))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(here.answer(here.asked("one")))
        await asyncio.sleep(0.05)
        first.cancel()
        return await second

    asked = asyncio.run(one_leaves())
    assert (asked.row["response"], asked.row["source"]) == ("ONE", "generated")


def test_who_leaves_alone_frees_the_engine_and_what_was_reserved(tmp_path: Path) -> None:
    async def leaves() -> Here:
        here = Here(plan_of(tmp_path))
        task = asyncio.ensure_future(here.answer(here.asked("one")))
        await asyncio.sleep(0.05)
        assert here.engine.admission.free == 4095
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.01)
        # Here, because the end of the loop would free it too.
        assert here.engine.admission.free == 4096
        return here

    here = asyncio.run(leaves())
    assert (here.gate.open, here.gate.spent) == (0, PROMPT_NUSD)


def test_who_hangs_up_pays_for_what_was_generated_by_then(tmp_path: Path) -> None:
    async def leaves(after_s: float, **plan: Any) -> int:
        here = Here(plan_of(tmp_path, **plan))
        task = asyncio.ensure_future(here.answer(here.asked("one two three four")))
        await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await here.service.books.settled()
        assert here.gate.open == 0
        return here.gate.spent

    assert asyncio.run(leaves(0.13)) == 4 * PROMPT_NUSD + 2 * ANSWER_NUSD
    # One that still waits for the engine has used nothing.
    crowded = tier("only", delay_s=0.2, max_num_seqs=1)

    async def waits() -> int:
        here = Here(plan_of(tmp_path, tiers=[crowded]))
        *first, last = [asyncio.ensure_future(here.answer(here.asked(f"row{i}"))) for i in range(9)]
        await asyncio.sleep(0.1)
        last.cancel()
        await asyncio.gather(*first)
        await here.service.books.settled()
        return here.gate.spent

    assert asyncio.run(waits()) == 8 * (PROMPT_NUSD + ANSWER_NUSD)


def test_what_the_endpoints_own_limit_cuts_is_not_kept_for_others(tmp_path: Path) -> None:
    """The key of a request without a limit promises a whole answer, also to a run."""
    kept = list[str]()

    class Cache:
        async def recall(self, row: dict[str, Any]) -> dict[str, Any]:
            return row

        def remember(self, row: dict[str, Any]) -> None:
            kept.append(row["response"])

        def keep(self, row: dict[str, Any]) -> None:
            pass

    async def answered() -> None:
        here = Here(plan_of(tmp_path, serve={"max_tokens": 2}), Cache())
        await here.answer(here.asked("one two three"))
        await here.answer(here.asked("one two"))
        await here.answer(here.asked("four five six", max_tokens=2))

    asyncio.run(answered())
    assert kept == ["ONE TWO", "FOUR FIVE"]


def test_who_leaves_while_being_admitted_reserves_nothing(tmp_path: Path) -> None:
    async def leaves() -> Here:
        here = Here(plan_of(tmp_path))
        at_once = here.gate.admit

        async def slowly(*given: Any) -> Refusal | None:
            await asyncio.sleep(0.05)
            return await at_once(*given)

        here.gate.admit = slowly  # type: ignore[method-assign]
        task = asyncio.ensure_future(here.answer(here.asked("one")))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.1)
        return here

    here = asyncio.run(leaves())
    assert (here.gate.open, here.gate.spent) == (0, 0)


def test_the_books_hear_of_who_hangs_up_twice(tmp_path: Path) -> None:
    """As a web framework does it, which cancels again whatever waits."""

    class Observer:
        ended = 0

        def finished(self, seen: Any, traceparent: str | None = None) -> None:
            self.ended += 1

        def refused(self, reason: str, tenant: str | None) -> None:
            pass

    async def leaves() -> Observer:
        here = Here(plan_of(tmp_path))
        here.service.books.observer = observer = Observer()
        settle = here.gate.settle

        async def slowly(*given: Any) -> None:
            await asyncio.sleep(0.05)
            await settle(*given)

        here.gate.settle = slowly  # type: ignore[method-assign]
        task = asyncio.ensure_future(here.answer(here.asked("one")))
        for _ in range(3):
            await asyncio.sleep(0.02)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert here.gate.open == 0
        return observer

    assert asyncio.run(leaves()).ended == 1


def test_metadata_names_no_column_of_a_row(tmp_path: Path) -> None:
    here = Here(plan_of(tmp_path))
    asked = here.asked("one", "acme", metadata={"status": "ok", "_work": "x"})
    assert asked.row["_values"] == {"tenant": "acme"}


async def ready() -> dict[str, bool]:
    return {"ready": True}


def test_a_deadline_ends_a_stream_in_its_middle_and_says_so(tmp_path: Path) -> None:
    async def streamed() -> tuple[str, Here]:
        plan = plan_of(tmp_path, tiers=[tier("only", delay_s=1.0)])
        here = Here(plan)
        transport = httpx.ASGITransport(build_app(here.service, plan.config.serve, ready))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            body = {"prompt": "one two three four five", "stream": True}
            wait = {"x-nightmill-deadline-s": "0.5"}
            reply = await client.post("/v1/completions", json=body, headers=wait)
            await here.service.books.settled()
        return reply.text, here

    text, here = asyncio.run(streamed())
    assert "TWO" in text
    assert "THREE" not in text
    *_, error, end = (line for line in text.splitlines() if line)
    assert "deadline_exceeded" in error
    assert end == "data: [DONE]"
    # What was generated by then is paid, and no more.
    assert (here.gate.open, here.gate.spent) == (0, 5 * PROMPT_NUSD + 2 * ANSWER_NUSD)


def test_texts_of_a_refused_list_are_given_up(tmp_path: Path) -> None:
    async def refused() -> tuple[int, Here]:
        plan = plan_of(tmp_path)
        here, admitted = Here(plan), list[str]()
        admit = here.gate.admit

        async def two_only(tenant: str | None, most: Reservation) -> Refusal | None:
            admitted.append(most.name)
            if len(admitted) <= 2:
                return await admit(tenant, most)
            return Refusal(429, "too many", "rate_limit_error", "rate_limit_exceeded", 1.0)

        here.gate.admit = two_only  # type: ignore[method-assign]
        app = build_app(here.service, plan.config.serve, ready)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            body = {"model": "auto", "prompt": ["a", "b", "c"]}
            reply = await client.post("/v1/completions", json=body)
        await asyncio.sleep(0.3)
        return reply.status_code, here

    status, here = asyncio.run(refused())
    assert status == 429
    assert (here.gate.open, here.gate.spent) == (0, 0)


def test_sampled_requests_share_nothing(tmp_path: Path) -> None:
    async def together() -> list[Asked]:
        here = Here(plan_of(tmp_path))
        asked = [here.asked("one", temperature=0.5) for _ in range(2)]
        return await asyncio.gather(*(here.answer(one) for one in asked))

    assert {one.row["source"] for one in asyncio.run(together())} == {"generated"}


def test_tenants_have_keys_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "tenants.yaml").write_text("tenants: {}\n")
    (tmp_path / "tenants.yaml").chmod(0o600)
    serve = {"tenants": str(tmp_path / "tenants.yaml")}
    here = Here(plan_of(tmp_path, serve=serve))
    keys = {here.asked("one", tenant).row["request_key"] for tenant in ("a", "b", None)}
    assert len(keys) == 3


def test_tenants_share_no_prefix_cache(tmp_path: Path) -> None:
    async def salts(*tenants: str | None) -> list[str | None]:
        here, seen = Here(plan_of(tmp_path)), list[str | None]()
        turn = here.tier.turn

        async def noted(request: Request, *given: Any) -> Any:
            seen.append(request.cache_salt)
            return await turn(request, *given)

        here.tier.turn = noted  # type: ignore[method-assign]
        for number, tenant in enumerate(tenants):
            await here.answer(here.asked(f"one {number}", tenant))
        return seen

    assert asyncio.run(salts("acme", "other", None)) == ["acme", "other", None]


def test_a_request_outlives_the_replica_that_worked_on_it(tmp_path: Path) -> None:
    async def survives() -> Asked:
        here = Here(plan_of(tmp_path))
        whole, deaths = here.tier.turn, [1]

        async def dying(*given: Any) -> Any:
            if deaths:
                deaths.pop()
                raise TierGone
            return await whole(*given)

        here.tier.turn = dying  # type: ignore[method-assign]
        return await here.answer(here.asked("one"))

    assert asyncio.run(survives()).row["response"] == "ONE"


def test_an_answer_outlives_the_loss_of_the_accounts_and_is_paid_when_they_are_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.online_books._AGAIN_S", 0.01)

    async def survives() -> tuple[Asked, Here]:
        here = Here(plan_of(tmp_path))
        settle, losses = here.gate.settle, [1, 2, 3]

        async def lost(*given: Any) -> None:
            if losses:
                losses.pop()
                raise RuntimeError("no accounts")
            await settle(*given)

        here.gate.settle = lost  # type: ignore[method-assign]
        asked = await here.answer(here.asked("one"))
        await here.service.books.settled()
        return asked, here

    asked, here = asyncio.run(survives())
    assert asked.row["response"] == "ONE"
    assert (here.gate.open, here.gate.spent) == (0, PROMPT_NUSD + ANSWER_NUSD)


def test_a_replica_beyond_repair_says_so_and_is_not_asked_again(tmp_path: Path) -> None:
    async def broken() -> Here:
        here = Here(plan_of(tmp_path))

        async def dead(*_: Any) -> Any:
            raise RunFailure("the engine does not start again")

        here.engine.answer = dead  # type: ignore[method-assign]
        with pytest.raises(RunFailure):
            await here.answer(here.asked("one"))
        return here

    here = asyncio.run(broken())
    with pytest.raises(RunFailure):
        asyncio.run(here.tier.turn(Request([], {}), "name", None))
    assert "does not start again" in str(here.tier.failure)
    replica: Any = SimpleNamespace(_tier=here.tier)
    with pytest.raises(RunFailure, match="does not start again"):
        TierReplica.check_health(replica)


def test_the_gauges_tell_those_that_wait_from_those_that_run(tmp_path: Path) -> None:
    async def held() -> Any:
        here = Here(plan_of(tmp_path))
        tasks = [asyncio.ensure_future(here.answer(here.asked(f"row{i}"))) for i in range(10)]
        await asyncio.sleep(0.1)
        told = here.service.gauges()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        return told, [type(answer).__name__ for answer in answers].count("Overloaded")

    assert asyncio.run(held()) == (
        {"num_requests_running": {"only": 5}, "num_requests_waiting": {"only": 4}},
        1,
    )


def test_accounts_that_do_not_answer_keep_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They start anew. What they reserve when they are back is given back."""
    for name in ("_ADMIT_S", "_SETTLE_S"):
        monkeypatch.setattr(f"actors.online_books.{name}", 0.05)

    async def silent() -> tuple[Asked, Here]:
        here = Here(plan_of(tmp_path))
        back = asyncio.Event()
        admit, settle = here.gate.admit, here.gate.settle

        async def later_settled(*given: Any) -> None:
            await back.wait()
            await settle(*given)

        async def later_admitted(*given: Any) -> Refusal | None:
            await back.wait()
            return await admit(*given)

        here.gate.settle = later_settled  # type: ignore[method-assign]
        asked = await here.answer(here.asked("one"))
        here.gate.admit = later_admitted  # type: ignore[method-assign]
        with pytest.raises(Unreachable):
            await here.answer(here.asked("two"))
        back.set()
        await here.service.books.settled()
        return asked, here

    asked, here = asyncio.run(silent())
    assert asked.row["response"] == "ONE"
    assert (here.gate.open, here.gate.spent) == (0, PROMPT_NUSD + ANSWER_NUSD)


def test_an_api_tier_that_is_refused_is_out_for_the_row_and_not_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica would be refused too, and a fallback may answer."""

    async def refused() -> tuple[Asked, Here]:
        plan = plan_of(tmp_path)
        here = Here(plan)
        here.tier._key = ""
        monkeypatch.setattr("actors.online_tier._key_of", lambda _: "")

        async def fatal(*_: Any) -> Any:
            raise RunFailure("status 403: sk-secret")

        here.engine.answer = fatal  # type: ignore[method-assign]
        return await here.answer(here.asked("one")), here

    asked, here = asyncio.run(refused())
    assert (asked.row["status"], asked.row["error_kind"]) == ("error", "unavailable")
    assert "sk-secret" not in asked.row["error"]
    assert here.tier.failure is None
    # Its key has been changed since it began: the next replica will read it.
    here.tier._key = "old"
    with pytest.raises(RunFailure):
        asyncio.run(here.tier.turn(Request([], {}), "name", None))
    assert here.tier.failure is not None


def test_a_waiter_gets_the_form_that_it_asked_for(tmp_path: Path) -> None:
    """A chat and a completion of the same text share their work, whoever leads and whoever pays."""

    async def together() -> list[Asked]:
        here = Here(plan_of(tmp_path))
        chat, text = here.asked("one"), here.asked("one")
        text.row["url"] = "/v1/completions"
        first = asyncio.ensure_future(here.answer(chat))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(here.answer(text))
        await asyncio.sleep(0.05)
        first.cancel()
        await second
        return [chat, text]

    _, text = asyncio.run(together())
    assert (text.row["url"], text.row["response"]) == ("/v1/completions", "ONE")
