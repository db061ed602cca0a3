import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import ROOT
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from actors.observer import Observer
from actors.online_metrics import OnlineMetrics
from actors.request_log import RequestLog
from actors.tenancy import Tenants, change_tenants
from actors.tracing import Tracing
from jobs.online_auth import authenticate_with
from jobs.online_errors import answer_errors
from jobs.online_watching import page_router, watching_router
from pipelines.errors import UsageProblem
from pipelines.metric_names import METRICS, PREFIX
from pipelines.tenants import Tenant, TenantFile, new_key

SECRET = "my aunt's diagnosis"


@dataclass(frozen=True)
class Seen:
    """What the request path tells when a request has ended."""

    row: Mapping[str, Any]
    request_id: str = "r1"
    tenant: str | None = "acme"
    endpoint: str = "/v1/chat/completions"
    stream: bool = False
    cost_nusd: int = 300
    baseline_nusd: int | None = 1000
    ttft_s: float | None = 0.03
    e2e_s: float = 0.23
    cancelled: bool = False


def row(**columns: Any) -> dict[str, Any]:
    return {
        "status": "ok", "source": "generated", "tier": "large", "model": "m",
        "prompt_tokens": 10, "cached_prompt_tokens": 4, "completion_tokens": 5,
        "escalations": 1, "finish_reason": "stop", "response": SECRET, "_request": SECRET,
        "_work": [{"tier": "small", "cost_nusd": 100}, {"tier": "large", "cost_nusd": 200}],
        "request_key": "745b1f30",
        **columns,
    }  # fmt: skip


def hit(**columns: Any) -> Seen:
    return Seen(
        row(source="cache_exact", escalations=0, completion_tokens=5, _work=None, **columns),
        cost_nusd=0,
    )


def samples(text: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name.removeprefix(PREFIX), {})[labels] = sample.value
    return found


def everything() -> Observer:
    """An observer that has seen something of every kind."""
    observer = Observer(
        OnlineMetrics(),
        lambda: {"num_requests_running": {"large": 2}, "num_requests_waiting": {"large": 3}},
    )
    observer.finished(Seen(row(fallback_from="other")))
    observer.finished(hit())
    observer.finished(Seen(row(status="error", error_kind="engine", source=None), ttft_s=None))
    observer.refused("rate_limit_exceeded", "acme")
    return observer


def test_a_scrape_shows_what_every_process_saw() -> None:
    metrics = OnlineMetrics()

    async def scrape() -> bytes:
        replicas = [
            Observer(metrics, lambda: {"num_requests_running": {"large": 2}}) for _ in range(2)
        ]
        for replica in replicas:
            replica.finished(Seen(row()))
            await replica.report()
        replicas[0].finished(hit())
        return await replicas[0].render()

    found = samples(asyncio.run(scrape()))
    chat = "/v1/chat/completions"
    assert found["requests_total"] == {
        (chat, "generated", "ok", "acme", "large"): 2,
        (chat, "cache_exact", "ok", "acme", "large"): 1,
    }
    assert found["num_requests_running"] == {("large",): 4}
    assert found["cost_usd_total"] == pytest.approx(
        {("acme", "small"): 200e-9, ("acme", "large"): 400e-9}
    )
    assert found["request_time_per_output_token_seconds_sum"][("large",)] == pytest.approx(0.1)
    assert found["request_time_per_output_token_seconds_count"] == {("large",): 2}, "no hits"


def test_every_metric_exists_and_stands_in_the_readme() -> None:
    text = asyncio.run(everything().render()).decode()
    shown = set(re.findall(r"^# TYPE nightmill:(\w+?)(?:_total)? ", text, re.MULTILINE))
    assert shown == set(METRICS)
    readme = (ROOT / "README.md").read_text()
    for name in METRICS:
        assert f"`{name}`" in readme, name


def test_the_dashboard_asks_for_metrics_and_labels_that_exist() -> None:
    found = everything()
    names: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(asyncio.run(found.render()).decode()):
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    board = json.loads((ROOT / "configs/grafana/nightmill.json").read_text())
    queries = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    queries += [v["query"] for v in board["templating"]["list"] if v["type"] == "query"]
    asked = set()
    for query in queries:
        for name, selector in re.findall(r"(nightmill:\w+)(?:\{([^}]*)\})?", query):
            assert name in names, query
            assert set(re.findall(r"(\w+)=~?\"", selector)) <= names[name], query
            asked.add(name)
        for grouped in re.findall(r"by \(([^)]*)\)", query):
            assert set(re.split(r",\s*", grouped)) <= set.union(*names.values()), query
    for metric in METRICS.values():
        assert any(name.startswith(metric.full_name) for name in asked), f"{metric.name}: no panel"


