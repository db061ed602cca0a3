"""Traces of requests in OpenTelemetry's words, sent to a collector if one is configured."""

import time
from typing import Any

from pipelines.served import Served

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


class Tracing:
    """Makes a span of each request, when it has ended; a thread of the library sends them.

    Args:
        endpoint: a collector's OTLP address over HTTP, such as http://localhost:4318.
    """

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        # Not the process's global provider: Ray and vLLM may have one of their own.
        self._provider = TracerProvider(resource=Resource.create({"service.name": "nightmill"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("nightmill")

    def served(self, done: Served, traceparent: str | None = None) -> None:
        """
        Args:
            traceparent: the W3C header of the request, whose trace the span then belongs to.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        ended = time.time_ns()
        began = ended - int(done.e2e_s * 1e9)
        operation = _OPERATIONS.get(done.endpoint, "chat")
        span = self._tracer.start_span(
            f"{operation} {done.model or ''}".strip(),
            context=TraceContextTextMapPropagator().extract({"traceparent": traceparent or ""}),
            kind=SpanKind.SERVER,
            start_time=began,
            attributes=_attributes(done, operation),
        )
        if done.ttft_s is not None:
            span.add_event("gen_ai.first_token", timestamp=began + int(done.ttft_s * 1e9))
        if done.status == "error":
            span.set_status(Status(StatusCode.ERROR, done.error_kind))
        span.end(end_time=ended)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _attributes(done: Served, operation: str) -> dict[str, Any]:
    found = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "nightmill",
        "gen_ai.response.model": done.model,
        "gen_ai.response.id": done.request_id,
        "gen_ai.response.finish_reasons": [done.finish_reason] if done.finish_reason else None,
        "gen_ai.usage.input_tokens": done.prompt_tokens,
        "gen_ai.usage.output_tokens": done.completion_tokens,
        "error.type": done.error_kind,
        "url.path": done.endpoint,
        "nightmill.tenant": done.tenant,
        "nightmill.tier": done.tier,
        "nightmill.source": done.source,
        "nightmill.similarity": done.similarity,
        "nightmill.escalations": done.escalations,
        "nightmill.cost_nusd": done.cost_nusd,
    }
    return {name: value for name, value in found.items() if value is not None}
