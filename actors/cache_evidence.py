"""Where the response cache keeps what audits have shown: a file for each run and rule."""

from collections.abc import Callable

import pyarrow as pa

from pipelines.cache_ledger import EVIDENCE_SCHEMA, past_evidence
from pipelines.config import ResponseCacheConfig, Storage
from pipelines.storage import Directory
from pipelines.wrong_hits import Evidence

_FOLDER = "evidence"


class EvidenceStore:
    """The evidence for one rule.

    Args:
        rule: names all that decides whether a candidate is a hit. What audits have shown of one
            rule says nothing about another.
        warn: told what went wrong. Without evidence nothing is served, which is safe.
    """

    def __init__(
        self, cache: ResponseCacheConfig, storage: Storage, rule: str, warn: Callable[[str], None]
    ) -> None:
        self._cache, self._storage, self._rule, self._warn = cache, storage, rule, warn

    def of_other_runs(self, levels: tuple[float, ...], run_id: str) -> dict[str, Evidence]:
        """By group, what all runs but this one have shown; what cannot be read counts as none."""
        try:
            directory = Directory(self._cache.path, self._storage)
            names = directory.parts(f"{_FOLDER}/{self._rule}")
            lines = [directory.read_table(name) for name in names if name != self._name(run_id)]
            return past_evidence(pa.concat_tables([EVIDENCE_SCHEMA.empty_table(), *lines]), levels)
        # Whatever the storage layer raises.
        except Exception as error:
            self._warn(f"response cache: its evidence cannot be read, similar rows miss: {error}")
            return {}

    def record(self, run_id: str, lines: pa.Table) -> None:
        """Keep one run's, of schema `EVIDENCE_SCHEMA`; once more for the same run replaces it."""
        try:
            Directory(self._cache.path, self._storage).write_table(self._name(run_id), lines)
        # Losing evidence costs audits later; it is no reason to fail a run that has answered.
        except Exception as error:
            self._warn(f"response cache: its evidence could not be kept: {error}")

    def _name(self, run_id: str) -> str:
        return f"{_FOLDER}/{self._rule}/part-{run_id}.parquet"
