import asyncio

from actors.turns import Turns


def test_many_together_or_one_alone() -> None:
    turns, inside, most, alone_with = Turns(), 0, 0, []

    async def shared() -> None:
        nonlocal inside, most
        async with turns.together():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.005)
            inside -= 1

    async def single() -> None:
        async with turns.alone():
            alone_with.append(inside)
            await asyncio.sleep(0.005)
            alone_with.append(inside)

    async def all_of_them() -> None:
        await asyncio.gather(*(shared() for _ in range(20)), single(), single())
        await asyncio.gather(single(), *(shared() for _ in range(5)))

    asyncio.run(asyncio.wait_for(all_of_them(), 5))
    assert most > 1
    assert alone_with == [0] * 6


def test_an_error_inside_lets_the_others_go_on() -> None:
    turns = Turns()

    async def fails(alone: bool) -> None:
        async with turns.alone() if alone else turns.together():
            raise ValueError

    async def all_of_them() -> list[BaseException | None]:
        return await asyncio.gather(*(fails(a) for a in (True, False) * 4), return_exceptions=True)

    results = asyncio.run(asyncio.wait_for(all_of_them(), 5))
    assert all(isinstance(result, ValueError) for result in results)
