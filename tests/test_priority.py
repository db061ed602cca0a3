"""Batch work fills what online requests leave: who goes in first, who waits, who is turned away."""

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
from conftest import tier
from test_online_service import Here, plan_of, ready

from actors.admission import Admission
from actors.engine import ScriptedEngine
from actors.online_request import Asked
from actors.online_service import Service
from actors.online_tier import OnlineTier, Overloaded
from jobs.online_app import build_app
from jobs.online_plan import policies
from pipelines.admission import Ticket, WaitingRooms
from pipelines.requests import Request

LATER = 10


def asked(text: str, priority: int = 0) -> Request:
    return Request([{"role": "user", "content": text}], {}, None, priority)


def test_a_request_keeps_what_is_online_only_on_its_way_to_a_replica() -> None:
    for request in (asked("x", LATER), asked("x"), replace(asked("x"), cache_salt="acme")):
        assert Request.from_json(request.to_json()) == request


def test_the_first_priority_goes_first_whoever_came_before() -> None:
    rooms = WaitingRooms()
    rooms.window = 4
    for number, priority in enumerate([LATER, 3, LATER, 0, 3]):
        rooms.add(Ticket(1, number, b"", asked("x", priority)))
    assert [rooms.pop().number for _ in range(len(rooms))] == [3, 1, 4, 0, 2]


def test_half_of_each_priority_is_lent() -> None:
    rooms = WaitingRooms()
    for number in range(8):
        rooms.add(Ticket(1, number, b"", asked("x", number % 2)))
    assert sorted(ticket.request.priority for ticket in rooms.pop_half()) == [0, 0, 1, 1]
    assert len(rooms) == 4


def test_batch_work_leaves_slots_free_for_those_who_come_later_and_want_it_now() -> None:
    async def inside(*priorities: int) -> list[int]:
        admission = Admission(None)
        admission.open(16)
        entered = list[int]()

        async def enter(priority: int) -> None:
            with await admission.enter(asked("x", priority)):  # type: ignore[union-attr]
                entered.append(priority)
                await asyncio.sleep(60)

        tasks = [asyncio.ensure_future(enter(priority)) for priority in priorities]
        await asyncio.sleep(0.01)
        tasks += [asyncio.ensure_future(enter(0)) for _ in range(5)]
        await asyncio.sleep(0.01)
        first = tasks[0]
        first.cancel()
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        return entered

    # 14 of 16, then as many as the engine takes and stand ready before it, which is 19; and as one
    # of the fourteen leaves, none of those that wait behind them takes its place.
    assert asyncio.run(inside(*[LATER] * 30)) == [LATER] * 14 + [0] * 5
    assert asyncio.run(inside(*[0] * 30, LATER)) == [0] * 20


def test_a_short_request_is_not_overtaken_by_long_ones_that_come_later(tmp_path: Path) -> None:
    async def ended() -> list[str]:
        here, order = Here(plan_of(tmp_path, tiers=[tier("only", max_num_seqs=1)])), list[str]()
        await here.tier.start()
        await here.engine.admission.enter(asked("in the way"))
        await here.engine.admission.enter(asked("and ready"))

        async def ask(text: str, max_tokens: int) -> None:
            await here.answer(here.asked(text, max_tokens=max_tokens))
            order.append(text)

        lanes = [ask("long", 90), ask("short", 1), ask("longer", 99), ask("longest", 100)]
        tasks = [asyncio.ensure_future(lane) for lane in lanes]
        await asyncio.sleep(0.02)
        here.engine.admission.leave()
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(ended()) == ["long", "short", "longer", "longest"]


def test_an_engine_for_one_takes_batch_work_too() -> None:
    async def entered() -> bool:
        admission = Admission(None)
        admission.open(1)
        with await asyncio.wait_for(admission.enter(asked("x", LATER)), 5):  # type: ignore[union-attr]
            return True

    assert asyncio.run(entered())


def test_batch_work_takes_only_half_of_the_queue(tmp_path: Path) -> None:
    async def outcomes() -> list[list[str]]:
        here = Here(plan_of(tmp_path))  # five slots, four may wait

        def ask(text: str, priority: int) -> asyncio.Future[object]:
            one = here.asked(text)
            one.priority = priority
            return asyncio.ensure_future(here.answer(one))

        later = [ask(f"later {i}", LATER) for i in range(10)]
        await asyncio.sleep(0.02)
        now = [ask(f"now {i}", 0) for i in range(4)]
        return [
            sorted(
                type(one).__name__ for one in await asyncio.gather(*tasks, return_exceptions=True)
            )
            for tasks in (later, now)
        ]

    assert asyncio.run(outcomes()) == [
        ["Asked"] * 7 + ["Overloaded"] * 3,
        ["Asked"] * 2 + ["Overloaded"] * 2,
    ]


