"""Rows answered by a provider's batches: cheaper, within a day, and never paid for twice.

A row finds its answer by what it asks for, also in a batch that an earlier start submitted.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from actors.admission import Admitted
from actors.api_client import Connection
from actors.api_reading import Unusable
from actors.api_rows import APIRows
from actors.engine import Answer, Say
from actors.provider_batches import BatchFailed, BatchUnread, ProviderBatches
from pipelines.api_faults import status_fault
from pipelines.api_tier import API
from pipelines.cost import Usage
from pipelines.errors import RowProblem
from pipelines.keys import canonical_json, digest
from pipelines.requests import Request


@dataclass
class _Row:
    """A row that waits for its answer.

    Attributes:
        name: of what it asks for; equal rows are told apart by a number.
    """

    name: str
    line: bytes
    answer: "asyncio.Future[Answer]"
    submissions: int = 0
    usage: Usage = field(default_factory=Usage)


class BatchEngine(APIRows):
    """An `Engine` that collects its rows into batches of the provider.

    Args:
        defaults: the run's sampling fields, for what a row leaves out.
        run: names the run; batches that an earlier start of it left are taken up.

    Attributes:
        batches_read: what each row of a batch used, for who keeps the books to take away.
    """

    def __init__(self, config: API, defaults: Mapping[str, Any], run: str) -> None:
        super().__init__(config, defaults)
        self._limits, self._run = config.batch, run
        self._seen: Counter[str] = Counter()
        self._collected: list[_Row] = []
        self._bytes = 0
        self._joined = asyncio.Event()
        self._found: dict[str, str] = {}
        self.batches_read: dict[str, list[Usage]] = {}
        self._results: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._collecting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises: UsageProblem if there is no key; RunFailure if the provider lets nobody in."""
        self._connection = Connection(self._config, self._dialect.path)
        self._batches = ProviderBatches(self._connection, self._config, self._url, self._run)
        self._found = await self._batches.earlier()
        self.admission.open(self._limits.max_rows)

    async def answer(self, request: Request, say: Say | None = None) -> Answer:
        admitted = await self.admission.enter(request)
        if not isinstance(admitted, Admitted):
            return admitted
        with admitted:
            began = time.monotonic()
            row = self._row(self._body(request))
            if (batch := self._found.pop(row.name, None)) is not None:
                self._start(self._from_earlier(batch, row), [row])
            else:
                self._collect(row)
            answer = await row.answer
        return replace(answer, e2e_s=time.monotonic() - began)

    async def stop(self) -> None:
        for task in (*self._tasks, *self._results.values(), self._collecting):
            if task is not None:
                task.cancel()
        await self._connection.close()

    def _row(self, body: Mapping[str, Any]) -> _Row:
        asked = digest(canonical_json(body)).hex()
        name = f"{asked}-{self._seen[asked]}"
        self._seen[asked] += 1
        line = {"custom_id": name, "method": "POST", "url": self._url, "body": body}
        text = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        return _Row(name, text, asyncio.get_running_loop().create_future())

    @property
    def _url(self) -> str:
        return f"/v1{self._dialect.path}"

    def _collect(self, row: _Row) -> None:
        full = len(self._collected) >= self._limits.max_rows
        if full or self._bytes + len(row.line) > self._limits.max_bytes:
            self._send()
        self._collected.append(row)
        self._bytes += len(row.line)
        self._joined.set()
        if self._collecting is None or self._collecting.done():
            self._collecting = asyncio.create_task(self._send_in_time())

    async def _send_in_time(self) -> None:
        """Send what was collected once no row has joined for a while."""
        while self._collected:
            self._joined.clear()
            try:
                await asyncio.wait_for(self._joined.wait(), self._limits.collect_s)
            except TimeoutError:
                self._send()

    def _send(self) -> None:
        rows, self._collected, self._bytes = self._collected, [], 0
        if rows:
            self._start(self._answer_rows(rows), rows)

    def _start(self, work: Coroutine[Any, Any, None], rows: list[_Row]) -> None:
        """Work on rows in a task; what it raises is theirs."""
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            for row in rows:
                if error is not None and not row.answer.done():
                    row.answer.set_exception(error)

        task.add_done_callback(ended)

    async def _answer_rows(self, rows: list[_Row]) -> None:
        """Submit rows as one batch and give each what comes of it."""
        try:
            lines = b"".join(row.line for row in rows)
            submissions = [f"{row.name} {row.submissions}" for row in rows]
            results = await self._read(await self._batches.submit(lines, submissions))
        except BatchFailed as error:
            results = {}
            problem = f"the batch could not be submitted ({error})"
        except BatchUnread as error:
            for row in rows:
                self._leave(row, error)
            return
        else:
            problem = "its batch ended without an answer for it"
        for row in rows:
            row.submissions += 1
            self._settle(row, results.get(row.name), problem)

    async def _from_earlier(self, batch: str, row: _Row) -> None:
        """A row's answer from a batch that an earlier start submitted; if it has none, anew."""
        if batch not in self._results:
            self._results[batch] = asyncio.create_task(self._read(batch))
        try:
            result = (await asyncio.shield(self._results[batch])).get(row.name)
        except BatchUnread as error:
            self._leave(row, error)
            return
        row.submissions += 1
        if result is not None and _status(result) == 200:
            self._settle(row, result, "")
        else:
            # What failed before may succeed now: that is why somebody runs it again.
            self._collect(row)

    async def _read(self, batch: str) -> dict[str, Any]:
        results = await self._batches.results(batch)
        self.batches_read[batch] = [self._usage(result) for result in results.values()]
        return results

    def _leave(self, row: _Row, error: BatchUnread) -> None:
        """Its answer may be there already: sent again, it would be paid for twice."""
        said = f"{error}; `nightmill retry` has its answer once it can be read"
        told = RowProblem("unavailable", self._connection.without_key(said))
        row.answer.set_result(Answer(problem=told, usage=row.usage, attempts=row.submissions + 1))

    def _settle(self, row: _Row, result: Any, problem: str) -> None:
        outcome = self._outcome(row, result, problem)
        if isinstance(outcome, Answer):
            usage = row.usage + outcome.usage
            row.answer.set_result(replace(outcome, usage=usage, attempts=row.submissions))
        elif row.submissions >= self._limits.max_submissions:
            said = f"gave up after {row.submissions} batches: {outcome.message}"
            told = replace(outcome, message=self._connection.without_key(said))
            answer = Answer(problem=told, usage=row.usage, attempts=row.submissions)
            row.answer.set_result(answer)
        else:
            self._collect(row)

    def _usage(self, result: Any) -> Usage:
        if _status(result) != 200:
            return Usage()
        try:
            return self._dialect.read(result["response"].get("body")).usage
        except Unusable as error:
            return error.usage or Usage()

    def _outcome(self, row: _Row, result: Any, problem: str) -> Answer | RowProblem:
        """An answer, which may be a problem for good; or a problem that passes."""
        if result is None or not isinstance(result.get("response"), dict):
            return RowProblem("unavailable", problem)
        body = result["response"].get("body")
        if _status(result) != 200:
            raw = json.dumps(body).encode()
            fault = status_fault(_status(result), {}, raw, datetime.now(UTC))
            told = RowProblem(fault.kind, self._connection.without_key(fault.message))
            return Answer(problem=told) if fault.action in ("row", "fatal") else told
        try:
            return self._dialect.read(body)
        except Unusable as error:
            row.usage += error.usage or Usage()
            return RowProblem("malformed", f"the endpoint's answer is unusable: {error}")


def _status(result: Any) -> int:
    response = result.get("response")
    return int(response.get("status_code") or 0) if isinstance(response, dict) else 0
