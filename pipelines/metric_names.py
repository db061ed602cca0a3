"""The metrics of the online endpoint: vLLM's names where it has one, under our own prefix."""

from dataclasses import dataclass
from typing import Literal

PREFIX = "nightmill:"

_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80, 160,
)  # fmt: skip
_PER_TOKEN = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5,
)  # fmt: skip
_WHOLE = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 480,
)  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """One metric. Prometheus appends `_total` to a counter's name, `_bucket` to a histogram's."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    says: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        return PREFIX + self.name


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "requests",
            "counter",
            "requests that ended; status is ok, error or cancelled",
            ("endpoint", "tenant", "tier", "source", "status"),
        ),
        Metric(
            "refusals",
            "counter",
            "requests that were not taken: rate, budget, queue, key, size",
            ("reason", "tenant"),
        ),
        Metric("errors", "counter", "requests that ended in an error, by its kind", ("kind",)),
        Metric(
            "time_to_first_token_seconds",
            "histogram",
            "from a request's arrival to the client's first token",
            ("tier", "source"),
            _FIRST_TOKEN,
        ),
        Metric(
            "request_time_per_output_token_seconds",
            "histogram",
            "of generated answers: for each token after the first",
            ("tier",),
            _PER_TOKEN,
        ),
        Metric(
            "e2e_request_latency_seconds",
            "histogram",
            "from a request's arrival to its last token",
            ("tier", "source"),
            _WHOLE,
        ),
        Metric(
            "prompt_tokens",
            "counter",
            "prompt tokens, those from the prefix cache included",
            ("tenant", "tier"),
        ),
        Metric(
            "prompt_tokens_cached",
            "counter",
            "prompt tokens that came from the prefix cache",
            ("tenant", "tier"),
        ),
        Metric("generation_tokens", "counter", "completion tokens", ("tenant", "tier")),
        Metric(
            "cost_usd",
            "counter",
            "what requests cost, by the tier that took it",
            ("tenant", "tier"),
        ),
        Metric(
            "baseline_cost_usd",
            "counter",
            "what the same requests would have cost on the baseline tier",
            ("tenant",),
        ),
        Metric(
            "escalations",
            "counter",
            "answers that were not taken, by who answered instead",
            ("tier",),
        ),
        Metric("fallbacks", "counter", "requests whose tier was not reached", ("tier", "to")),
        Metric("num_requests_running", "gauge", "requests in engines", ("tier",)),
        Metric("num_requests_waiting", "gauge", "requests that wait for an engine", ("tier",)),
    )
}
