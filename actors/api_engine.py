"""An engine behind HTTP, through the providers' own clients."""

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from actors.admission import Admission, Admitted
from actors.api_dialects import Dialect, Malformed, build_dialect
from actors.engine import Answer
from pipelines.api_faults import Breaker, Fault, backoff_s, fault_of
from pipelines.api_tier import API
from pipelines.engine_time import EngineClock, Occupancy
from pipelines.errors import RowProblem, RunFailure
from pipelines.rate_limit import Limits, limits_in
from pipelines.requests import Request, text_of

_BYTES_A_TOKEN = 4
"""To reserve by, before the server has counted."""
_ASSUMED_TOKENS = 512
_MALFORMED_TRIES = 3
"""An answer that cannot be read was paid for; a server that sends nothing else must not be."""


class LimitsCalls(Protocol):
    """A `RateLimits`, wherever it lives."""

    def reserve(self, tokens: Sequence[int]) -> Awaitable[list[float]]: ...

    def correct(self, tokens: int) -> None: ...

    def learn(self, said: Limits) -> None: ...

    def pause(self, seconds: float) -> None: ...


def read_key(config: API, name: str) -> str | None:
    """The key, or None where none is named.

    Raises:
        RunFailure: it is not where the configuration says, with what to do about it.
    """
    if config.api_key_env:
        key = os.environ.get(config.api_key_env, "").strip()
        if not key:
            raise RunFailure(
                f"tiers.{name}.engine.api_key_env: {config.api_key_env} is not set; export it "
                "on every node that runs this tier"
            )
        return key
    if config.api_key_file:
        try:
            return Path(config.api_key_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise RunFailure(
                f"tiers.{name}.engine.api_key_file: {config.api_key_file}: {error.strerror}; "
                "mount it on every node that runs this tier"
            ) from error
    return None


class APIEngine:
    """Sends rows to an API, again and again where that can help, and never too fast.

    Args:
        name: of the tier.
        defaults: the run's sampling fields, for what a row leaves out.
        limits: of the account; None where nothing is shared.
        gives_up: an outage is told at once, because another tier takes over.
    """

    def __init__(
        self,
        name: str,
        config: API,
        defaults: dict[str, Any],
        limits: LimitsCalls | None = None,
        gives_up: bool = False,
    ) -> None:
        self.model = config.model
        self.clock = EngineClock()
        self.occupancy = Occupancy()
        self.admission = Admission(defaults.get("max_tokens"))
        self._name, self._config, self._defaults = name, config, defaults
        self._gives_up = gives_up
        self._dialect: Dialect = build_dialect(config)
        self._breaker = Breaker(config.breaker_failures, config.breaker_open_s)
        self._turns = _Turns(limits, Limits(config.requests_per_minute, config.tokens_per_minute))
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._chance = random.Random()
        self._ids = count()
        self._secret = ""
        self._client: Any = None

    async def start(self) -> None:
        self._secret = read_key(self._config, self._name) or ""
        self._client = _client(self._config, self._secret)
        self.admission.open(self._config.max_concurrency)

    def refuse(self, request: Request) -> RowProblem | None:
        return self._dialect.refuse(request, self._fields(request))

    async def answer(self, request: Request) -> Answer:
        admitted = await self.admission.enter(request)
        if not isinstance(admitted, Admitted):
            return admitted
        with admitted:
            name, started = str(next(self._ids)), time.monotonic_ns()
            self.clock.admit(name, 1, started)
            try:
                answer = await self._answer(request)
            finally:
                ended = time.monotonic_ns()
                engine_ns = self.clock.finish(name, 1, ended)
            admitted.answered(answer.usage.completion_tokens)
        return replace(answer, engine_ns=engine_ns, e2e_s=(ended - started) / 1e9)

    def speculation_report(self) -> dict[str, Any]:
        return {}

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _fields(self, request: Request) -> dict[str, Any]:
        return {**self._defaults, **request.sampling}

    async def _answer(self, request: Request) -> Answer:
        fields = self._fields(request)
        body = self._dialect.body(request, fields)
        tokens = _expected_tokens(request, fields)
        deadline = time.monotonic() + self._config.deadline_s
        last, malformed = Fault("no time was left"), 0
        for tries in range(1, self._config.max_tries + 1):
            if not await self._may_go(tokens, deadline):
                return self._unavailable(last, tries - 1)
            outcome = await self._once(body, tokens, deadline)
            if isinstance(outcome, Answer):
                return replace(outcome, attempts=tries)
            last = outcome
            if last.problem is not None:
                malformed += last.problem.kind == "engine"
                if last.problem.kind != "engine" or malformed == _MALFORMED_TRIES:
                    return Answer(problem=last.problem, attempts=tries)
            pause = last.after_s if last.after_s is not None else backoff_s(tries, self._chance)
            if last.is_final or time.monotonic() + pause >= deadline:
                return self._unavailable(last, tries)
            if tries < self._config.max_tries:
                await asyncio.sleep(pause)
        return self._unavailable(last, tries)

    async def _may_go(self, tokens: int, deadline: float) -> bool:
        """Wait for the breaker and for the account's turn; False if that would take too long."""
        while wait := self._breaker.wait_s(time.monotonic()):
            if self._gives_up or time.monotonic() + wait >= deadline:
                return False
            await asyncio.sleep(wait)
        wait = await self._turns.wait_s(tokens)
        if time.monotonic() + wait >= deadline:
            return False
        if wait:
            await asyncio.sleep(wait)
        return True

    async def _once(self, body: dict[str, Any], tokens: int, deadline: float) -> Answer | Fault:
        limit = min(self._config.timeout_s, deadline - time.monotonic())
        try:
            async with self._slots, asyncio.timeout(limit):
                status, headers, content = await self._client.send(self._dialect.path, body)
        except TimeoutError:
            return self._failed(Fault(f"no answer within {limit:.0f} s"))
        # The client's own errors are about the connection: an answer of any kind is no error here.
        except self._client.errors as error:
            return self._failed(Fault(f"{type(error).__name__}: {error.__cause__ or error}"))
        self._turns.learn(limits_in(headers))
        if status != 200:
            return self._refused(status, headers, content)
        try:
            answer = self._dialect.answer(json.loads(content))
        except (Malformed, ValueError) as error:
            says = self._masked(f"the server sent {error}")
            return self._failed(Fault(says, RowProblem("engine", says)))
        self._breaker.succeeded()
        self._turns.correct(tokens - answer.usage.prompt_tokens - answer.usage.completion_tokens)
        return answer

    def _refused(self, status: int, headers: dict[str, str], content: bytes) -> Fault:
        try:
            told = json.loads(content)
        except ValueError:
            told = content.decode("utf-8", errors="replace")
        fault = fault_of(status, told, headers, datetime.now(UTC))
        fault = replace(fault, says=self._masked(fault.says))
        if fault.problem:
            self._breaker.succeeded()
            return replace(
                fault, problem=replace(fault.problem, message=self._masked(fault.problem.message))
            )
        if fault.is_setup:
            source = self._config.api_key_env or self._config.api_key_file or "no key was named"
            raise RunFailure(
                f"tiers.{self._name}.engine: {self._config.base_url}: {fault.says}; check base_url "
                f"and model {self._config.model!r}, and the key ({source})"
            )
        if fault.is_limited:
            # It lives; it only wants patience, of everybody.
            self._turns.pause(fault.after_s or 0.0)
            return fault
        return self._failed(fault)

    def _failed(self, fault: Fault) -> Fault:
        self._breaker.failed(time.monotonic())
        return fault

    def _unavailable(self, last: Fault, tries: int) -> Answer:
        says = f"{self._config.base_url}: {last.says}; {tries} tries"
        return Answer(problem=RowProblem("unavailable", self._masked(says)), attempts=tries)

    def _masked(self, text: str) -> str:
        """Servers like to quote the key that they refuse."""
        return text.replace(self._secret, "***") if self._secret else text


class _Turns:
    """One replica's requests to the account's limits, as many in one call as come together."""

    def __init__(self, limits: LimitsCalls | None, known: Limits) -> None:
        self._limits, self._known = limits, known
        self._paused_until = 0.0
        self._waiting: list[tuple[int, asyncio.Future[float]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def wait_s(self, tokens: int) -> float:
        paused = max(self._paused_until - time.monotonic(), 0.0)
        if self._limits is None or not self._known:
            return paused
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, turn))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return max(await turn, paused)

    def learn(self, said: Limits) -> None:
        if self._limits is not None and said and said != self._known:
            self._known = said
            self._limits.learn(said)

    def correct(self, tokens: int) -> None:
        if self._limits is not None and self._known.tokens_per_minute:
            self._limits.correct(tokens)

    def pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
        if self._limits is not None and seconds:
            self._limits.pause(seconds)

    async def _ask(self) -> None:
        assert self._limits is not None
        while self._waiting:
            asked, self._waiting = self._waiting, []
            try:
                waits = await self._limits.reserve([tokens for tokens, _ in asked])
            except BaseException as error:
                for _, turn in asked:
                    if not turn.done():
                        turn.set_exception(error)
                raise
            for (_, turn), wait in zip(asked, waits, strict=True):
                if not turn.done():
                    turn.set_result(wait)
        self._asking = None


def _expected_tokens(request: Request, fields: dict[str, Any]) -> int:
    size = sum(len(text_of(turn.get("content")).encode()) for turn in request.messages)
    answers = fields.get("n") or 1
    return size // _BYTES_A_TOKEN + answers * (fields.get("max_tokens") or _ASSUMED_TOKENS)


class _Client:
    """An official client, as far as it is used: one POST, with whatever status it brings."""

    def __init__(self, client: Any, response: type, errors: tuple[type[Exception], ...]) -> None:
        self._client, self._response, self.errors = client, response, errors
        self._status_error: type[Exception] = errors[0]

    async def send(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        """(status, headers by lower-case name, content)"""
        from_server: Any
        try:
            from_server = await self._client.post(path, body=body, cast_to=self._response)
        except self._status_error as error:
            from_server = error.response  # type: ignore[attr-defined]
        return from_server.status_code, dict(from_server.headers), from_server.content

    async def close(self) -> None:
        await self._client.close()


def _client(config: API, key: str) -> _Client:
    # Importing them takes a second each.
    import httpx2

    timeout = httpx2.Timeout(config.timeout_s)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    if config.dialect == "anthropic":
        import anthropic

        web: Any = anthropic.DefaultAioHttpClient(timeout=timeout, limits=limits)
        client: Any = anthropic.AsyncAnthropic(
            base_url=config.base_url.removesuffix("/v1"), api_key=key or "none", max_retries=0,
            timeout=timeout, http_client=web,
        )  # fmt: skip
        errors: tuple[type[Exception], ...] = (anthropic.APIStatusError, anthropic.APIError)
    else:
        import openai

        web = openai.DefaultAioHttpClient(timeout=timeout, limits=limits)
        client = openai.AsyncOpenAI(
            base_url=config.base_url, api_key=key or "none", max_retries=0, timeout=timeout,
            http_client=web,
        )  # fmt: skip
        errors = (openai.APIStatusError, openai.APIError)
    return _Client(client, httpx2.Response, errors)
