"""A provider's batches, as one run sees its own: submitted, awaited, and found again after a kill.

Nothing but the provider remembers which batches there are: they carry the run's id.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from actors.api_client import Connection
from pipelines.api_tier import API
from pipelines.errors import RunFailure
from pipelines.keys import canonical_json, digest

if TYPE_CHECKING:
    from openai.types import Batch

_RUN, _ROWS = "nightmill_run", "nightmill_rows"
_OVER = ("completed", "failed", "expired", "cancelled")
_LOOK_BACK_S = 14 * 86_400
_CONTROL_RETRIES = 8
_CREATE_TRIES = 5
_READ_TRIES = 5
_CREATE_WAIT_S = 2.0


class BatchFailed(Exception):
    """A batch that could not be submitted, with the kind of what stood in the way."""


class BatchUnread(Exception):
    """A batch that there is, and that is paid for, but whose results cannot be had now."""


class ProviderBatches:
    """Every call raises RunFailure if the provider lets nobody in, else BatchFailed where it names
    no other.

    Args:
        url: of the requests in a batch, from the host on.
        run: names the run.
    """

    def __init__(self, connection: Connection, config: API, url: str, run: str) -> None:
        self._config, self._url, self._run = config, url, run
        # The provider's batches are asked about; how often is not worth a breaker.
        self._client: Any = connection.client.with_options(max_retries=_CONTROL_RETRIES)

    async def submit(self, lines: bytes, submissions: Sequence[str]) -> str:
        """The id of a batch of these rows, which is made once whatever happens on the way.

        Args:
            submissions: tell these rows, in this batch, from all others of the run.
        """
        metadata = {_RUN: self._run, _ROWS: digest(canonical_json(submissions)).hex()}
        with self._told():
            file = await self._client.files.create(file=("rows.jsonl", lines), purpose="batch")
            return await self._create(file.id, metadata)

    async def results(self, name: str) -> dict[str, Any]:
        """A batch's results by row, once it is over.

        Raises:
            BatchUnread: time and again it cannot be asked about, or its files cannot be read.
        """
        failures = 0
        while True:
            try:
                with self._told():
                    batch = await self._client.batches.retrieve(name)
                    if batch.status in _OVER:
                        return await self._told_by(batch)
                failures = 0
            except BatchFailed as error:
                failures += 1
                if failures == _READ_TRIES:
                    raise BatchUnread(f"batch {name}: {error}") from error
            await asyncio.sleep(self._config.batch.poll_s * max(failures, 1))

    async def earlier(self) -> dict[str, str]:
        """Row -> the newest batch that an earlier start of this run has submitted it in."""
        found: dict[str, str] = {}
        with self._told():
            async for batch in self._own():
                for line in await self._lines(batch.input_file_id):
                    # The newest comes first: a row was sent again because the older failed it.
                    found.setdefault(line["custom_id"], batch.id)
        return found

    async def _told_by(self, batch: "Batch") -> dict[str, Any]:
        files = [file for file in (batch.error_file_id, batch.output_file_id) if file]
        told = [line for file in files for line in await self._lines(file)]
        return {str(line.get("custom_id")): line for line in told}

    async def _create(self, file: str, metadata: dict[str, str]) -> str:
        from openai import APIConnectionError, InternalServerError, RateLimitError

        once = self._client.with_options(max_retries=0)
        for tries in range(_CREATE_TRIES):
            try:
                batch = await once.batches.create(
                    input_file_id=file,
                    endpoint=self._url,
                    completion_window=self._config.batch.completion_window,
                    metadata=metadata,
                )
                return str(batch.id)
            except (APIConnectionError, InternalServerError, RateLimitError):
                # It may have been made all the same, and would be paid for.
                await asyncio.sleep(_CREATE_WAIT_S * (tries + 1))
                async for batch in self._own():
                    if (batch.metadata or {}).get(_ROWS) == metadata[_ROWS]:
                        return batch.id
        raise BatchFailed("not taken, time and again")

    async def _own(self) -> "AsyncIterator[Batch]":
        async for batch in self._client.batches.list(limit=100):
            if batch.created_at < time.time() - _LOOK_BACK_S:
                return
            if (batch.metadata or {}).get(_RUN) == self._run and batch.status != "failed":
                yield batch

    async def _lines(self, file: str) -> list[dict[str, Any]]:
        content = await self._client.files.content(file)
        return [json.loads(line) for line in content.content.splitlines() if line.strip()]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The client's errors as the two kinds that make a difference."""
        from openai import APIError, AuthenticationError, NotFoundError, PermissionDeniedError

        try:
            yield
        except (AuthenticationError, PermissionDeniedError, NotFoundError) as error:
            raise RunFailure(
                f"{self._config.base_url}: {type(error).__name__}. To fix: correct base_url or "
                f"{self._config.key_source}, and run the same command again"
            ) from None
        except (APIError, ValueError) as error:
            raise BatchFailed(type(error).__name__) from error
