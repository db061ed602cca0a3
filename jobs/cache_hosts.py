"""The Ray around recall by similarity: two stages, and the two actors that they share."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from actors.audit import Audit, Auditor
from actors.cache_store import OneWarning, survived
from actors.embedder import Embedder
from actors.in_flight import Arrival, Lead
from actors.recall import recall_rows
from actors.response_cache import ResponseCache
from actors.semantic_recall import Rules, SemanticRecall
from actors.verifier import Verifier
from pipelines.agreement import AGREEMENT
from pipelines.config import ResponseCacheConfig, Semantic, Storage
from pipelines.gates import conflict
from pipelines.wrong_hits import chosen_for_audit

_REFRESH_EVERY_S = 5.0
Warn = Callable[[str], None]
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Similarity:
    """What recall by similarity needs to know of a run.

    Attributes:
        revision: of the embedder.
        policy, keyed_by, defaults: as for `question_of`.
        bounds, in_flight: actors that host a `HitBounds` and an `InFlight`.
        lot: makes the choice of audits another in every run.
    """

    cache: ResponseCacheConfig
    storage: Storage
    semantic: Semantic
    revision: str
    policy: bytes
    keyed_by: tuple[str, ...]
    defaults: Mapping[str, Any]
    bounds: Any
    in_flight: Any
    lot: str


class RecallHost:
    """Exact recall and recall by similarity in one actor of their pool, one block at a time.

    Whatever fails in the semantic half leaves its rows to be answered: a miss.
    """

    def __init__(self, similarity: Similarity, warn: Warn) -> None:
        self._warn = OneWarning(warn)
        self._cache = ResponseCache(similarity.cache, similarity.storage, warn, similarity.revision)
        self._refreshed = time.monotonic()
        self._lock = threading.Lock()
        self._semantic: SemanticRecall | None = None
        with survived(self._warn, "the embedder does not load, similar rows miss"):
            self._semantic = _semantic_recall(similarity, self._cache, warn)

    def __call__(self, table: pa.Table) -> pa.Table:
        with self._lock:
            self._refresh()
            table = recall_rows(table, self._cache)
            if self._semantic is None:
                return table
            with survived(self._warn, "recall by similarity failed, its rows miss"):
                return self._semantic.recall(table)
            return table

    def _refresh(self) -> None:
        if time.monotonic() - self._refreshed > _REFRESH_EVERY_S:
            self._cache.refresh()
            self._refreshed = time.monotonic()


class AuditHost:
    """Compares the answers of audited rows with those that they would have been served.

    Where that fails nothing bounds the hits of this run any more, so no more are served.
    """

    def __init__(self, similarity: Similarity, warn: Warn) -> None:
        self._warn, self._bounds = OneWarning(warn), similarity.bounds
        self._auditor: Auditor | None = None
        with survived(self._failed, "audits cannot be made"):
            self._auditor = _auditor(similarity)

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._auditor is None:
            return table
        with survived(self._failed, "audits failed"):
            return self._auditor.audit(table)
        return table

    def _failed(self, kind: str, error: BaseException) -> None:
        self._bounds.close_all.remote()
        self._warn(f"{kind}, no similar answer is served any more", error)


def _auditor(similarity: Similarity) -> Auditor:
    bounds, in_flight = similarity.bounds, similarity.in_flight

    def report(audits: Sequence[Audit]) -> None:
        ray.get(bounds.add.remote(audits))

    def known(keys: Sequence[str]) -> Mapping[str, str]:
        answers: Mapping[str, str] = ray.get(in_flight.answers.remote(keys))
        return answers

    def tell(answers: Mapping[str, str]) -> None:
        in_flight.answered.remote(answers)

    return Auditor(_agreement(similarity.semantic), report, known, tell)


def _semantic_recall(similarity: Similarity, cache: ResponseCache, warn: Warn) -> SemanticRecall:
    semantic = similarity.semantic

    def thresholds(groups: Sequence[str]) -> Mapping[str, float | None]:
        found: Mapping[str, float | None] = ray.get(similarity.bounds.thresholds.remote(groups))
        return found

    def join(arrivals: Sequence[Arrival]) -> Sequence[Lead | None]:
        leads: Sequence[Lead | None] = ray.get(similarity.in_flight.join.remote(arrivals))
        return leads

    rules = Rules(
        at_least=semantic.similarity,
        embed=Embedder(semantic).embed,
        conflict=conflict,
        agree=_verdicts(semantic, warn),
        thresholds=thresholds,
        chosen=partial(chosen_for_audit, share=semantic.audit_share, seed=similarity.lot),
        join=join,
    )
    return SemanticRecall(rules, cache, similarity.policy, similarity.keyed_by, similarity.defaults)


def _verdicts(semantic: Semantic, warn: Warn) -> Callable[[Pairs], Sequence[bool]]:
    if semantic.verifier is None:
        return lambda pairs: [True] * len(pairs)
    return Verifier(semantic.verifier, warn, semantic.verifier_threshold).agree


def _agreement(semantic: Semantic) -> Callable[[Pairs], Sequence[bool]]:
    if semantic.agreement == "embedding":
        return partial(_alike, Embedder(semantic), semantic.answer_similarity)
    agree = AGREEMENT[semantic.agreement]
    return lambda pairs: [agree(cached, fresh) for cached, fresh in pairs]


def _alike(embedder: Embedder, at_least: float, pairs: Pairs) -> list[bool]:
    """Whether answers mean about the same, by their embeddings."""
    cached, fresh = (embedder.embed(texts) for texts in zip(*pairs, strict=True))
    return [bool(similarity >= at_least) for similarity in (cached * fresh).sum(axis=1)]
