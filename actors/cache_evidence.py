"""Where the response cache keeps what audits have shown: a file for each run and rule."""

from collections.abc import Callable

import pyarrow as pa
from pipelines.cache_ledger import EVIDENCE, evidence_by_group
from pipelines.wrong_hits import Evidence

from pipelines.config import ResponseCacheConfig, Storage
from pipelines.storage import Directory

_FOLDER = "evidence"


def earlier_evidence(
    cache: ResponseCacheConfig, storage: Storage, rule: str, warn: Callable[[str], None]
) -> dict[str, Evidence]:
    """The evidence of all runs under one rule, by group; what cannot be read counts as none.

    Args:
        rule: names all that decides whether a candidate is a hit. Evidence for one rule says
            nothing about another.
    """
    try:
        directory = Directory(cache.path, storage)
        parts = [directory.read_table(name) for name in directory.parts(f"{_FOLDER}/{rule}")]
        return evidence_by_group(pa.concat_tables([EVIDENCE.empty_table(), *parts]))
    # Whatever the storage layer raises: without evidence nothing is served, which is safe.
    except Exception as error:
        warn(f"response cache: its evidence cannot be read, similar rows miss: {error}")
        return {}


def record_evidence(
    cache: ResponseCacheConfig, storage: Storage, rule: str, run_id: str, evidence: pa.Table
) -> None:
    """Keep one run's evidence, of schema `EVIDENCE`; once more for the same run replaces it."""
    directory = Directory(cache.path, storage)
    directory.write_table(f"{_FOLDER}/{rule}/part-{run_id}.parquet", evidence)
