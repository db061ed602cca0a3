"""Rows answered by an API: tried again where that helps, held back where it asks for that."""

import asyncio
import gc
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from random import Random
from typing import Any

from actors.admission import Admitted
from actors.api_client import Connection, Reply
from actors.api_reading import Unusable
from actors.api_rows import APIRows
from actors.engine import GIVEN_UP, Answer, Say
from actors.rate_limits import LocalLimits, Queue, RateLimitCalls
from pipelines.api_faults import Breaker, Fault, failure_fault, wait_s
from pipelines.api_tier import API
from pipelines.cost import Usage
from pipelines.errors import RowProblem, RunFailure
from pipelines.requests import Request

_ADMITTED = 2
"""Rows let in per request that may be under way: some of them wait to be tried again."""
_BYTES_PER_TOKEN = 4
_ASSUMED_TOKENS = 256
_MALFORMED_TRIES = 2
"""A garbled answer may be an accident once; each of them is paid for."""


class APIEngine(APIRows):
    """An `Engine` whose answers come from a URL.

    Args:
        defaults: the run's sampling fields, for what a row leaves out.
        limits: the account's rate limits; None if this engine is alone with its account.
        has_fallback: whether another tier answers rows while this one is out.
    """

    def __init__(
        self,
        config: API,
        defaults: Mapping[str, Any],
        limits: RateLimitCalls | None = None,
        has_fallback: bool = False,
    ) -> None:
        super().__init__(config, defaults)
        self._breaker = Breaker(config.breaker, has_fallback)
        is_limited = bool(config.requests_per_minute or config.tokens_per_minute)
        self._queue = Queue(limits or LocalLimits(config), is_limited)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._rng = Random()
        self._ids = count()
        self._asked: dict[int, _Tries] = {}
        self._mean_completion: float | None = None
        self._connection: Connection | None = None

    async def start(self) -> None:
        """Raises: UsageProblem if there is no key."""
        self._connection = Connection(self._config, self._dialect.path)
        # What is loaded by now stays: looking through all of it for garbage stops every request
        # for longer than its own work takes.
        gc.collect()
        gc.freeze()
        self.admission.open(_ADMITTED * self._config.concurrency)

    async def answer(self, request: Request, say: Say | None = None) -> Answer:
        """Raises: RunFailure if every row would fail alike, as without a valid key."""
        admitted = await self.admission.enter(request)
        if not isinstance(admitted, Admitted):
            return admitted
        with admitted:
            name, began = str(next(self._ids)), time.monotonic_ns()
            self.clock.admit(name, 1, began)
            tries = self._asked[id(request)] = _Tries(self._config)
            try:
                answer = await self._tried(self._body(request), tries)
            finally:
                self._asked.pop(id(request), None)
                ended = time.monotonic_ns()
                engine_ns = self.clock.finish(name, 1, ended)
            if answer.problem is None:
                admitted.answered(answer.usage.completion_tokens)
        return replace(answer, engine_ns=engine_ns, e2e_s=(ended - began) / 1e9)

    async def stop(self) -> None:
        if self._connection:
            await self._connection.close()

    def give_up(self, request: Request) -> bool:
        """What a provider works on is paid for, whoever waits for it; so it comes to its end."""
        tries = self._asked.get(id(request))
        if tries is None or not tries.number:
            return False
        tries.given_up = True
        return True

    async def _tried(self, body: Mapping[str, Any], row: "_Tries") -> Answer:
        content = json.dumps(body, ensure_ascii=False).encode()
        while True:
            outcome = await self._try(content, row)
            if isinstance(outcome, Answer):
                return row.paid(outcome)
            if row.given_up:
                return row.paid(Answer(problem=GIVEN_UP))
            if outcome.action == "fatal":
                raise RunFailure(self._fatal(outcome))
            pause = wait_s(outcome, row.number, self._rng)
            if self._breaker.is_open and outcome.is_down:
                # Nobody else goes either: the breaker says when it is worth a try.
                pause = min(pause, self._config.breaker.open_s)
            if outcome.is_down and self._breaker.is_outage(time.monotonic()):
                outcome = replace(outcome, action="outage")
            if outcome.action == "throttled" and outcome.after_s is not None:
                self._queue.pause(outcome.after_s)
            if problem := row.give_up(outcome, pause):
                shown = self._shown(problem)
                return row.paid(Answer(problem=RowProblem(outcome.kind, shown)))
            await asyncio.sleep(pause)

    async def _try(self, content: bytes, row: "_Tries") -> Answer | Fault:
        """One try, once a slot, the breaker and the rate limit let it go."""
        assert self._connection is not None
        async with self._slots:
            leave = self._breaker.ask(time.monotonic())
            if leave.action == "outage":
                return Fault("outage", f"{self._config.base_url} has been down for too long")
            if leave.action == "wait":
                return Fault("wait", "the service is down", after_s=leave.wait_s)
            told = False
            try:
                tokens = self._expected_tokens(content)
                if not await self._queue.enter(tokens, row.left_s()):
                    return Fault("late", "the rate limit left no turn for it")
                if row.given_up:
                    return Fault("late", GIVEN_UP.message)
                reply = await self._connection.post(content, row.begin())
                outcome = self._read(reply, row)
                told = True
            finally:
                if leave.action == "probe" and not told:
                    self._breaker.abandoned()
        self._count(outcome, leave.action == "probe", tokens)
        self._queue.learn(reply.limits)
        return outcome

    def _read(self, reply: Reply, row: "_Tries") -> Answer | Fault:
        if reply.fault:
            return reply.fault
        try:
            told = json.loads(reply.body)
        except ValueError:
            return failure_fault("malformed", "it is no JSON")
        try:
            return self._dialect.read(told)
        except Unusable as error:
            if error.usage:
                row.spent(error.usage)
            return failure_fault("malformed", str(error))

    def _count(self, outcome: Answer | Fault, is_probe: bool, tokens: int) -> None:
        """Tell the breaker and the rate limit what came of a try."""
        if isinstance(outcome, Fault):
            if outcome.is_down:
                self._breaker.failed(time.monotonic(), is_probe)
                return
        else:
            usage = outcome.usage
            self._queue.used(tokens, usage.prompt_tokens + usage.completion_tokens)
            mean = self._mean_completion
            seen = usage.completion_tokens
            self._mean_completion = seen if mean is None else mean + (seen - mean) / 16
        self._breaker.succeeded()

    def _expected_tokens(self, content: bytes) -> int:
        mean = self._mean_completion
        return len(content) // _BYTES_PER_TOKEN + int(_ASSUMED_TOKENS if mean is None else mean)

    def _fatal(self, fault: Fault) -> str:
        return (
            f"{self._config.base_url}: {fault.message}. To fix: correct base_url, model or "
            f"{self._config.key_source}, and run the same command again"
        )

    def _shown(self, text: str) -> str:
        assert self._connection is not None
        return self._connection.without_key(text)


