"""The response cache as its readers see it: answers kept between runs, in LanceDB.

Whatever goes wrong with it is a miss: an answer that cannot be vouched for is generated again.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from actors.cache_places import Follower, Places
from actors.cache_store import CacheStore, OneWarning, Warn, survived
from actors.question_search import QuestionSearch
from pipelines.cache_entries import (
    RESPONSES,
    CachedAnswer,
    Candidate,
    answer,
    entry_digest,
    questions_table,
)
from pipelines.config import ResponseCacheConfig, Storage


class ResponseCache:
    """Recall of what the cache held when this object was made or last refreshed.

    In memory are 25 bytes an answer and 25 bytes a question; all else is read by its place.

    Args:
        revision: 12 hexadecimal digits that name the embedder; without one `nearest` finds
            nothing.
    """

    def __init__(
        self,
        config: ResponseCacheConfig,
        storage: Storage,
        warn: Warn,
        revision: str | None = None,
    ) -> None:
        self._warn = OneWarning(warn)
        self._ttl = None if config.ttl_days is None else timedelta(days=config.ttl_days)
        store = CacheStore(config, storage)
        self._responses = Follower(store, RESPONSES, "request_key")
        self._keys = Places()
        self._questions: QuestionSearch | None = None
        if revision:
            self._questions = QuestionSearch(store, questions_table(revision), self._warn)
        self.refresh()

    def recall(self, keys: Sequence[str]) -> dict[str, CachedAnswer]:
        """The answers that the cache has, by hexadecimal request key."""
        found: dict[str, CachedAnswer] = {}
        if keys:
            with survived(self._warn, "reading failed, counted as misses"):
                found = self._recalled(keys)
        return found

    def nearest(
        self, scopes: Sequence[bytes], vectors: np.ndarray, at_least: float, limit: int
    ) -> list[list[Candidate]]:
        """Entries of the same scope whose questions are similar, per query, best first.

        Args:
            scopes: of each query, 16 bytes.
            vectors: float, of shape (queries, dimensions), each of length 1.
            at_least: the cosine from which on an entry is a candidate.
            limit: candidates per query.
        """
        nothing: list[list[Candidate]] = [[] for _ in scopes]
        if self._questions is None or not len(scopes):
            return nothing
        with survived(self._warn, "searching failed, counted as misses"):
            return self._questions.nearest(scopes, vectors, at_least, limit, self._oldest())
        return nothing

    def refresh(self) -> None:
        """See what was written since; cheap if nothing was, meant for every few seconds."""
        kind = "unusable, its rows are misses"
        try_again = True
        with survived(self._warn, kind):
            self._refresh_keys()
            if self._questions is not None:
                self._questions.refresh()
            try_again = False
        if try_again:
            self._forget()

    def __len__(self) -> int:
        """Answers that can be recalled."""
        return len(self._keys)

    def _refresh_keys(self) -> None:
        look = self._responses.look()
        if look.change == "anew":
            self._keys = Places()
        self._keys = self._keys.joined(look.names, look.rows)

    def _forget(self) -> None:
        """What cannot be read in one piece is not read in parts."""
        self._responses.forget()
        self._keys = Places()
        if self._questions is not None:
            self._questions.forget()

    def _recalled(self, keys: Sequence[str]) -> dict[str, CachedAnswer]:
        begin, end = self._keys.ranges([bytes.fromhex(key) for key in keys])
        rows = np.unique(self._keys.rows[begin[end > begin]])
        if not len(rows):
            return {}
        found = self._responses.table.take_row_ids(rows.tolist()).to_arrow().to_pylist()
        sound = [entry for entry in found if entry["digest"] == entry_digest(entry)]
        if len(sound) < len(found):
            self._warn("damaged entries were found and not served", "`cache compact` removes them")
        oldest = self._oldest()
        if oldest is not None:
            sound = [entry for entry in sound if entry["created_at"] >= oldest]
        return {entry["request_key"].hex(): answer(entry) for entry in sound}

    def _oldest(self) -> datetime | None:
        return None if self._ttl is None else datetime.now(UTC) - self._ttl
