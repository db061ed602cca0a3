"""The generate step: a tier's engine answers the rows that are its own."""

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import pyarrow as pa

from actors.engine import Answer, Engine, Say
from actors.meter import Grant
from pipelines.cost import Usage, token_cost
from pipelines.errors import RowProblem
from pipelines.ledger import Replica
from pipelines.prices import HourRate, TokenRate
from pipelines.requests import Request
from pipelines.schema import BEYOND_TEXT, patch
from pipelines.tier import Tier
from pipelines.waiting import rows_for_tier
from pipelines.worst_case import worst_nusd

_WAIT_FOR_BUDGET_S = 0.1


class Meter(Protocol):
    """Where a generator reports, and asks before it spends."""

    def reserve(self, name: str, nusd: int) -> Awaitable[Grant]: ...

    def settle(self, name: str, reserved_nusd: int, spent_nusd: int) -> None: ...

    def report_replica(self, name: str, replica: Replica) -> None: ...


class Generator:
    """One replica of a tier.

    The engine starts with the first row that needs it: a run that the response cache answers
    whole never loads a model. Lives on one event loop.

    Args:
        name: tells this replica from all others of the run.
        defaults: the run's sampling fields, for what a row leaves out.
        metered: whether a budget is set; without one no row waits for a grant.
        plan: the key of the tuning plan that the engine runs with, or nothing.
    """

    def __init__(
        self,
        name: str,
        tier: Tier,
        engine: Engine,
        rate: TokenRate | HourRate,
        meter: Meter,
        attempt_id: str,
        defaults: Mapping[str, Any],
        metered: bool,
        plan: str = "",
    ) -> None:
        self.tier = tier
        self._name = name
        self._engine = engine
        self._rate = rate
        self._meter = meter
        self._attempt_id = attempt_id
        self._defaults = defaults
        self._metered = metered
        self._plan = plan
        self._born = time.monotonic_ns()
        self._load_ns = 0
        self._tokens = 0
        self._token_nusd = 0
        self._batch_nusd: dict[str, int] = {}
        self._unsettled_nusd = 0
        self._started: asyncio.Task[None] | None = None
        self._gate = asyncio.Lock()

    async def generate(self, table: pa.Table) -> pa.Table:
        """Answer the rows whose `tier` is this one; the others pass untouched."""
        at = rows_for_tier(table, self.tier.name)
        if not at:
            return table
        rows = table.select(["_request", "_asked", "_work"]).take(at).to_pylist()
        requests = [Request.from_json(row["_asked"] or row["_request"]) for row in rows]
        answers = await self.answers(requests)
        work = [
            [*(row["_work"] or ()), *self.work(answer)]
            for row, answer in zip(rows, answers, strict=True)
        ]
        told = [answered(answer, self._engine.model) for answer in answers]
        columns = {name: [row[name] for row in told] for name in told[0]}
        return patch(table, at, {**columns, "_work": work})

    async def answers(
        self, requests: Sequence[Request], say: Say | None = None
    ) -> list[Answer | None]:
        """The answers, in order; None where the budget does not allow one.

        Args:
            say: is told pieces of them, as for `Engine.answer`.
        """
        refusals = [self._engine.refuse(request) for request in requests]
        # Rows wait at the engine's door while it loads, where other replicas may take them.
        pairs = zip(requests, refusals, strict=True)
        answering = asyncio.gather(*(self._answer(*pair, say) for pair in pairs))
        if None in refusals:
            await self._while_loading(answering)
        answers = await answering
        self._meter.settle(self._name, 0, self._unsettled_nusd)
        self._unsettled_nusd = 0
        self.report()
        return answers

    def work(self, answer: Answer | None) -> list[dict[str, Any]]:
        """What the tier did for a row, as a line of its bill; none if it was not let in."""
        if answer is None:
            return []
        return [
            {
                "tier": self.tier.name,
                **asdict(answer.usage),
                "engine_ns": answer.engine_ns,
                "attempt_id": self._attempt_id,
            }
        ]

    async def _while_loading(self, answering: "asyncio.Future[Any]") -> None:
        try:
            await self.start()
        except BaseException:
            # Nobody will ever open the door for them.
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            raise

    async def start(self) -> None:
        """Load the engine once, whoever asks first."""
        if self._started is None:
            self._started = asyncio.create_task(self._load())
        await self._started

    def report(self) -> None:
        """Tell the meter this replica's life so far; may be called from any thread."""
        alive = time.monotonic_ns() - self._born
        loading = self._started is not None and not self._started.done()
        self._meter.report_replica(
            self._name,
            Replica(
                self.tier.name,
                alive_ns=alive,
                load_ns=alive if loading else self._load_ns,
                busy_ns=self._engine.clock.busy_ns,
                active_ns=self._engine.clock.active_ns,
                tokens=self._tokens,
                token_nusd=self._token_nusd if not self._batch_nusd else 0,
                batch_nusd=dict(self._batch_nusd),
                model=self._engine.model,
                sizes=getattr(self._engine, "sizes", {}),
                **self._engine.occupancy.as_dict(),
                plan=self._plan,
                speculation=self._engine.speculation_report(),
            ),
        )

    async def _load(self) -> None:
        began = time.monotonic_ns()
        await self._engine.start()
        self._load_ns = time.monotonic_ns() - began

    async def _answer(
        self, request: Request, refusal: RowProblem | None, say: Say | None
    ) -> Answer | None:
        """The answer, or None if the budget does not allow one."""
        if refusal is not None:
            return Answer(problem=refusal, attempts=0)
        if not self._metered:
            answer = await self._engine.answer(request, say)
            self._unsettled_nusd += self._count(answer)
            return answer
        reserved = worst_nusd(request, self._defaults, self._rate)
        async with self._gate:
            while (grant := await self._meter.reserve(self._name, reserved)) == "wait":
                await asyncio.sleep(_WAIT_FOR_BUDGET_S)
        if grant == "closed":
            return None
        answer = await self._engine.answer(request, say)
        self._meter.settle(self._name, reserved, self._count(answer))
        return answer

    def _count(self, answer: Answer) -> int:
        """Count the answer's tokens; returns what they cost by the token, in nano-dollars."""
        self._tokens += answer.usage.prompt_tokens + answer.usage.completion_tokens
        nusd = token_cost(answer.usage, self._rate) if isinstance(self._rate, TokenRate) else 0
        self._token_nusd += nusd
        self._count_batches()
        return nusd

    def _count_batches(self) -> None:
        read: dict[str, list[Usage]] = getattr(self._engine, "batches_read", {})
        while read and isinstance(self._rate, TokenRate):
            name, usages = read.popitem()
            self._batch_nusd[name] = sum(token_cost(usage, self._rate) for usage in usages)


def answered(answer: Answer | None, model: str) -> dict[str, Any]:
    """What an answer fills in on its row; pending if there is none."""
    done = answer or Answer()
    status = "pending" if answer is None else "error" if done.problem else "ok"
    return {
        "status": status,
        "source": "generated" if status == "ok" else None,
        "response": done.response,
        "finish_reason": done.finish_reason,
        "model": model,
        "prompt_tokens": done.usage.prompt_tokens,
        "cached_prompt_tokens": done.usage.cached_prompt_tokens,
        "completion_tokens": done.usage.completion_tokens,
        "attempts": done.attempts,
        "ttft_s": done.ttft_s,
        "e2e_s": done.e2e_s,
        "draft_tokens": done.draft_tokens,
        "accepted_tokens": done.accepted_tokens,
        "error_kind": done.problem.kind if done.problem else None,
        "error": done.problem.message if done.problem else None,
        **{name: getattr(done, name) for name in BEYOND_TEXT.names},
    }