_NOTHING = Usage()


class _Tries:
    """One row's tries: how many, since when, and what those without an answer cost.

    Its time begins when it is let in: waiting for a turn is as long to who waits for the answer.
    """

    def __init__(self, config: API) -> None:
        self._config = config
        self.number = 0
        self.given_up = False
        self._failures = 0
        self._malformed = 0
        self._usage = Usage()
        self._began = time.monotonic()

    def begin(self) -> float:
        """A try begins: the seconds that it may take."""
        self.number += 1
        return max(min(self._config.timeout_s, self.left_s()), 1e-3)

    def left_s(self) -> float:
        return self._began + self._config.deadline_s - time.monotonic()

    def spent(self, usage: Usage) -> None:
        self._usage += usage

    def paid(self, answer: Answer) -> Answer:
        """The row's answer, with what all its tries cost."""
        if self.number == 1 and self._usage == _NOTHING:
            return answer
        self.spent(answer.usage)
        return replace(answer, usage=self._usage, attempts=self.number)

    def give_up(self, fault: Fault, pause: float) -> str | None:
        """Why the row is not tried again after so long a pause; None if it is."""
        if fault.action in ("row", "outage"):
            return fault.message
        if fault.action == "retry":
            self._failures += 1
            self._malformed += fault.kind == "malformed"
        tries = f"{self.number} {'try' if self.number == 1 else 'tries'}"
        if self._malformed >= _MALFORMED_TRIES or self._failures > self._config.max_retries:
            return f"gave up after {tries}: {fault.message}"
        if fault.action == "late" or pause >= self.left_s():
            return f"gave up after {tries}, because deadline_s would pass: {fault.message}"
        return None
