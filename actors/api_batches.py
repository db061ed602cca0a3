"""Rows answered by a provider's batches: cheaper, within a day, and never paid for twice.

Nothing but the provider remembers which batches there are, so that whoever starts after a kill
asks it: a run's batches carry its id, and a row finds its answer by what it asks for.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from actors.admission import Admission, Admitted
from actors.api_client import Connection
from actors.api_dialects import Unusable, dialect_of
from actors.engine import Answer
from pipelines.api_faults import status_fault
from pipelines.api_tier import API
from pipelines.cost import Usage
from pipelines.engine_time import EngineClock, Occupancy
from pipelines.errors import RowProblem, RunFailure
from pipelines.keys import canonical_json, digest
from pipelines.requests import Request

if TYPE_CHECKING:
    from openai.types import Batch

_RUN, _ROWS = "nightmill_run", "nightmill_rows"
_OVER = ("completed", "failed", "expired", "cancelled")
_LOOK_BACK_S = 14 * 86_400
_CONTROL_RETRIES = 8
_CREATE_TRIES = 5
_CREATE_WAIT_S = 2.0


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


class _NotSubmitted(Exception):
    """The provider did not take a batch, time and again."""


class BatchEngine:
    """An `Engine` that collects its rows into batches of the provider.

    Args:
        defaults: the run's sampling fields, for what a row leaves out.
        run: names the run; batches that an earlier start of it left are taken up.
    """

    def __init__(self, config: API, defaults: Mapping[str, Any], run: str) -> None:
        self.model = config.model
        self.clock = EngineClock()
        self.occupancy = Occupancy()
        self.admission = Admission(defaults.get("max_tokens"))
        self._config, self._limits, self._run = config, config.batch, run
        self._defaults = defaults
        self._dialect = dialect_of(config)
        self._seen: Counter[str] = Counter()
        self._collected: list[_Row] = []
        self._bytes = 0
        self._joined = asyncio.Event()
        self._found: dict[str, str] = {}
        self._results: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._collecting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises: UsageProblem if there is no key; RunFailure if the provider lets nobody in."""
        self._connection = Connection(self._config, self._dialect.path)
        # The provider's batches are asked about; how often is not worth a breaker.
        self._client: Any = self._connection.client.with_options(max_retries=_CONTROL_RETRIES)
        try:
            await self._take_up()
        except self._refused() as error:
            raise self._run_failure(error) from None
        self.admission.open(self._limits.max_rows)

    def refuse(self, request: Request) -> RowProblem | None:
        return self._dialect.refuse(request, self._fields(request))

    async def answer(self, request: Request) -> Answer:
        admitted = await self.admission.enter(request)
        if not isinstance(admitted, Admitted):
            return admitted
        with admitted:
            began = time.monotonic()
            row = self._row(self._dialect.body(request, self._fields(request)))
            if (batch := self._found.pop(row.name, None)) is not None:
                self._start(self._from_earlier(batch, row), [row])
            else:
                self._collect(row)
            answer = await row.answer
        return replace(answer, e2e_s=time.monotonic() - began)

    def speculation_report(self) -> dict[str, Any]:
        return {}

    async def stop(self) -> None:
        for task in (*self._tasks, *self._results.values(), self._collecting):
            if task is not None:
                task.cancel()
        await self._connection.close()

    def _fields(self, request: Request) -> dict[str, Any]:
        return {**self._defaults, **request.sampling}

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
            results = await self._wait_for(await self._submit(rows))
        except self._refused() as error:
            raise self._run_failure(error) from None
        except self._failed() as error:
            results = {}
            problem = f"the batch could not be submitted or read ({type(error).__name__})"
        else:
            problem = "its batch ended without an answer for it"
        for row in rows:
            row.submissions += 1
            self._settle(row, results.get(row.name), problem)

    async def _from_earlier(self, batch: str, row: _Row) -> None:
        """A row's answer from a batch that an earlier start submitted; if it has none, anew."""
        if batch not in self._results:
            self._results[batch] = asyncio.create_task(self._wait_for(batch))
        try:
            result = (await asyncio.shield(self._results[batch])).get(row.name)
        except self._failed():
            result = None
        row.submissions += 1
        if result is not None and _status(result) == 200:
            self._settle(row, result, "")
        else:
            # What failed before may succeed now: that is why somebody runs it again.
            self._collect(row)

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

    async def _submit(self, rows: list[_Row]) -> str:
        """The id of a batch of these rows, which is made once whatever happens on the way."""
        data = b"".join(row.line for row in rows)
        submissions = [f"{row.name} {row.submissions}" for row in rows]
        metadata = {_RUN: self._run, _ROWS: digest(canonical_json(submissions)).hex()}
        file = await self._client.files.create(file=("rows.jsonl", data), purpose="batch")
        once = self._client.with_options(max_retries=0)
        for tries in range(_CREATE_TRIES):
            try:
                batch = await once.batches.create(
                    input_file_id=file.id,
                    endpoint=self._url,
                    completion_window=self._limits.completion_window,
                    metadata=metadata,
                )
                return str(batch.id)
            except self._unsure():
                # It may have been made all the same, and would be paid for.
                await asyncio.sleep(_CREATE_WAIT_S * tries)
                async for batch in self._own_batches():
                    if (batch.metadata or {}).get(_ROWS) == metadata[_ROWS]:
                        return batch.id
        raise _NotSubmitted

    async def _wait_for(self, name: str) -> dict[str, Any]:
        """A batch's results by row, once it is over."""
        batch = await self._client.batches.retrieve(name)
        while batch.status not in _OVER:
            await asyncio.sleep(self._limits.poll_s)
            batch = await self._client.batches.retrieve(name)
        results: dict[str, Any] = {}
        for file in (batch.error_file_id, batch.output_file_id):
            if file:
                for told in await self._lines(file):
                    results[str(told.get("custom_id"))] = told
        return results

    async def _take_up(self) -> None:
        """Look for batches that an earlier start of this run left behind."""
        async for batch in self._own_batches():
            for line in await self._lines(batch.input_file_id):
                # The newest batch comes first: a row was sent again because the older failed it.
                self._found.setdefault(line["custom_id"], batch.id)

    async def _own_batches(self) -> "AsyncIterator[Batch]":
        async for batch in self._client.batches.list(limit=100):
            if batch.created_at < time.time() - _LOOK_BACK_S:
                return
            if (batch.metadata or {}).get(_RUN) == self._run and batch.status != "failed":
                yield batch

    async def _lines(self, file: str) -> list[dict[str, Any]]:
        content = await self._client.files.content(file)
        return [json.loads(line) for line in content.content.splitlines() if line.strip()]

    def _run_failure(self, error: Exception) -> RunFailure:
        return RunFailure(
            f"{self._config.base_url}: {type(error).__name__}. To fix: correct base_url or "
            f"{self._config.key_source}, and run the same command again"
        )

    def _refused(self) -> tuple[type[Exception], ...]:
        from openai import AuthenticationError, NotFoundError, PermissionDeniedError

        return AuthenticationError, PermissionDeniedError, NotFoundError

    def _failed(self) -> tuple[type[Exception], ...]:
        from openai import APIError

        return APIError, _NotSubmitted, ValueError

    def _unsure(self) -> tuple[type[Exception], ...]:
        from openai import APIConnectionError, InternalServerError, RateLimitError

        return APIConnectionError, InternalServerError, RateLimitError


def _status(result: Any) -> int:
    response = result.get("response")
    return int(response.get("status_code") or 0) if isinstance(response, dict) else 0
