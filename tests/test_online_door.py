"""The listening socket of an endpoint, and those who take turns at it."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest
from fastapi import FastAPI

from jobs.online_door import Door, Front

HOST = "127.0.0.1"


@pytest.fixture
def port() -> int:
    with socket.create_server((HOST, 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def door(port: int) -> Iterator[Door]:
    door = Door(HOST, port)
    yield door
    door.__del__()


def app(answer: Callable[[], Awaitable[str]]) -> FastAPI:
    told = FastAPI()
    told.get("/")(answer)
    return told


async def quick() -> str:
    return "quick"


async def get(port: int) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://{HOST}:{port}/", timeout=30)


def test_who_comes_while_nobody_answers_is_answered_by_the_next(door: Door, port: int) -> None:
    async def turns() -> list[str]:
        said = []
        for _ in range(2):
            asking = asyncio.create_task(get(port))
            await asyncio.sleep(0.1)
            front = Front(app(quick), door.path(), drain_s=5)
            await front.start()
            said.append((await asking).json())
            await front.stop()
        return said

    assert asyncio.run(turns()) == ["quick", "quick"]


def test_a_front_that_stops_finishes_what_it_took_in(door: Door, port: int) -> None:
    async def told() -> str:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> str:
            begun.set()
            await go_on.wait()
            return "slow"

        front = Front(app(slow), door.path(), drain_s=30)
        await front.start()
        asking = asyncio.create_task(get(port))
        await begun.wait()
        stopping = asyncio.create_task(front.stop())
        await asyncio.sleep(0.3)
        assert not stopping.done()
        go_on.set()
        answer = await asking
        await stopping
        return str(answer.json())

    assert asyncio.run(told()) == "slow"


def test_several_fronts_stand_at_one_door(door: Door, port: int) -> None:
    async def both() -> list[str]:
        fronts = []
        for name in ("a", "b"):

            async def named(name: str = name) -> str:
                return name

            fronts.append(Front(app(named), door.path(), drain_s=5))
            await fronts[-1].start()
        said = []
        for front in fronts:
            front.check()
            said.append((await get(port)).json())
            # Whoever of them is asked: the last one is left.
            await fronts[0 if len(said) == 1 else 1].stop()
        return said

    assert asyncio.run(both())[1] == "b"


def test_a_closed_door_lets_nobody_in(door: Door, port: int) -> None:
    async def turned_away() -> None:
        front = Front(app(quick), door.path(), drain_s=5)
        await front.start()
        door.close()
        await front.stop()
        with pytest.raises(httpx.ConnectError):
            await get(port)
        with pytest.raises(ConnectionError, match="closed"):
            await Front(app(quick), door.path(), drain_s=5).start()

    asyncio.run(turned_away())


def test_a_front_notices_that_its_door_is_gone(door: Door) -> None:
    async def noticed() -> None:
        front = Front(app(quick), door.path(), drain_s=5)
        await front.start()
        front.check()
        # As the kernel does it when the process ends.
        for lifeline in door._lifelines:
            lifeline.close()
        with pytest.raises(RuntimeError, match="gone"):
            front.check()
        await front.stop()

    asyncio.run(noticed())


@pytest.mark.usefixtures("door")
def test_a_taken_port_is_named_with_what_to_set(port: int) -> None:
    with pytest.raises(OSError, match=rf"{HOST}:{port}.*serve\.port"):
        Door(HOST, port)
