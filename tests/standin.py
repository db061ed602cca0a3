"""An OpenAI-compatible server, with Anthropic's messages, that answers alike each time and fails
as it is told.

    python -m tests.standin --port 0 --script '{"latency_s": 0.2, "share": 0.2, "faults": ["500"]}'

prints its port. The answer is the last user text in upper case; a token is a word. Every answer
that a client would pay for is counted by its request, so that paying twice shows.
"""

import argparse
import asyncio
import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from typing import Any

from aiohttp import web

HANG_S = 3600.0
STATUS = {
    "400": (400, "invalid_request_error", None),
    "context": (400, "invalid_request_error", "context_length_exceeded"),
    "401": (401, "authentication_error", "invalid_api_key"),
    "404": (404, "not_found_error", "model_not_found"),
    "429": (429, "rate_limit_error", "rate_limit_exceeded"),
    "429-after": (429, "rate_limit_error", "rate_limit_exceeded"),
    "quota": (429, "insufficient_quota", "insufficient_quota"),
    "500": (500, "server_error", None),
    "503": (503, "server_error", None),
    "529": (529, "overloaded_error", None),
}
"""Faults that are a status: with the error's type and code."""


@dataclass
class Script:
    """How the server behaves.

    Attributes:
        latency_s: before each answer.
        first: what the first requests meet, in the order in which they come; then `share`.
        share: of the other requests that meet one of `faults`, chosen by `seed`.
        faults: a key of `STATUS`, or hang, drip, reset, not-json, no-choices, no-usage,
            wrong-usage, 400-key (an error that repeats the key).
        retry_after_s: what a 429-after asks for.
        key: what requests must bring, where one is needed.
        window_requests: more than so many in `window_s` are refused, as rate limits do.
        tells_limits: whether answers carry the rate limit in their headers.
        cached: prompt tokens of each answer that are told to have been cached.
        expire: provider batches that end as expired, the first ones.
        batch_share: of a batch's rows that are answered where it expires.
        batch_s: how long a batch takes.
        lose_batches: batches that are made and whose making is answered by a 500.
        garble: downloads of a batch's results that are no JSON, the first ones.
    """

    latency_s: float = 0.0
    first: list[str] = field(default_factory=list)
    share: float = 0.0
    faults: list[str] = field(default_factory=lambda: ["429", "500"])
    seed: int = 0
    retry_after_s: float = 0.05
    drip_s: float = 0.05
    key: str | None = None
    window_requests: int | None = None
    window_s: float = 60.0
    tells_limits: bool = False
    cached: int = 0
    expire: int = 0
    batch_share: float = 0.5
    batch_s: float = 0.0
    lose_batches: int = 0
    garble: int = 0


