"""The response cache in one run: its actors, its stages, and what is known of it at the end."""

from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from pipelines.gates import conflict

from actors.cache_evidence import earlier_evidence, record_evidence
from actors.cache_writer import CacheWriter
from actors.hit_bounds import HitBounds
from actors.in_flight import InFlight
from jobs import hosts
from jobs.cache_hosts import AuditHost, RecallHost, Similarity
from jobs.preflight import Plan
from pipelines.cache_ledger import LEDGER_COLUMNS, evidence_of_rows, report, rows_to_recompute
from pipelines.chain import Stage
from pipelines.config import ResponseCacheConfig, Semantic
from pipelines.embedders import embedder_revision
from pipelines.hit_rule import rule_name
from pipelines.storage import Directory
from pipelines.tier import as_range
from pipelines.wrong_hits import levels_from

_RECOMPUTE = "recompute.parquet"


class RunCache:
    """Nothing but misses where the configuration has no cache."""

    def __init__(self, plan: Plan, run_id: str, meter: Any) -> None:
        self._plan, self._run_id, self._meter = plan, run_id, meter
        self._warn = hosts.RemoteMeter(meter).warn
        self.writer: Any | None = None
        self._similarity: Similarity | None = None
        if self.config is None:
            return
        revision = embedder_revision(self.config.semantic) if self.config.semantic else ""
        writer = ray.remote(CacheWriter).options(num_cpus=0)
        self.writer = writer.remote(self.config, plan.config.storage, self._warn, revision)
        if self.config.semantic:
            self._similarity = self._start_similarity(self.config, self.config.semantic)

    @property
    def config(self) -> ResponseCacheConfig | None:
        """Of the cache that is used."""
        cache = self._plan.config.response_cache
        return cache if cache and cache.enabled else None

    @property
    def is_exact(self) -> bool:
        """Whether the router's own exact recall is all there is."""
        return self.config is not None and self._similarity is None

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
        return [Stage(AuditHost, {"similarity": self._similarity})]

    def finish(self, directory: Directory) -> list[dict[str, Any]]:
        """Keep this run's evidence and list what is to be recomputed; safe to repeat.

        Returns:
            What the summary says of each group.
        """
        if self._similarity is None:
            return []
        similarity = self._similarity
        semantic, storage = similarity.semantic, similarity.storage
        levels = levels_from(semantic.similarity)
        rows = [directory.read_table(name, LEDGER_COLUMNS) for name in directory.parts("rows")]
        table = pa.concat_tables(rows)
        evidence = evidence_of_rows(table, self._run_id, levels)
        rule = rule_name(semantic)
        earlier = earlier_evidence(similarity.cache, storage, rule, self._warn)
        groups = report(table, earlier, semantic.max_wrong_hits, semantic.confidence)
        directory.write_table(_RECOMPUTE, rows_to_recompute(table, groups))
        try:
            record_evidence(similarity.cache, storage, rule, self._run_id, evidence)
        # Losing evidence costs audits later; it is no reason to fail a run that has answered.
        except Exception as error:
            self._warn(f"response cache: its evidence could not be kept: {error}")
        return [asdict(group) for group in groups]

    def close(self) -> None:
        """A writer that died has lost entries, not answers."""
        if self.writer is None:
            return
        try:
            ray.get(self.writer.close.remote())
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            self._warn(f"response cache: its writer died, new answers are not kept: {cause}")

    def _start_similarity(self, cache: ResponseCacheConfig, semantic: Semantic) -> Similarity:
        plan, storage = self._plan, self._plan.config.storage
        actor = {"num_cpus": 0}
        earlier = partial(earlier_evidence, cache, storage, rule_name(semantic), self._warn)
        bounds = ray.remote(HitBounds).options(**actor).remote(semantic, earlier)
        in_flight = ray.remote(InFlight).options(**actor).remote(conflict, semantic.similarity)
        return Similarity(
            cache,
            storage,
            semantic,
            plan.policy,
            plan.dialect.keyed_by,
            plan.dialect.defaults,
            bounds,
            in_flight,
            self._run_id,
        )
