"""What every engine is: something that answers one request at a time, many at once."""

import asyncio
import json
import math
import re
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from actors.admission import Admission, Admitted
from pipelines.api_tier import API
from pipelines.cost import Usage
from pipelines.engine_time import EngineClock, Occupancy
from pipelines.errors import RowProblem
from pipelines.requests import Request, other_forms
from pipelines.tier import Scripted, Tier

if TYPE_CHECKING:
    from actors.rate_limits import RateLimitCalls


@dataclass(frozen=True)
class Answer:
    """What came of one request: a response, or the problem that stood in its way.

    Attributes:
        reasoning: and what follows it: the columns `BEYOND_TEXT`.
        engine_ns: its share of the replica's time, in nanoseconds.
        ttft_s: from handing it to the engine to the first token, in seconds.
        e2e_s: to the last token.
        draft_tokens: tokens that were speculated for it; None where the engine does not.
        accepted_tokens: those of them that the model agreed with; the last step's may lie
            past the answer's end.
    """

    response: str | None = None
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    engine_ns: int = 0
    attempts: int = 1
    ttft_s: float | None = None
    e2e_s: float | None = None
    draft_tokens: int | None = None
    accepted_tokens: int | None = None
    problem: RowProblem | None = None
    reasoning: str | None = None
    tool_calls: str | None = None
    choices: str | None = None
    token_logprobs: str | None = None
    embedding: Sequence[float] | None = None
    scores: str | None = None


@dataclass(frozen=True)
class Piece:
    """Some more of an answer's text, on its way.

    Attributes:
        choice: which of the answer's choices it belongs to.
        logprobs: of its tokens, in OpenAI's chat format, where they were asked for.
    """

    choice: int
    text: str
    logprobs: dict[str, Any] | None = None


Say = Callable[[Piece], None]
GIVEN_UP = RowProblem("engine", "nobody waited for the answer any more")


class Engine(Protocol):
    """Answers requests. Lives on one event loop and is never called from another.

    `answer` does not raise for anything that one request brings about; that is an `Answer`
    with a `problem`. It raises only when the engine cannot be used at all, which ends the run.
    Cancelled, it frees what the request held.

    It may tell `say` of pieces as they come. They are a part of the answer that it returns, which
    is whole in any case: an engine that cannot stream says nothing.
    """

    model: str
    clock: EngineClock
    occupancy: Occupancy
    admission: Admission

    async def start(self) -> None:
        """Load the model. Raises what the engine raises; the run then ends."""
        ...

    def refuse(self, request: Request) -> RowProblem | None:
        """A problem that can be told without the model. A run of such rows loads none."""
        ...

    async def answer(self, request: Request, say: Say | None = None) -> Answer: ...

    def give_up(self, request: Request) -> bool:
        """End a request, the very one that `answer` was asked, because nobody waits for it.

        Returns:
            Whether its answer now comes with what it has used. If not, nothing was used, and
            cancelling ends it.
        """
        ...

    def speculation_report(self) -> dict[str, Any]:
        """What it drafted so far; empty if it does not speculate."""
        ...

    async def stop(self) -> None: ...


