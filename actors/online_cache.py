"""The response cache as the online service uses it: recall for one row, and writing behind it."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Protocol

import pyarrow as pa

from actors.recall import answer_columns
from actors.response_cache import ResponseCache
from actors.semantic_recall import SemanticRecall
from pipelines.cache_admission import admissible
from pipelines.cache_entries import CachedAnswer
from pipelines.schema import TRAVELLING

logger = logging.getLogger(__name__)

_REFRESH_EVERY_S = 5.0
_REMEMBERED_S = 60.0
"""From when an answer is known here until readers of the cache surely see it."""
_WRITE_EVERY_S = 1.0

Row = dict[str, Any]


class WriterCalls(Protocol):
    """A `CacheWriter`, wherever it is."""

    async def append(self, entries: pa.Table, questions: pa.Table | None) -> None: ...


class OnlineCache:
    """Lives on one event loop; LanceDB and the embedder work in a thread of their own.

    Args:
        tenant: the column that names it.
        semantic: recall by similarity, if there is any; built in that thread.
    """

    def __init__(
        self,
        cache: ResponseCache,
        writer: WriterCalls,
        tenant: str,
        semantic: Callable[[ResponseCache], SemanticRecall | None],
    ) -> None:
        self._cache, self._writer, self._tenant = cache, writer, tenant
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recall")
        self._semantic = self._thread.submit(semantic, cache).result()
        self._recent: dict[str, tuple[float, CachedAnswer]] = {}
        self._waiting: list[Row] = []
        self._refreshed = time.monotonic()

    async def recall(self, row: Row) -> Row:
        """The row, answered if the cache has an answer for it."""
        if not row["_shareable"]:
            return row
        recent = self._recent.get(row["request_key"])
        if recent is not None and time.monotonic() - recent[0] <= _REMEMBERED_S:
            return {**row, **_hit(recent[1])}
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._recalled, row)

    def _recalled(self, row: Row) -> Row:
        if time.monotonic() - self._refreshed > _REFRESH_EVERY_S:
            self._cache.refresh()
            self._refreshed = time.monotonic()
        key = row["request_key"]
        found = self._cache.recall([key])
        if key in found:
            return {**row, **_hit(found[key])}
        if self._semantic is None:
            return row
        # Embedding takes far longer than making a block of one row.
        recalled = self._semantic.recall(_table([row], self._tenant)).select(TRAVELLING.names)
        return {**row, **recalled.to_pylist()[0]}

    def keep(self, row: Row) -> None:
        """Have an answer written, if it is one that others may be served."""
        self._waiting.append(row)

    async def write_regularly(self) -> None:
        """Until cancelled; then once more. Trouble costs the answers of one turn, and a warning."""
        try:
            while True:
                await asyncio.sleep(_WRITE_EVERY_S)
                try:
                    await self.write()
                except Exception as error:
                    logger.warning("response cache: answers of a second were not kept: %s", error)
        finally:
            await self.write()

    async def write(self) -> None:
        rows, self._waiting = self._waiting, []
        self._forget()
        if not rows:
            return
        table = _table(rows, self._tenant)
        entries, questions = admissible(table, datetime.now(UTC), self._tenant)
        if entries.num_rows:
            await self._writer.append(entries, questions)

    def remember(self, row: Row) -> None:
        """Serve this answer from memory until the cache can: it is the same to who asks next."""
        answer = CachedAnswer(
            row["response"], row["finish_reason"], row["prompt_tokens"],
            row["completion_tokens"], row["tier"], row["model"],
        )  # fmt: skip
        self._recent[row["request_key"]] = (time.monotonic(), answer)

    def _forget(self) -> None:
        oldest = time.monotonic() - _REMEMBERED_S
        self._recent = {k: held for k, held in self._recent.items() if held[0] > oldest}


def _hit(found: CachedAnswer) -> Row:
    columns = answer_columns([found], "cache_exact")
    return {**{name: values[0] for name, values in columns.items()}, "similarity": 1.0}


def _table(rows: list[Row], tenant: str) -> pa.Table:
    table = pa.Table.from_pylist(rows, schema=TRAVELLING)
    named: list[Mapping[str, Any]] = [row["_values"] for row in rows]
    columns = sorted({tenant, *(name for values in named for name in values)})
    for name in columns:
        values = [v.get(name) for v in named]
        texts = [None if value is None else str(value) for value in values]
        table = table.append_column(name, pa.array(texts, pa.string()))
    return table