class Standin:
    """The server's state: what it was asked, answered and let fail."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.answered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.arrivals: list[float] = []
        self.headers: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.tokens = 0
        self.most_at_once = 0
        self._inside = 0
        self._first = deque(script.first)
        self._rng = Random(script.seed)
        self._window: deque[float] = deque()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=256 << 20)
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/messages"):
            app.router.add_post(path, self.complete)
        app.router.add_get("/stats", self.tell)
        from tests.standin_batches import Batches

        Batches(self).add_to(app)
        return app

    def stats(self) -> dict[str, Any]:
        """What a benchmark wants to know of a server in another process."""
        return {
            "answered": sum(self.answered.values()),
            "distinct": len(self.answered),
            "paid_twice": sum(n - 1 for n in self.answered.values()),
            "faults": dict(self.faults),
            "requests": len(self.arrivals),
            "arrived_s": self.arrivals[-1] - self.arrivals[0] if self.arrivals else 0.0,
            "most_in_window": self.most_in_window(),
            "most_at_once": self.most_at_once,
            "tokens": self.tokens,
        }

    def most_in_window(self) -> int:
        """The most requests that came within any `window_s`."""
        most, start = 0, 0
        for end, at in enumerate(self.arrivals):
            while at - self.arrivals[start] >= self.script.window_s:
                start += 1
            most = max(most, end - start + 1)
        return most

    def end(self, batch: str) -> None:
        """A provider batch has taken long enough."""
        self.batches[batch]["_began"] = -math.inf

    async def tell(self, request: web.Request) -> web.Response:
        return web.json_response(self.stats())

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.arrivals.append(time.monotonic())
        self._inside += 1
        self.most_at_once = max(self.most_at_once, self._inside)
        try:
            return await self._complete(request, await request.read())
        finally:
            self._inside -= 1

    async def _complete(self, request: web.Request, raw: bytes) -> web.StreamResponse:
        if len(self.headers) == 0:
            self.headers = dict(request.headers)
        fault = self._fault(request)
        if fault in STATUS:
            return self._refusal(fault)
        if fault == "400-key":
            given = request.headers.get("Authorization", "")
            return web.json_response({"error": {"message": f"bad header {given}"}}, status=400)
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            raise asyncio.CancelledError
        body = json.loads(raw)
        self.bodies.append(body)
        if fault == "hang":
            await asyncio.sleep(HANG_S)
        if self.script.latency_s:
            await asyncio.sleep(self.script.latency_s)
        answer = self.answer(request.path, body)
        if fault == "drip":
            return await self._drip(request, json.dumps(answer).encode())
        if fault:
            return self._broken(fault, answer)
        self.count(raw, answer)
        return web.json_response(answer, headers=self._limits())

    def count(self, raw: bytes, answer: dict[str, Any]) -> None:
        """An answer that a client pays for."""
        self.answered[blake2b(raw, digest_size=8).hexdigest()] += 1
        usage = answer["usage"]
        names = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
        self.tokens += sum(usage.get(name, 0) for name in names)

    def _fault(self, request: web.Request) -> str:
        fault = self._chosen(request)
        if fault:
            self.faults[fault] += 1
        return fault

    def lets_in(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.script.key in (None, given, request.headers.get("X-Api-Key"))

    def _chosen(self, request: web.Request) -> str:
        if not self.lets_in(request):
            return "401"
        if self._first:
            return self._first.popleft().removeprefix("ok")
        if self._over_limit():
            return "429-after"
        if self.script.share and self._rng.random() < self.script.share:
            return self._rng.choice(self.script.faults)
        return ""

    def _over_limit(self) -> bool:
        if self.script.window_requests is None:
            return False
        now = time.monotonic()
        while self._window and now - self._window[0] >= self.script.window_s:
            self._window.popleft()
        if len(self._window) >= self.script.window_requests:
            return True
        self._window.append(now)
        return False

    def _limits(self) -> dict[str, str]:
        if not self.script.tells_limits or self.script.window_requests is None:
            return {}
        return {
            "x-ratelimit-limit-requests": str(self.script.window_requests),
            "x-ratelimit-remaining-requests": str(self.script.window_requests - len(self._window)),
            "x-ratelimit-reset-requests": f"{self.script.window_s}s",
        }

    def _refusal(self, fault: str) -> web.Response:
        status, kind, code = STATUS[fault]
        headers = {"Retry-After": str(self.script.retry_after_s)} if fault == "429-after" else {}
        error = {"message": f"scripted {fault}", "type": kind, "code": code}
        return web.json_response({"type": "error", "error": error}, status=status, headers=headers)

    def _broken(self, fault: str, answer: dict[str, Any]) -> web.Response:
        if fault == "not-json":
            return web.Response(text='{"id": "chatcmpl-', content_type="application/json")
        if fault == "no-choices":
            answer = {**answer, "choices": [], "content": []}
        if fault == "no-usage":
            answer = {**answer, "usage": None}
        if fault == "wrong-usage":
            answer = {**answer, "usage": dict.fromkeys(answer["usage"], -1)}
        return web.json_response(answer)

    async def _drip(self, request: web.Request, payload: bytes) -> web.StreamResponse:
        """A byte at a time: each read of the client succeeds, the answer never comes."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for i in range(len(payload)):
            await response.write(payload[i : i + 1])
            await asyncio.sleep(self.script.drip_s)
        return response

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What a request gets, in the words of the path's API."""
        messages = body.get("messages") or [{"role": "user", "content": body.get("prompt")}]
        text = next(_text(m["content"]) for m in reversed(messages) if m["role"] == "user")
        words = text.upper().split(" ")
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or len(words)
        full, said = len(words) <= limit, " ".join(words[:limit])
        prompt = sum(len(_text(m["content"]).split()) for m in messages)
        completion = min(limit, len(words))
        if path.endswith("/messages"):
            return {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": body["model"],
                "content": [{"type": "text", "text": said}],
                "stop_reason": "end_turn" if full else "max_tokens",
                "usage": {
                    "input_tokens": prompt,
                    "output_tokens": completion,
                    "cache_read_input_tokens": self.script.cached,
                },
            }
        chat = path.endswith("/chat/completions")
        message = {"message": {"role": "assistant", "content": said}} if chat else {"text": said}
        choice = {**message, "finish_reason": "stop" if full else "length"}
        count = body.get("n") or 1
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion" if chat else "text_completion",
            "model": body["model"],
            "choices": [{"index": i, **choice} for i in range(count)],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion * count,
                "total_tokens": prompt + completion * count,
                "prompt_tokens_details": {"cached_tokens": min(self.script.cached, prompt)},
            },
        }


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


async def serve(state: Standin, port: int = 0) -> tuple[web.AppRunner, int]:
    """Start serving on the loop that runs; returns what ends it, and the port."""
    # Nobody must be able to tell a server that is asked too much from a client that asks it
    # too slowly: it may hold as many connections as a client can open.
    runner = web.AppRunner(state.app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=2048)
    await site.start()
    return runner, runner.addresses[0][1]


@contextmanager
def standin(**script: Any) -> Iterator[tuple[Standin, str]]:
    """A server on a thread of this process: its state, and its base URL without a version."""
    state, loop = Standin(Script(**script)), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner, port = asyncio.run_coroutine_threadsafe(serve(state), loop).result(10)
    try:
        yield state, f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _forever(script: Script, port: int) -> None:
    _, port = await serve(Standin(script), port)
    print(port, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", type=json.loads, default={}, help="JSON of `Script`'s fields")
    given = parser.parse_args()
    asyncio.run(_forever(Script(**given.script), given.port))


if __name__ == "__main__":
    main()
