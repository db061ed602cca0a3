import asyncio
import time

from actors.engine import Answer, Say, ScriptedEngine
from actors.exchange import Exchange, Loan, Trader
from pipelines.requests import Request
from pipelines.tier import Scripted

SLOW = Scripted(kind="scripted", delay_s=0.02, max_num_seqs=4)


def rows(n: int) -> list[Request]:
    return [Request([{"role": "user", "content": f"row {i}"}], {}) for i in range(n)]


async def traded(*engines: ScriptedEngine, market: Exchange, work: int) -> list[Answer]:
    """All rows are given to the first engine; the others have none of their own."""
    for engine in engines:
        await engine.start()
    traders = [
        asyncio.create_task(Trader(str(i), engine, market, lambda: None).trade())
        for i, engine in enumerate(engines)
    ]
    answers = await asyncio.gather(*(engines[0].answer(row) for row in rows(work)))
    for trader in traders:
        trader.cancel()
    return answers


def test_no_replica_waits_while_another_holds_a_queue() -> None:
    engines = [ScriptedEngine(SLOW) for _ in range(3)]
    answers = asyncio.run(traded(*engines, market=Exchange(), work=1200))
    assert [a.response for a in answers] == [f"ROW {i}" for i in range(1200)]
    busy = sorted(engine.clock.busy_ns for engine in engines)
    assert busy[0] > 0.5 * busy[-1]
    assert sum(a.engine_ns for a in answers) == sum(busy)


class Forgetful(Exchange):
    """An exchange whose every borrower dies with its loan."""

    async def borrow(self, name: str) -> Loan | None:
        await super().borrow(name)
        return None


def test_rows_of_a_borrower_that_died_are_answered_at_home(monkeypatch) -> None:
    monkeypatch.setattr("actors.exchange._SILENT_S", 0.3)
    monkeypatch.setattr("actors.exchange._PATIENCE_S", 0.1)
    engines = [ScriptedEngine(SLOW) for _ in range(2)]
    answers = asyncio.run(traded(*engines, market=Forgetful(), work=100))
    assert [a.response for a in answers] == [f"ROW {i}" for i in range(100)]
    assert engines[1].clock.busy_ns == 0


class Unusable(ScriptedEngine):
    """An engine that starts and then can answer nothing."""

    async def answer(self, request: Request, say: Say | None = None) -> Answer:
        raise RuntimeError("no engine")


def test_rows_of_a_borrower_that_cannot_answer_come_back_at_once() -> None:
    engines = [ScriptedEngine(SLOW), Unusable(SLOW)]
    began = time.monotonic()
    answers = asyncio.run(traded(*engines, market=Exchange(), work=100))
    assert [a.response for a in answers] == [f"ROW {i}" for i in range(100)]
    assert time.monotonic() - began < 10


class Gone(Exchange):
    """An exchange on a machine that is gone."""

    async def is_wanted(self, name: str, waiting: int) -> bool:
        raise RuntimeError("gone")

    async def others_wait(self, name: str) -> bool:
        raise RuntimeError("gone")


def test_a_replica_without_its_exchange_works_for_itself() -> None:
    async def scenario() -> str | None:
        engine = ScriptedEngine(SLOW)
        await engine.start()
        trader = Trader("alone", engine, Gone(), lambda: None)
        trading = asyncio.create_task(trader.trade())
        await asyncio.sleep(0.1)
        async with trader.in_hand():
            answer = await engine.answer(rows(1)[0])
        assert not trading.done()
        trading.cancel()
        return answer.response

    assert asyncio.run(scenario()) == "ROW 0"
