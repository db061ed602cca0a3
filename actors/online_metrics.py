"""The endpoint's metrics, counted in one place for all of its processes."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.metric_names import METRICS, Metric
from pipelines.prices import NUSD
from pipelines.served import Refused, Served

_SILENT_S = 30.0
"""After so long without a report a process is dead, and what it held is gone."""

Gauges = Mapping[str, Mapping[str, int]]
"""Metric -> tier -> value, as one process sees it."""


class OnlineMetrics:
    """A registry of its own, filled by reports and read by Prometheus.

    A scrape through a load balancer meets any ingress replica. Were each to count for itself,
    counters would jump from scrape to scrape and fall whenever a replica ends.
    """

    def __init__(self) -> None:
        import prometheus_client

        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = prometheus_client.CollectorRegistry()
        kinds = {
            "counter": prometheus_client.Counter,
            "gauge": prometheus_client.Gauge,
            "histogram": prometheus_client.Histogram,
        }
        self._metrics: dict[str, Any] = {
            m.name: kinds[m.kind](
                m.full_name, m.says, m.labels, registry=self._registry, **_buckets(m)
            )
            for m in METRICS.values()
        }
        self._totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._gauges: dict[str, tuple[float, Gauges]] = {}
        self._began = time.time()

    async def observe(
        self, process: str, events: Sequence[Served | Refused], gauges: Gauges
    ) -> None:
        """Count what a process saw since its last report.

        Args:
            gauges: what the process holds now; replaces what it reported before.
        """
        for event in events:
            if isinstance(event, Refused):
                self._count("refusals", 1, reason=event.reason, tenant=event.tenant or "")
                self._totals[event.tenant or ""]["refused"] += 1
            else:
                self._observe(event)
        self._gauges[process] = (time.monotonic(), gauges)

    async def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        import prometheus_client

        for name in ("num_requests_running", "num_requests_waiting"):
            metric = self._metrics[name]
            metric.clear()
            for tier, value in self._held(name).items():
                metric.labels(tier=tier).set(value)
        return prometheus_client.generate_latest(self._registry)

    async def totals(self, tenant: str | None) -> dict[str, Any]:
        """Sums since the start for a page: of one tenant, or of all for None."""
        wanted = self._totals.values() if tenant is None else [self._totals.get(tenant, Counter())]
        total: Counter[str] = sum(wanted, Counter())
        by_source = {
            name.partition(":")[2]: n for name, n in total.items() if name.startswith("source:")
        }
        by_tier = {
            name.partition(":")[2]: n for name, n in total.items() if name.startswith("tier:")
        }
        cost, baseline = total["cost_nusd"], total["baseline_nusd"]
        return {
            "since": self._began,
            "requests": total["requests"],
            "errors": total["errors"],
            "refused": total["refused"],
            "by_source": by_source,
            "by_tier": by_tier,
            "prompt_tokens": total["prompt_tokens"],
            "completion_tokens": total["completion_tokens"],
            "cost_usd": cost / NUSD,
            "baseline_cost_usd": baseline / NUSD if total["with_baseline"] else None,
            "saved_usd": (baseline - total["compared_nusd"]) / NUSD
            if total["with_baseline"]
            else None,
            "running": self._held("num_requests_running"),
            "waiting": self._held("num_requests_waiting"),
        }

    def _observe(self, done: Served) -> None:
        tenant, tier, source = done.tenant or "", done.tier or "", done.source or ""
        self._count(
            "requests",
            1,
            endpoint=done.endpoint,
            tenant=tenant,
            tier=tier,
            source=source,
            status=done.status,
        )
        if done.error_kind:
            self._count("errors", 1, kind=done.error_kind)
        self._time("time_to_first_token_seconds", done.ttft_s, tier=tier, source=source)
        self._time("request_time_per_output_token_seconds", done.tpot_s, tier=tier)
        self._time("e2e_request_latency_seconds", done.e2e_s, tier=tier, source=source)
        tokens = {
            "prompt_tokens": done.prompt_tokens,
            "prompt_tokens_cached": done.cached_prompt_tokens,
            "generation_tokens": done.completion_tokens,
        }
        for name, amount in tokens.items():
            self._count(name, amount, tenant=tenant, tier=tier)
        for worked, nusd in done.cost_by_tier.items():
            self._count("cost_usd", nusd / NUSD, tenant=tenant, tier=worked)
        if done.baseline_nusd is not None:
            self._count("baseline_cost_usd", done.baseline_nusd / NUSD, tenant=tenant)
        self._count("escalations", done.escalations, tier=tier)
        if done.fallback_from:
            self._count("fallbacks", 1, tier=done.fallback_from, to=tier)
        self._add_up(done, self._totals[tenant])

    def _add_up(self, done: Served, totals: Counter[str]) -> None:
        totals.update(
            {
                "requests": 1,
                "errors": int(done.status == "error"),
                "prompt_tokens": done.prompt_tokens,
                "completion_tokens": done.completion_tokens,
                "cost_nusd": done.cost_nusd,
            }
        )
        if done.source:
            totals[f"source:{done.source}"] += 1
        if done.tier:
            totals[f"tier:{done.tier}"] += 1
        if done.baseline_nusd is not None:
            # A saving is claimed only over requests whose baseline is known.
            totals["with_baseline"] += 1
            totals["baseline_nusd"] += done.baseline_nusd
            totals["compared_nusd"] += done.cost_nusd

    def _count(self, name: str, amount: float, **labels: str) -> None:
        if amount:
            self._metrics[name].labels(**labels).inc(amount)

    def _time(self, name: str, seconds: float | None, **labels: str) -> None:
        if seconds is not None:
            self._metrics[name].labels(**labels).observe(max(seconds, 0.0))

    def _held(self, name: str) -> dict[str, int]:
        """A gauge's sum over the processes that live, by tier."""
        oldest = time.monotonic() - _SILENT_S
        self._gauges = {p: entry for p, entry in self._gauges.items() if entry[0] >= oldest}
        held: Counter[str] = Counter()
        for _, gauges in self._gauges.values():
            held.update(gauges.get(name, {}))
        return dict(held)


def _buckets(metric: Metric) -> dict[str, Iterable[float]]:
    return {"buckets": metric.buckets} if metric.buckets else {}
