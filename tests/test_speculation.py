"""Speculation in the real engine on the CPU: one start for the whole module."""

import asyncio
import json
from collections.abc import Awaitable, Iterator
from itertools import cycle
from typing import TypeVar

import pytest
from conftest import ROOT

from actors.engine import Answer
from actors.speculation import SpeculationLimit
from actors.vllm_engine import VLLMEngine
from pipelines.requests import Request
from pipelines.tier import VLLM

TARGET, DRAFT = str(ROOT / "demo/models/large"), str(ROOT / "demo/models/small")
ARGUMENTS = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 8}
PLANNED = {
    "speculative_config": {
        "method": "draft_model",
        "model": DRAFT,
        "num_speculative_tokens": 4,
        "num_speculative_tokens_per_batch_size": [[1, 2, 4], [3, 6, 2], [7, 8, 0]],
    }
}
PROMPTS = [json.loads(line) for line in (ROOT / "demo/prompts.jsonl").read_text().splitlines()]
REQUESTS = [Request(p["messages"], {}) for p in PROMPTS[:40] if p.get("messages")][:24]
T = TypeVar("T")


class Running:
    """An engine and the event loop that it lives on."""

    def __init__(self, planned: dict[str, object]) -> None:
        self.loop = asyncio.new_event_loop()
        config = VLLM(kind="vllm", model=TARGET, engine_args=ARGUMENTS)
        self.engine = VLLMEngine(config, {"temperature": 0.0, "max_tokens": 32}, 2, 60, planned)
        self.wait(self.engine.start())

    def wait(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)  # type: ignore[arg-type]

    def answers(self, requests: list[Request], at_once: int = 8) -> list[Answer]:
        async def all_of_them() -> list[Answer]:
            lanes = asyncio.Semaphore(at_once)

            async def one(request: Request) -> Answer:
                async with lanes:
                    return await self.engine.answer(request)

            return await asyncio.gather(*map(one, requests))

        return self.wait(all_of_them())


@pytest.fixture(scope="module")
def speculating() -> Iterator[Running]:
    started = Running(PLANNED)
    yield started
    started.wait(started.engine.stop())


@pytest.fixture(scope="module")
def plain() -> list[str | None]:
    """Greedy answers of an engine that cannot speculate."""
    started = Running({})
    answers = started.answers(REQUESTS)
    started.wait(started.engine.stop())
    assert all(a.draft_tokens is None for a in answers)
    return [a.response for a in answers]


def share_equal(answers: list[Answer], expected: list[str | None]) -> float:
    pairs = zip(answers, expected, strict=True)
    return sum(a.response == response for a, response in pairs) / len(expected)


@pytest.mark.parametrize("at_once", [1, 4, 8])
def test_greedy_answers_are_the_same_with_speculation_on_and_off(
    speculating: Running, plain: list[str | None], at_once: int
) -> None:
    """At batch sizes where the plan speculates much, a little, and not at all.

    Verifying several tokens at once rounds otherwise than one at a time, so that bf16 ties may
    fall the other way: a few answers may differ, as they may between two batch sizes.
    """
    assert share_equal(speculating.answers(REQUESTS, at_once), plain) >= 0.9


def test_answers_carry_what_was_drafted_and_accepted(speculating: Running) -> None:
    answers = speculating.answers(REQUESTS, at_once=1)
    for answer in answers:
        assert answer.draft_tokens is not None
        assert answer.accepted_tokens is not None
        assert answer.accepted_tokens <= answer.draft_tokens
    assert acceptance(answers) > 0.3
    report = speculating.engine.speculation.report()
    assert report["accepted_tokens"] >= sum(a.accepted_tokens or 0 for a in answers)


def test_the_limit_switches_speculation_while_requests_run(
    speculating: Running, plain: list[str | None]
) -> None:
    async def flip() -> None:
        for tokens in cycle((0, 1, 4)):
            speculating.engine.speculation.hold(tokens)
            await asyncio.sleep(0.02)

    flipping = speculating.loop.create_task(flip())
    answers = speculating.answers(REQUESTS * 3, at_once=4)
    flipping.cancel()
    speculating.engine.speculation.hold()
    assert share_equal(answers, plain * 3) >= 0.9


def test_a_batch_that_dips_for_a_moment_does_not_make_the_draft_model_catch_up() -> None:
    from actors.vllm_speculation import LimitedTable

    limit = SpeculationLimit.create()
    table = LimitedTable([0, 4, 4, 0], limit, has_gaps=True)

    def catches_up(sizes: list[int]) -> list[bool]:
        ready = []
        for size in sizes:
            ready.append(table.should_catch_up(size))
            assert table[size] == 0
        return ready

    assert table[2] == 4
    assert table[3] == 0
    assert not any(catches_up([2, 3, 2, 2, 3, 1, 3]))
    assert catches_up([2, 2, 2, 2]) == [False, False, False, True]
    limit.remove()


def test_off_is_off_and_on_again_accepts_as_before(speculating: Running) -> None:
    before = acceptance(speculating.answers(REQUESTS, at_once=2))
    speculating.engine.speculation.hold(0)
    off = speculating.answers(REQUESTS, at_once=2)
    speculating.engine.speculation.hold()
    assert sum(a.draft_tokens or 0 for a in off) == 0
    assert acceptance(speculating.answers(REQUESTS, at_once=2)) == pytest.approx(before, abs=0.1)


def acceptance(answers: list[Answer]) -> float:
    drafted = sum(a.draft_tokens or 0 for a in answers)
    return sum(a.accepted_tokens or 0 for a in answers) / drafted