def test_who_wants_it_now_does_not_wait_with_who_can_wait(tmp_path: Path) -> None:
    async def answered() -> tuple[bool, bool]:
        here = Here(plan_of(tmp_path, tiers=[tier("only", delay_s=0.3, max_num_seqs=1)]))

        def ask(text: str, priority: int) -> asyncio.Future[object]:
            one = here.asked(text)
            one.priority = priority
            return asyncio.ensure_future(here.answer(one))

        later = [ask(text, LATER) for text in ("one", "two", "three")]
        await asyncio.sleep(0.05)
        await ask("three", 0)
        told = later[2].done(), here.engine.admission.waiting > 0
        await asyncio.gather(*later)
        return told

    assert asyncio.run(answered()) == (False, True)


def test_a_body_states_its_priority_and_it_changes_no_answer(tmp_path: Path) -> None:
    async def sent(*bodies: dict[str, object]) -> tuple[list[int], list[int]]:
        plan = plan_of(tmp_path, tiers=[tier("only")])
        here, seen = Here(plan), list[int]()
        turn = here.tier.turn

        async def noted(request: Request, name: str, say: object) -> object:
            seen.append(request.priority)
            return await turn(request, name, say)  # type: ignore[arg-type]

        here.tier.turn = noted  # type: ignore[method-assign, assignment]
        app = build_app(here.service, plan.config.serve, ready)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            replies = [await client.post("/v1/completions", json=body) for body in bodies]
        keys = {here.asked("x", **body).row["request_key"] for body in ({}, {"priority": 5})}
        assert len(keys) == 1
        return [reply.status_code for reply in replies], seen

    bodies = [{"prompt": "x", **more} for more in ({}, {"priority": 7}, {"priority": -1})]
    assert asyncio.run(sent(*bodies)) == ([200, 200, 400], [0, 7])


def test_who_has_paid_for_one_tier_has_more_room_in_the_next_ones_queue(tmp_path: Path) -> None:
    """Of ten that come to it at first hand one is turned away; then two more fit of those three."""
    replies = [{"regex": "hard", "response": "?", "confidence": 0.1}]
    plan = plan_of(
        tmp_path,
        tiers=[tier("only", replies=replies), tier("strong", delay_s=0.3)],
        route={
            "policy": "cascade",
            "steps": [{"tier": "only", "accept": [{"by": "confidence", "at_least": 0.5}]}],
            "otherwise": "strong",
        },
    )
    config = plan.config.tier("strong")

    async def outcomes() -> tuple[list[object], list[object]]:
        cheap = Here(plan)
        engine = ScriptedEngine(config.engine)  # type: ignore[arg-type]
        strong = OnlineTier("there", config, engine, plan.prices.tiers["strong"], {})
        tiers = {"only": cheap.tier, "strong": strong}
        cheap.service = Service(policies(plan), tiers, {"only": 5, "strong": 5}, 4, None)
        pinned = [cheap.asked(f"say {i}", model="strong") for i in range(10)]
        first = [asyncio.ensure_future(cheap.answer(one)) for one in pinned]
        await asyncio.sleep(0.05)
        escalating = (cheap.answer(cheap.asked(f"hard question {i}")) for i in range(3))
        escalated = await asyncio.gather(*escalating, return_exceptions=True)
        return escalated, await asyncio.gather(*first, return_exceptions=True)

    for ended, turned_away in zip(asyncio.run(outcomes()), (1, 1), strict=True):
        assert [type(one) for one in ended].count(Overloaded) == turned_away
        answered = [one for one in ended if isinstance(one, Asked)]
        assert {(one.row["status"], one.row["tier"]) for one in answered} == {("ok", "strong")}
        assert len(answered) == len(ended) - turned_away


def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    """Though their turn never comes: who is before them stays."""

    async def waiting() -> list[int]:
        admission = Admission(None)
        admission.open(1)
        rows = [asyncio.ensure_future(admission.enter(asked("x", p))) for p in (0, 0, 0, LATER)]
        prompts = [Request([{"role": "user", "content": f"{i} " * 600}], {}) for i in range(40)]
        rows += [asyncio.ensure_future(admission.enter(prompt)) for prompt in prompts]
        await asyncio.sleep(0.01)
        counts = [admission.waiting]
        for row in (*rows[3:], *rows[:3]):
            row.cancel()
            await asyncio.sleep(0)
            counts.append(admission.waiting)
        return counts

    counts = asyncio.run(waiting())
    assert counts[0] == 42
    assert counts[-1] == 0
    assert counts == sorted(counts, reverse=True)
