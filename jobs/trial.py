"""One engine in a process tree of its own, measured on demand.

    python -m jobs.trial

Lines of JSON go in and out. The first names the tier, the sampling defaults, the planned engine
arguments and the requests; its reply, when the engine has started, the engine's sizes. Each
further one asks for a `Sample`. An engine that is gone with its process tree leaves nothing
behind that the next one would be measured with.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import psutil

from actors.engine import Answer
from actors.hardware import gpus
from pipelines.errors import RunFailure
from pipelines.requests import Request
from pipelines.tier import VLLM

_STOP_S = 20.0
_STALL_S = 120.0
_ROOM = 1.5
_WARM_UP = 16
"""Requests before each measurement: the first after a pause find cold caches."""
LONGEST_ANSWER = 128
"""Rates settle long before an answer of thousands of tokens ends."""


@dataclass(frozen=True)
class Sample:
    """What to measure: so many requests at once, of the `rows` from `first` on.

    Attributes:
        tokens: at most so many speculative tokens; None leaves it to the engine's own table.
    """

    batch_size: int
    first: int
    rows: int
    tokens: int | None = None


@dataclass(frozen=True)
class Measured:
    seconds: float
    completion_tokens: int
    draft_tokens: int
    accepted_tokens: int

    @property
    def tokens_per_s(self) -> float:
        return self.completion_tokens / self.seconds


class Trial(Protocol):
    """A started engine that can be measured.

    Attributes:
        leaves_room: another such engine can live beside it.
    """

    sizes: dict[str, int]
    leaves_room: bool

    def measure(self, sample: Sample) -> Measured: ...

    def close(self) -> None: ...


class EngineTrial:
    """A `Trial` of a real engine.

    Raises:
        RunFailure: the engine did not start, or died; with the end of what it logged.
    """

    def __init__(
        self,
        engine: VLLM,
        defaults: dict[str, Any],
        planned: dict[str, Any],
        requests: Sequence[str],
        log: Path,
    ) -> None:
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobs.trial"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        setup = {
            "engine": engine.model_dump(mode="json"),
            "defaults": defaults,
            "planned": planned,
            "requests": list(requests),
        }
        try:
            self.sizes: dict[str, int] = self._ask(setup)
        except RunFailure:
            self.close()
            raise
        self.leaves_room = self._leaves_room()

    def measure(self, sample: Sample) -> Measured:
        os.killpg(self._process.pid, signal.SIGCONT)
        measured = Measured(**self._ask(asdict(sample)))
        # Its processes look for work in a loop for a while, at the cost of whoever is next.
        os.killpg(self._process.pid, signal.SIGSTOP)
        return measured

    def close(self) -> None:
        """End the engine and everything that it started."""
        os.killpg(self._process.pid, signal.SIGCONT)
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _leaves_room(self) -> bool:
        """On a GPU an engine takes all the memory; here it takes what it says."""
        own = psutil.Process(self._process.pid)
        taken = sum(p.memory_info().rss for p in (own, *own.children(recursive=True)))
        return not gpus() and psutil.virtual_memory().available > _ROOM * taken

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        reply = self._process.stdout.readline()
        if not reply:
            lines = [line for line in self._log.read_text().splitlines() if "Error" in line]
            raise RunFailure(f"{lines[-1] if lines else 'the engine died'}; see {self._log}")
        answer: dict[str, Any] = json.loads(reply)
        return answer


class _Served:
    """The inside of a trial's process."""

    def __init__(self, setup: dict[str, Any]) -> None:
        from actors.vllm_engine import VLLMEngine

        config = VLLM.model_validate(setup["engine"])
        self.engine = VLLMEngine(config, setup["defaults"], 1, _STALL_S, setup["planned"])
        limit = setup["defaults"].get("max_tokens") or LONGEST_ANSWER
        self._requests = [_shortened(Request.from_json(t), limit) for t in setup["requests"]]

    async def measure(self, sample: Sample) -> Measured:
        if sample.tokens is not None:
            self.engine.speculation.hold(sample.tokens)
        await self._answers(replace(sample, rows=min(_WARM_UP, sample.rows)))
        # Rows that come again must cost what they cost the first time.
        await self.engine.forget_prefixes()
        began = time.perf_counter()
        answers = await self._answers(sample)
        return Measured(
            seconds=time.perf_counter() - began,
            completion_tokens=sum(a.usage.completion_tokens for a in answers),
            draft_tokens=sum(a.draft_tokens or 0 for a in answers),
            accepted_tokens=sum(a.accepted_tokens or 0 for a in answers),
        )

    async def _answers(self, sample: Sample) -> list[Answer]:
        rows = iter(range(sample.first, sample.first + sample.rows))
        answers = []

        async def lane() -> None:
            for row in rows:
                request = self._requests[row % len(self._requests)]
                answers.append(await self.engine.answer(request))

        await asyncio.gather(*(lane() for _ in range(min(sample.batch_size, sample.rows))))
        return answers


def _shortened(request: Request, default: int) -> Request:
    limit = min(request.sampling.get("max_tokens") or default, LONGEST_ANSWER)
    sampling = {**request.sampling, "max_tokens": limit}
    if sampling.get("min_tokens"):
        sampling["min_tokens"] = min(sampling["min_tokens"], limit)
    return Request(request.messages, sampling, request.tier)


async def _serve() -> None:
    # What libraries print must not stand between our lines.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    served = _Served(json.loads(sys.stdin.readline()))
    await served.engine.start()
    print(json.dumps(served.engine.sizes), file=replies, flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        measured = await served.measure(Sample(**json.loads(line)))
        print(json.dumps(asdict(measured)), file=replies, flush=True)
    await served.engine.stop()


if __name__ == "__main__":
    asyncio.run(_serve())
