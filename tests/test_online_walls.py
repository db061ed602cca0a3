"""What keeps strangers out of an endpoint, and tenants apart."""

import asyncio
import itertools
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fastapi.routing import APIRoute
from test_batches_api import ended, line, on_this_ray, stepped
from whole_app import Whole, whole_app

from jobs.batch_runner import BatchRunner
from jobs.online_document import OPERATIONS, document
from jobs.online_schemas import ChatBody, CompletionBody, EmbeddingBody
from pipelines.config import Storage
from pipelines.storage import Directory
from pipelines.tenants import Tenant

__all__ = ["on_this_ray"]

OPEN = {("GET", "/"), ("GET", "/health"), ("GET", "/ready")}
NOBODYS = "Bearer nm-00000000-" + "A" * 43
WAYS = ["chat", "completions", "stream"]
numbers = itertools.count()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    tenants = {"acme": Tenant(), "other": Tenant(), "boss": Tenant(admin=True)}
    with whole_app(tmp_path_factory.mktemp("walls"), tenants, delay_s=0.3) as found:
        yield found


def routes(whole: Whole) -> list[tuple[str, str]]:
    """Methods and paths of everything that the app answers."""
    found = []
    for route in whole.app.routes:
        assert isinstance(route, APIRoute), "a route of another kind would know no dependencies"
        found += [(method, route.path) for method in sorted(route.methods)]
    return found


@pytest.mark.parametrize("body", [b"{}", b"{ no JSON"])
@pytest.mark.parametrize("key", [None, NOBODYS, "Bearer", "Basic YTpi"])
def test_every_route_but_health_and_the_empty_page_wants_a_key(
    whole: Whole, key: str | None, body: bytes
) -> None:
    """Whatever it brings: nothing is read before the key."""
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = key
    told = {}
    for method, path in routes(whole):
        url = whole.address + re.sub(r"{\w+}", "x", path)
        answer = httpx.request(method, url, headers=headers, content=body)
        told[method, path] = answer.status_code
        if answer.status_code == 401:
            assert answer.json()["error"]["code"] == "invalid_api_key"
    assert {route for route, status in told.items() if status != 401} == OPEN
    assert {told[route] for route in OPEN} == {200}


def test_the_document_has_every_route_and_its_401(whole: Whole) -> None:
    hidden = {("GET", "/"), ("GET", "/openapi.json")}
    assert {tuple(name.split()) for name in OPERATIONS} == {*routes(whole)} - hidden
    for path, operations in document(whole.app, ["auto", "only"])["paths"].items():
        for method, operation in operations.items():
            is_open = (method.upper(), path) in OPEN
            assert ("401" in operation["responses"]) != is_open
            assert ("security" in operation) != is_open


def test_the_document_lets_null_stand_for_every_field_that_may_be_left_out() -> None:
    for body in (ChatBody, CompletionBody, EmbeddingBody):
        told = body.model_json_schema()
        for name in told["properties"].keys() - set(told["required"]):
            assert {"type": "null"} in told["properties"][name]["anyOf"], f"{body.__name__}.{name}"


def fresh() -> str:
    return f"question {next(numbers)}"


async def source(whole: Whole, tenant: str, text: str, way: str, **fields: Any) -> str:
    """Where a tenant's answer is from."""
    async with whole.client(tenant) as own:
        if way == "completions":
            raw: Any = await own.completions.with_raw_response.create(
                model="auto", prompt=text, **fields
            )
            assert raw.parse().choices[0].text == text.upper()
            return str(raw.headers["x-nightmill-source"])
        said: Any = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
        if way == "stream":
            stream = await own.chat.completions.create(**said, stream=True)
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == text.upper()
            return str(chunks[-1].model_extra["nightmill"]["source"])
        raw = await own.chat.completions.with_raw_response.create(**said)
        assert raw.parse().choices[0].message.content == text.upper()
        return str(raw.headers["x-nightmill-source"])


@pytest.mark.parametrize("way", WAYS)
def test_no_tenant_is_served_what_another_one_was_answered(whole: Whole, way: str) -> None:
    async def one_after_the_other() -> list[str]:
        text = fresh()
        turns = ["acme", "acme", "other", "boss", "other", "acme"]
        return [await source(whole, tenant, text, way) for tenant in turns]

    new, known = "generated", "cache_exact"
    assert asyncio.run(one_after_the_other()) == [new, known, new, new, known, known]


