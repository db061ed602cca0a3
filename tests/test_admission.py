import asyncio

import pytest

from actors.admission import Admission, Admitted
from actors.engine import Answer
from pipelines.admission import AdmissionLimit, LengthEstimates, Ticket, WaitingRoom, prefix_of
from pipelines.requests import Request


def asked(text: str, system: str | None = None, **sampling: int) -> Request:
    turns = [{"role": "user", "content": text}]
    if system:
        turns.insert(0, {"role": "system", "content": system})
    return Request(turns, dict(sampling))


def room_of(window: int, *tickets: tuple[int, bytes]) -> WaitingRoom:
    room = WaitingRoom(window)
    for number, (tokens, prefix) in enumerate(tickets):
        room.add(Ticket(tokens, number, prefix, asked("x")))
    return room


def order(room: WaitingRoom) -> list[int]:
    return [room.pop().number for _ in range(len(room))]


def test_rows_that_share_a_prefix_go_together_long_ones_first() -> None:
    room = room_of(9, (1, b"a"), (5, b"b"), (9, b"a"), (7, b"b"), (3, b"a"))
    assert order(room) == [2, 4, 0, 3, 1]


def test_only_the_oldest_are_compared_so_that_no_row_waits_for_ever() -> None:
    room = room_of(2, (1, b""), (2, b""), (8, b""), (9, b""))
    assert order(room) == [1, 2, 3, 0]
    endless = room_of(2, (1, b""))
    for number in range(1, 50):
        endless.add(Ticket(9, number, b"", asked("x")))
        endless.pop()
    assert len(endless) == 1


def test_halves_are_alike() -> None:
    room = room_of(100, *((tokens, b"") for tokens in range(10)))
    lent = [ticket.expected_tokens for ticket in room.pop_half()]
    kept = [room.pop().expected_tokens for _ in range(len(room))]
    assert sorted(lent + kept) == list(range(10))
    assert abs(sum(lent) - sum(kept)) <= 5


def test_a_prefix_is_a_long_lead_or_a_long_beginning() -> None:
    document = "word " * 150
    assert prefix_of(asked("one", system=document)) == prefix_of(asked("two", system=document))
    assert prefix_of(asked(document + "one")) == prefix_of(asked(document + "two"))
    assert prefix_of(asked(document + "one")) != prefix_of(asked("word"))
    assert prefix_of(asked("short", system="short")) == b""


def test_expected_lengths_follow_the_limit_and_what_was_seen() -> None:
    lengths = LengthEstimates()
    assert lengths.expected(b"a", 40, 0) == 40
    lengths.seen(b"a", 100, 25)
    assert lengths.expected(b"a", 40, 0) == 10
    assert lengths.expected(b"b", 80, 0) == 20
    assert lengths.expected(b"a", 40, 30) == 30
    assert lengths.expected(b"a", None, 0) == 25


def test_lengths_of_prefixes_long_unseen_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.admission._PREFIXES_KEPT", 2)
    lengths = LengthEstimates()
    for prefix, used in ((b"a", 10), (b"b", 20), (b"a", 10), (b"c", 30)):
        lengths.seen(prefix, 100, used)
    assert lengths.expected(b"a", 100, 0) == 10
    assert lengths.expected(b"b", 100, 0) == (10 + 20 + 10 + 30) // 4


def test_a_limit_halves_at_a_death_and_grows_back_with_the_answers() -> None:
    limit = AdmissionLimit(64)
    limit.died()
    assert limit.num_seqs == 32
    for _ in range(64 * 64):
        limit.answered()
    assert limit.num_seqs == 64


def test_a_limit_does_not_return_to_where_the_engine_died_twice() -> None:
    limit = AdmissionLimit(64)
    limit.died()
    for _ in range(64 * 64):
        limit.answered()
    limit.died()
    for _ in range(64 * 64):
        limit.answered()
    assert limit.num_seqs == 32


def test_a_limit_follows_what_the_cache_holds() -> None:
    limit = AdmissionLimit(64)
    limit.preempted(20)
    assert limit.num_seqs == 20


def test_nobody_goes_in_before_the_engine_says_how_many_it_holds() -> None:
    async def scenario() -> tuple[int, int]:
        admission = Admission(None)
        rows = [asyncio.create_task(admission.enter(asked("x"))) for _ in range(8)]
        await asyncio.sleep(0.01)
        before = sum(row.done() for row in rows)
        admission.open(2)
        await asyncio.sleep(0.01)
        after = sum(row.done() for row in rows)
        for row in rows:
            row.cancel()
        return before, after

    # One more than it runs stands ready.
    assert asyncio.run(scenario()) == (0, 3)


def test_a_lent_row_is_answered_elsewhere_and_an_unanswered_one_comes_back() -> None:
    async def scenario() -> list[Answer | Admitted]:
        admission = Admission(None)
        admission.open(1)
        rows = [asyncio.create_task(admission.enter(asked(str(i)))) for i in range(6)]
        await asyncio.sleep(0.01)
        first, second = admission.lend_half()
        first.admitted.set_result(Answer("elsewhere"))
        admission.bring_back([second])
        admission.open(6)
        return await asyncio.gather(*rows)

    came = asyncio.run(scenario())
    assert sum(isinstance(c, Admitted) for c in came) == 5
    assert [c.response for c in came if isinstance(c, Answer)] == ["elsewhere"]


def test_after_a_death_so_many_run_again_at_once_as_the_limit_then_says() -> None:
    async def scenario() -> int:
        admission, most, now = Admission(None), 0, 0
        admission.open(8)
        admission.limit.died()

        async def once_more() -> None:
            nonlocal most, now
            async with admission.again():
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.001)
                now -= 1

        await asyncio.wait_for(asyncio.gather(*(once_more() for _ in range(9))), 5)
        return most

    assert asyncio.run(scenario()) == 4


def test_rows_can_be_lent_before_the_engine_has_told_its_size() -> None:
    async def scenario() -> int:
        admission = Admission(None)
        rows = [asyncio.create_task(admission.enter(asked(str(i)))) for i in range(6)]
        await asyncio.sleep(0.01)
        lent = len(admission.lend_half())
        for row in rows:
            row.cancel()
        return lent

    assert asyncio.run(scenario()) == 3


def test_two_deaths_in_a_row_lower_the_ceiling_only_once_the_limit_has_grown_back() -> None:
    limit = AdmissionLimit(64)
    for _ in range(2):
        limit.died()
    for _ in range(10_000):
        limit.answered()
    assert limit.num_seqs == 64