def test_metrics_that_fail_lose_nothing_and_hurt_nobody() -> None:
    class Flaky(OnlineMetrics):
        fails = True

        async def observe(self, *arguments: Any) -> None:
            if self.fails:
                raise ConnectionError("gone")
            await super().observe(*arguments)

    async def outage() -> bytes:
        metrics = Flaky()
        observer = Observer(metrics)
        observer.finished(Seen(row()))
        await observer.report()
        metrics.fails = False
        observer.finished(Seen(row()))
        return await observer.render()

    assert sum(samples(asyncio.run(outage()))["requests_total"].values()) == 2


def test_the_log_has_no_text_unless_asked_for(tmp_path: Path) -> None:
    def day() -> datetime:
        return datetime(2026, 1, 31, 23, 59, tzinfo=UTC)

    for name, with_text in (("plain", False), ("full", True)):
        log = RequestLog(tmp_path / name, with_text, day)
        observer = Observer(OnlineMetrics(), log=log)
        observer.finished(Seen(row(error=SECRET, route_reason=SECRET)))
        observer.refused("insufficient_quota", "acme")
        text = (tmp_path / name / "2026-01-31.jsonl").read_text()
        first, second = map(json.loads, text.splitlines())
        assert (SECRET in text) is with_text
        assert (first["request_id"], first["request_key"]) == ("r1", "745b1f30")
        assert (first["tenant"], first["tier"], first["source"]) == ("acme", "large", "generated")
        assert (first["cost_nusd"], first["ttft_s"], first["e2e_s"]) == (300, 0.03, 0.23)
        assert first["time"] == "2026-01-31T23:59:00.000+00:00"
        assert second["reason"] == "insufficient_quota"


def test_a_log_without_a_place_is_a_usage_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageProblem, match=r"serve\.data_dir"):
        RequestLog(tmp_path / "file" / "logs")


def test_a_collector_gets_a_span_of_each_request() -> None:
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=server.serve_forever, daemon=True).start()
    tracing = Tracing(f"http://127.0.0.1:{server.server_port}/")
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    Observer(OnlineMetrics(), tracing=tracing).finished(Seen(row()), parent)
    tracing.close()
    server.shutdown()
    server.server_close()
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    (path, body), *more = got
    assert (path, more) == ("/v1/traces", [])
    (span,) = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans
    told = {a.key: a.value for a in span.attributes}
    assert span.name == "chat m"
    assert (span.trace_id, span.parent_span_id) == (b"\xab" * 16, b"\xcd" * 8)
    assert told["gen_ai.usage.output_tokens"].int_value == 5
    assert told["nightmill.tier"].string_value == "large"
    assert span.end_time_unix_nano - span.start_time_unix_nano == 230_000_000
    assert SECRET.encode() not in body


@pytest.fixture
def endpoint(tmp_path: Path) -> tuple[TestClient, dict[str, dict[str, str]]]:
    """The routes over an observer, and headers of a tenant, of another and of an admin."""
    headers = {}
    for name in ("acme", "other", "boss"):
        key, entry = new_key(datetime.now(UTC))
        headers[name] = {"authorization": f"Bearer {key}"}
        tenant = Tenant(admin=name == "boss", keys=(entry,))

        def with_tenant(old: TenantFile, name: str = name, tenant: Tenant = tenant) -> TenantFile:
            return TenantFile(tenants={**old.tenants, name: tenant})

        change_tenants(tmp_path / "tenants.yaml", with_tenant)

    async def health() -> dict[str, Any]:
        return {"ready": True}

    app = FastAPI()
    answer_errors(app)
    known = Depends(authenticate_with(Tenants(tmp_path / "tenants.yaml")))
    app.include_router(watching_router(everything(), health), dependencies=[known])
    app.include_router(page_router())
    return TestClient(app), headers


def test_metrics_are_for_admins_and_status_is_ones_own(
    endpoint: tuple[TestClient, dict[str, dict[str, str]]],
) -> None:
    client, headers = endpoint
    for path in ("/metrics", "/v1/nightmill/status"):
        assert client.get(path).status_code == 401
    refused = client.get("/metrics", headers=headers["acme"])
    assert refused.status_code == 403
    assert "--admin" in refused.json()["error"]["message"]
    assert b"nightmill:requests_total" in client.get("/metrics", headers=headers["boss"]).content
    status = {n: client.get("/v1/nightmill/status", headers=h).json() for n, h in headers.items()}
    assert {n: s["totals"]["requests"] for n, s in status.items()} == {
        "acme": 3, "other": 0, "boss": 3,
    }  # fmt: skip
    assert status["acme"]["totals"]["saved_usd"] == pytest.approx((3000 - 600) * 1e-9)
    assert status["other"]["totals"]["saved_usd"] is None, "nothing measured, nothing claimed"
    assert status["other"]["of"] == "other"
