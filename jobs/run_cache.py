"""The response cache in one run: its actors, its stages, and what is known of it at the end."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray

from actors.cache_evidence import EvidenceStore
from actors.cache_writer import CacheWriter
from actors.hit_bounds import HitBounds
from actors.in_flight import InFlight
from jobs.cache_hosts import AuditHost, RecallHost, Similarity
from jobs.placement import beside_driver
from jobs.preflight import Plan
from jobs.remote import RemoteMeter
from pipelines.cache_ledger import (
    LEDGER_COLUMNS,
    Account,
    Terms,
    add_rows,
    evidence_lines,
    opened,
    standings,
    to_recompute,
)
from pipelines.chain import Stage
from pipelines.config import ResponseCacheConfig, Semantic
from pipelines.embedders import embedder_revision
from pipelines.gates import conflict
from pipelines.hit_rule import rule_name
from pipelines.storage import Directory
from pipelines.tier import as_range
from pipelines.wrong_hits import levels_from

_RECOMPUTE = "recompute.parquet"


class RunCache:
    """Nothing but misses where the configuration has no cache."""

    def __init__(self, plan: Plan, directory: Directory, run_id: str, meter: Any) -> None:
        self._plan, self._directory, self._run_id = plan, directory, run_id
        self._warn = RemoteMeter(meter).warn
        self.writer: Any | None = None
        self._terms: Terms | None = None
        self._evidence: EvidenceStore | None = None
        self._similarity: Similarity | None = None
        if self.config is None:
            return
        revision = embedder_revision(self.config.semantic) if self.config.semantic else ""
        writer = beside_driver(CacheWriter)
        self.writer = writer.remote(self.config, plan.config.storage, self._warn, revision)
        if self.config.semantic:
            self._similarity = self._start_similarity(self.config, self.config.semantic)

    @property
    def config(self) -> ResponseCacheConfig | None:
        return self._plan.config.cache_in_use

    @property
    def is_semantic(self) -> bool:
        """Whether a stage before the router recalls, exactly and by similarity."""
        return self._similarity is not None

    def stages_before_routing(self) -> list[Stage]:
        """Recall by similarity, in a pool of its own: it embeds."""
        if self._similarity is None:
            return []
        semantic = self._similarity.semantic
        pool = as_range(semantic.replicas)
        arguments = {"similarity": self._similarity, "warn": self._warn}
        return [
            Stage(
                RecallHost,
                arguments,
                replicas=pool.min,
                max_replicas=pool.max,
                options={"num_cpus": 0, "num_gpus": semantic.num_gpus or None},
            )
        ]

    def stages_after_answers(self) -> list[Stage]:
        if self._similarity is None:
            return []
        return [Stage(AuditHost, {"similarity": self._similarity, "warn": self._warn})]

    def finish(self) -> list[dict[str, Any]]:
        """Keep this run's evidence and list what is to be answered again; safe to repeat.

        Returns:
            What the summary says of each group.
        """
        if self._evidence is None or self._terms is None:
            return []
        accounts = self._accounts(self._evidence, self._terms)
        self._evidence.record(self._run_id, evidence_lines(accounts, self._run_id))
        listed = [to_recompute(rows, accounts, self._terms) for rows in self._committed()]
        ids = pa.chunked_array(listed, pa.string())
        self._directory.write_table(_RECOMPUTE, pa.table({"row_id": ids}))
        return [
            {**asdict(standing), "state": standing.state}
            for standing in standings(accounts, self._terms)
        ]

    def close(self) -> None:
        """A writer that died has lost entries, not answers."""
        if self.writer is None:
            return
        try:
            ray.get(self.writer.close.remote())
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            self._warn(f"response cache: its writer died, new answers are not kept: {cause}")

    def _accounts(self, evidence: EvidenceStore, terms: Terms) -> dict[str, Account]:
        """Of earlier runs, and of this one as far as it is committed."""
        accounts = opened(evidence.of_other_runs(terms.levels, self._run_id))
        for rows in self._committed():
            accounts = add_rows(accounts, rows, terms)
        return accounts

    def _committed(self) -> Iterator[pa.Table]:
        for name in self._directory.parts("rows"):
            yield self._directory.read_table(name, list(LEDGER_COLUMNS))

    def _start_similarity(self, cache: ResponseCacheConfig, semantic: Semantic) -> Similarity:
        plan, storage = self._plan, self._plan.config.storage
        self._terms = Terms(
            semantic.max_wrong_hits, semantic.confidence, levels_from(semantic.similarity)
        )
        self._evidence = EvidenceStore(cache, storage, rule_name(semantic), self._warn)
        accounts = self._accounts(self._evidence, self._terms)
        groups = {name: account.group for name, account in accounts.items()}
        bounds = beside_driver(HitBounds).remote(self._terms, groups)
        in_flight = beside_driver(InFlight).remote(conflict, semantic.similarity)
        return Similarity(
            cache,
            storage,
            semantic,
            embedder_revision(semantic),
            plan.policy,
            plan.dialect.keyed_by,
            plan.dialect.defaults,
            bounds,
            in_flight,
            self._run_id,
        )