class ScriptedEngine:
    """A deterministic engine for tests, dry runs and measuring everything but generation.

    The answer is the last user text in upper case. A token is a word. `fail_every=n` fails the
    prompts whose checksum is divisible by n, always the same ones.
    """

    def __init__(self, config: Scripted) -> None:
        self.model = config.model
        self.clock = EngineClock()
        self.occupancy = Occupancy()
        self.admission = Admission(None)
        self._config = config
        self._ids = count()
        self._speaking: dict[int, asyncio.Task[int]] = {}

    async def start(self) -> None:
        self.admission.open(self._config.max_num_seqs)

    def refuse(self, request: Request) -> RowProblem | None:
        if not self._config.replies and (asked := other_forms(request.sampling)):
            return RowProblem("unsupported", f"{asked[0]}: the scripted engine answers plain text")
        return None

    async def answer(self, request: Request, say: Say | None = None) -> Answer:
        admitted = await self.admission.enter(request)
        if not isinstance(admitted, Admitted):
            return admitted
        answer = self._scripted(request)
        with admitted:
            name, started = str(next(self._ids)), time.monotonic_ns()
            self.clock.admit(name, 1, started)
            try:
                first = await self._spoken(request, answer, say)
            finally:
                ended = time.monotonic_ns()
                engine_ns = self.clock.finish(name, 1, ended)
        if first is None:
            share = (ended - started) / 1e9 / self._config.delay_s
            return replace(_cut(answer, share), engine_ns=engine_ns)
        ttft_s, e2e_s = (first - started) / 1e9, (ended - started) / 1e9
        return replace(answer, engine_ns=engine_ns, ttft_s=ttft_s, e2e_s=e2e_s)

    def give_up(self, request: Request) -> bool:
        speaking = self._speaking.get(id(request))
        return speaking is not None and speaking.cancel()

    async def _spoken(self, request: Request, answer: Answer, say: Say | None) -> int | None:
        """When the first word came; None if nobody waited for the last."""
        if not self._config.delay_s:
            return await self._said(answer, say)
        speaking = self._speaking[id(request)] = asyncio.ensure_future(self._said(answer, say))
        try:
            # Not for its result: to be given up is not to be cancelled.
            await asyncio.wait({speaking})
        finally:
            speaking.cancel()
            self._speaking.pop(id(request), None)
        return None if speaking.cancelled() else speaking.result()

    async def _said(self, answer: Answer, say: Say | None) -> int:
        """Take the time that the answer takes, a word after the other; when the first came."""
        silent = say is None or not answer.response or answer.token_logprobs
        words = [] if silent else (answer.response or "").split(" ")
        first = 0
        for i, word in enumerate(words):
            await asyncio.sleep(self._config.delay_s / len(words))
            first = first or time.monotonic_ns()
            assert say is not None
            say(Piece(0, word if i == 0 else f" {word}"))
        if not words and self._config.delay_s:
            await asyncio.sleep(self._config.delay_s)
        return first or time.monotonic_ns()

    def _scripted(self, request: Request) -> Answer:
        text = request.last_user_text
        if self._config.fail_every and zlib.crc32(text.encode()) % self._config.fail_every == 0:
            return Answer(problem=RowProblem("engine", "scripted failure"))
        reply = next((r for r in self._config.replies if re.search(r.regex, text)), None)
        if reply is not None and reply.fails:
            return Answer(problem=RowProblem(reply.fails, "scripted failure"))
        words = (reply.response if reply else text.upper()).split(" ")
        limit = request.sampling.get("max_tokens", len(words))
        usage = Usage(
            prompt_tokens=sum(len(str(m.get("content")).split()) for m in request.messages),
            completion_tokens=min(limit, len(words)),
        )
        reason = "length" if limit < len(words) else "stop"
        logprobs = None
        if request.sampling.get("logprobs"):
            logprob = math.log(reply.confidence) if reply else 0.0
            tokens = [{"token": word, "logprob": logprob} for word in words[:limit]]
            logprobs = json.dumps({"content": tokens})
        return Answer(" ".join(words[:limit]), reason, usage, token_logprobs=logprobs)

    def speculation_report(self) -> dict[str, Any]:
        return {}

    async def stop(self) -> None:
        pass


def _cut(answer: Answer, share: float) -> Answer:
    """What a share of an answer has used."""
    tokens = int(answer.usage.completion_tokens * min(share, 1.0))
    return Answer(problem=GIVEN_UP, usage=replace(answer.usage, completion_tokens=tokens))


def build_engine(
    tier: Tier,
    defaults: dict[str, Any],
    planned: dict[str, Any] | None = None,
    limits: "RateLimitCalls | None" = None,
    run: str = "",
) -> Engine:
    """The engine that a tier's configuration names, not yet started.

    Args:
        planned: engine arguments that `tune` found for it.
        limits: the rate limits that an API tier shares with other engines.
        run: the run's id, by which a provider's batches are found again.
    """
    if isinstance(tier.engine, Scripted):
        return ScriptedEngine(tier.engine)
    if isinstance(tier.engine, API):
        if tier.engine.mode == "batch":
            from actors.api_batches import BatchEngine

            return BatchEngine(tier.engine, defaults, run)
        from actors.api_engine import APIEngine

        return APIEngine(tier.engine, defaults, limits, has_fallback=tier.fallback is not None)
    from actors.vllm_engine import VLLMEngine

    return VLLMEngine(tier.engine, defaults, tier.max_attempts, tier.stall_s, planned)