@pytest.mark.parametrize("way", WAYS)
def test_no_tenant_shares_a_request_with_another_one(whole: Whole, way: str) -> None:
    async def at_once() -> dict[str, list[str]]:
        text, turns = fresh(), ["acme", "other"] * 3
        told = await asyncio.gather(*(source(whole, tenant, text, way) for tenant in turns))
        return {name: sorted(told[i::2]) for i, name in enumerate(("acme", "other"))}

    alone = ["duplicate", "duplicate", "generated"]
    assert asyncio.run(at_once()) == {"acme": alone, "other": alone}


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"tenant": "acme"}},
        {"user": "acme"},
        {"extra_headers": {"x-tenant": "acme", "tenant": "acme"}},
        {"extra_query": {"tenant": "acme"}},
    ],
)
def test_nobody_becomes_another_tenant_by_saying_so(whole: Whole, fields: dict[str, Any]) -> None:
    async def pretending() -> list[str]:
        text = fresh()
        mine = await source(whole, "acme", text, "chat")
        return [mine, await source(whole, "other", text, "chat", **fields)]

    assert asyncio.run(pretending()) == ["generated", "generated"]


def sync_client(whole: Whole, tenant: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{whole.address}/v1", api_key=whole.keys[tenant], max_retries=0)


def created(client: openai.OpenAI, text: str) -> tuple[str, str]:
    """A file and a batch of one line."""
    content = json.dumps(line("a", text)).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch").id
    batch = client.batches.create(
        input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
    )
    return file, batch.id


def test_every_route_to_a_file_or_batch_leads_others_nowhere(whole: Whole) -> None:
    """Whatever routes there are, an admin's key included: an id of another tenant is none."""
    file, batch = created(sync_client(whole, "acme"), fresh())
    ways = [(m, p) for m, p in routes(whole) if "{file_id}" in p or "{batch_id}" in p]
    assert len(ways) >= 5
    # Deleting and cancelling last: the owner's own turn comes after all others'.
    ways.sort(key=lambda way: way[0] != "GET")
    for tenant, status in (("other", 404), ("boss", 404), ("acme", 200)):
        for method, path in ways:
            url = whole.address + path.format(file_id=file, batch_id=batch)
            answer = httpx.request(method, url, headers=whole.headers(tenant))
            assert answer.status_code == status, (tenant, method, path)
    for tenant in ("other", "boss"):
        for kind in ("files", "batches"):
            listed = httpx.get(f"{whole.address}/v1/{kind}", headers=whole.headers(tenant))
            assert listed.json()["data"] == []


def test_a_tenant_s_totals_are_its_own(whole: Whole) -> None:
    def requests(tenant: str) -> int:
        url = f"{whole.address}/v1/nightmill/status"
        told = httpx.get(url, headers=whole.headers(tenant)).json()
        return int(told["totals"]["requests"])

    before, mine = requests("other"), requests("acme")
    asyncio.run(source(whole, "acme", fresh(), "chat"))
    until = time.monotonic() + 30
    while requests("acme") == mine:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert requests("other") == before
    metrics = f"{whole.address}/metrics"
    statuses = [httpx.get(metrics, headers=whole.headers(t)).status_code for t in whole.keys]
    assert dict(zip(whole.keys, statuses, strict=True)) == {"acme": 403, "other": 403, "boss": 200}


@pytest.mark.usefixtures("on_this_ray")
def test_a_batch_answers_its_own_tenant_s_requests_and_no_others(whole: Whole) -> None:
    text = fresh()
    acme = sync_client(whole, "acme")
    _, batch = created(acme, text)
    data = Directory(whole.config.serve.data_dir, Storage())
    stepped(BatchRunner(data, whole.config), ended(acme, batch))
    done = acme.batches.retrieve(batch)
    assert done.status == "completed", done.errors
    assert done.output_file_id

    async def asked() -> list[str]:
        return [await source(whole, tenant, text, "chat") for tenant in ("other", "acme")]

    # The endpoint looks for what others wrote every few seconds.
    asyncio.run(asyncio.sleep(5.5))
    assert asyncio.run(asked()) == ["generated", "cache_exact"]
    answer = httpx.get(
        f"{whole.address}/v1/files/{done.output_file_id}/content", headers=whole.headers("other")
    )
    assert answer.status_code == 404
