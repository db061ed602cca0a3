"""The response cache as the endpoint writes it: trouble costs answers of a moment, never more."""

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest
from test_online_service import Here, plan_of

from actors import online_cache
from actors.online_cache import OnlineCache
from actors.response_cache import ResponseCache
from pipelines.config import ResponseCacheConfig, Storage


class Writer:
    """Fails at its first turn."""

    def __init__(self) -> None:
        self.turns = 0
        self.kept = 0

    async def append(self, entries: pa.Table, questions: pa.Table | None) -> None:
        self.turns += 1
        if self.turns == 1:
            raise ConnectionError("the writer is being replaced")
        self.kept += entries.num_rows


def test_a_turn_that_fails_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_cache, "_WRITE_EVERY_S", 0.02)

    async def kept() -> Writer:
        here, writer = Here(plan_of(tmp_path)), Writer()
        cache = OnlineCache(_read(tmp_path), writer, "tenant", _no_similarity)
        writing = asyncio.create_task(cache.write_regularly())
        for text in ("one", "two"):
            asked = await here.answer(here.asked(text))
            cache.keep(asked.row)
            turns = writer.turns
            while writer.turns == turns:
                await asyncio.sleep(0.01)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        return writer

    writer = asyncio.run(kept())
    assert (writer.turns, writer.kept) == (2, 1)


def test_what_was_remembered_too_long_ago_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sources() -> list[str | None]:
        here = Here(plan_of(tmp_path))
        cache = OnlineCache(_read(tmp_path), Writer(), "tenant", _no_similarity)
        cache.remember((await here.answer(here.asked("one"))).row)
        found = [(await cache.recall(here.asked("one").row))["source"]]
        monkeypatch.setattr(online_cache, "_REMEMBERED_S", -1.0)
        return [*found, (await cache.recall(here.asked("one").row))["source"]]

    assert asyncio.run(sources()) == ["cache_exact", None]


def _read(folder: Path) -> ResponseCache:
    return ResponseCache(ResponseCacheConfig(path=str(folder / "cache")), Storage(), _ignore)


def _ignore(_: str) -> None:
    pass


def _no_similarity(_: ResponseCache) -> None:
    pass
