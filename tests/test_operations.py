"""Operations of two ingress replicas: real HTTP, and what they share in an actor."""

import json
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray
import uvicorn
from conftest import MakeConfig, tier
from fastapi import Depends, FastAPI, Request
from test_online_metrics import SECRET, Seen, row, samples

from actors.online_request import Reservation
from actors.tenancy import change_tenants
from jobs.online_errors import ApiError, answer_errors
from jobs.online_operations import ReplicaOperations
from jobs.shared_operations import RemoteOperations, SharedOperations, check_operations
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.operations import Operations
from pipelines.tenants import Tenant, TenantFile, TenantLimits, new_key


def replica(operations: Operations, shared: Any) -> FastAPI:
    """An ingress whose one route asks the gate, answers, settles and tells."""

    async def health() -> dict[str, Any]:
        return {"ready": True}

    mine = ReplicaOperations(operations, shared, health)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with mine.running():
            yield

    app = FastAPI(lifespan=lifespan)
    answer_errors(app)
    asks = [Depends(mine.authenticate)]
    for router in mine.routers:
        app.include_router(router, dependencies=asks)
    for router in mine.open_routers:
        app.include_router(router)

    @app.post("/v1/chat/completions", dependencies=asks)
    async def chat(request: Request) -> dict[str, Any]:
        tenant = request.state.tenant
        most = Reservation(uuid.uuid4().hex, 20, 600)
        refusal = await mine.gate.admit(tenant, most)
        if refusal is not None:
            mine.observer.refused(refusal.code, tenant)
            raise ApiError(
                refusal.status, refusal.message, refusal.kind, refusal.code,
                retry_after_s=refusal.retry_after_s,
            )  # fmt: skip
        await mine.gate.settle(tenant, most, 15, 300)
        mine.observer.finished(Seen(row(), tenant=tenant))
        message = {"role": "assistant", "content": "x"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return {"id": "1", "object": "chat.completion", "created": 0, "model": "m",
                "choices": choices}  # fmt: skip

    return app


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", loop="asyncio"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def endpoint(
    ray_here: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[str], dict[str, str], Path]]:
    """Two replicas' addresses, keys by tenant, and the data directory."""
    assert ray_here is None
    folder = tmp_path_factory.mktemp("operations")
    keys, tenants = {}, {}
    limits = {
        "poor": TenantLimits(usd_per_day=1000e-9),
        "slow": TenantLimits(requests_per_minute=3),
    }
    for name in ("acme", "poor", "slow", "boss"):
        keys[name], entry = new_key(datetime.now(UTC))
        tenants[name] = Tenant(
            admin=name == "boss", keys=(entry,), limits=limits.get(name, TenantLimits())
        )
    change_tenants(folder / "tenants.yaml", lambda _: TenantFile(tenants=tenants))
    operations = Operations(tenants=str(folder / "tenants.yaml"), data_dir=str(folder / "data"))
    config = config_of(folder)
    actor = ray.remote(SharedOperations).options(num_cpus=0).remote(config, operations)
    with ExitStack() as stack:
        apps = [replica(operations, RemoteOperations(actor)) for _ in range(2)]
        yield [stack.enter_context(served(app)) for app in apps], keys, folder / "data"
    ray.kill(actor)


def config_of(folder: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "input": {"path": "-"},
            "output": {"path": str(folder / "out")},
            "tiers": [tier("only")],
            "route": {"policy": "fixed", "tier": "only"},
        }
    )


Endpoint = tuple[list[str], dict[str, str], Path]


def client(address: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def ask(address: str, key: str) -> Any:
    messages: Any = [{"role": "user", "content": SECRET}]
    return client(address, key).chat.completions.create(model="auto", messages=messages)


def test_nobody_without_a_key_gets_a_body_taken_in(endpoint: Endpoint) -> None:
    address = endpoint[0][0].removeprefix("http://")
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    name, port = address.split(":")
    with socket.create_connection((name, int(port)), timeout=20) as connection:
        # The answer comes although the body never does.
        connection.sendall(head.encode())
        assert b" 401 " in connection.recv(1000)


def test_a_rate_holds_across_replicas(endpoint: Endpoint) -> None:
    addresses, keys, _ = endpoint
    for i in range(3):
        ask(addresses[i % 2], keys["slow"])
    with pytest.raises(openai.RateLimitError) as refused:
        ask(addresses[1], keys["slow"])
    assert 0 < int(refused.value.response.headers["retry-after"]) <= 60
    ask(addresses[1], keys["acme"])


def test_a_spent_budget_is_refused_once(endpoint: Endpoint) -> None:
    addresses, keys, data = endpoint
    ask(addresses[0], keys["poor"])
    ask(addresses[1], keys["poor"])
    # 600 of 1,000 nano-dollars are spent, and the worst case is 600. Its client does not ask again.
    patient = client(addresses[0], keys["poor"]).with_options(max_retries=5)
    messages: Any = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.RateLimitError) as refused:
        patient.chat.completions.create(model="auto", messages=messages)
    assert refused.value.code == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"
    log = next((data / "requests").glob("*.jsonl")).read_text()
    assert log.count("insufficient_quota") == 1


def test_a_scrape_of_either_replica_shows_both(endpoint: Endpoint) -> None:
    addresses, keys, data = endpoint
    boss = {"authorization": f"Bearer {keys['boss']}"}

    def by_tenant(address: str) -> dict[str, float]:
        found = samples(httpx.get(f"{address}/metrics", headers=boss).content)
        return {k[3]: n for k, n in found.get("requests_total", {}).items()}

    def told() -> list[float]:
        # A replica that is asked tells what it saw first, so the second round shows all.
        for address in addresses:
            by_tenant(address)
        return [by_tenant(address).get("acme", 0) for address in addresses]

    before, _ = told()
    for address in addresses:
        ask(address, keys["acme"])
    assert told() == [before + 2] * 2
    log = next((data / "requests").glob("*.jsonl")).read_text()
    assert SECRET not in log
    assert {json.loads(line).get("tenant") for line in log.splitlines()} >= {"acme"}


def test_what_would_keep_it_from_starting_is_named(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "file").write_text("x")
    cases = [
        (Operations(tenants=str(tmp_path / "none")), "serve.tenants: .*nightmill key new"),
        (Operations(data_dir="s3://x/y"), r"serve\.data_dir"),
        (Operations(data_dir=str(tmp_path / "file")), r"serve\.data_dir: .*file is a file"),
        (Operations(data_dir=str(tmp_path / "file" / "below")), r"serve\.data_dir: .*is a file"),
        (Operations(batch_config=str(tmp_path / "none.yaml")), r"serve\.batch_config: .*none"),
    ]
    for operations, says in cases:
        with pytest.raises(UsageProblem, match=says):
            check_operations(operations)
    written = Operations(data_dir=str(tmp_path / "file"), tenants=None)
    with pytest.raises(UsageProblem, match=r"serve\.data_dir"):
        ReplicaOperations(written, SharedOperations(make_config([]), written), lambda: None)  # type: ignore[arg-type, return-value]
