"""Input, output and response cache on S3, against a local server that speaks its protocol."""

import logging
from collections.abc import Iterator

import boto3
import pyarrow.parquet as pq
import pytest
import s3fs
from cached import KEYS, SCOPE, entries, filled, opened, questions, unit_vectors
from conftest import tier
from moto.server import ThreadedMotoServer

from actors.cache_care import Removed, Selection, purge
from actors.cache_check import cache_stats
from actors.cache_repair import compact
from actors.cache_store import CacheStore
from jobs.batch import run
from pipelines.config import ResponseCacheConfig, RunConfig, Storage

ROWS = "".join(f'{{"id": "r{i}", "prompt": "say {i % 30}"}}\n' for i in range(50))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    client.put_object(Bucket="bucket", Key="in/prompts.jsonl", Body=ROWS.encode())
    yield url
    server.stop()


@pytest.mark.usefixtures("endpoint")
def test_a_run_from_s3_to_s3(endpoint: str) -> None:
    import ray

    # Workers inherit the credentials of the test's environment.
    ray.shutdown()

    def config(output: str) -> RunConfig:
        return RunConfig.model_validate(
            {
                "input": {"path": "s3://bucket/in/*.jsonl"},
                "output": {"path": f"s3://bucket/{output}"},
                "tiers": [tier("only")],
                "route": {"policy": "fixed", "tier": "only"},
                "response_cache": {"path": "s3://bucket/cache"},
                "storage": {"endpoint_url": endpoint, "region": "us-east-1"},
            }
        )

    summary = run(config("first"))
    assert summary.by_source == {"generated": 30, "duplicate": 20}
    fs = s3fs.S3FileSystem(endpoint_url=endpoint, client_kwargs={"region_name": "us-east-1"})
    rows = [
        row
        for part in fs.glob("bucket/first/rows/*.parquet")
        for row in pq.read_table(fs.open(part)).to_pylist()
    ]
    assert {r["row_id"]: r["response"] for r in rows} == {
        f"r{i}": f"SAY {i % 30}" for i in range(50)
    }
    assert fs.exists("bucket/first/bill.parquet")
    again = run(config("second"))
    assert again.by_source == {"cache_exact": 30, "duplicate": 20}
    assert not again.warnings
    ray.shutdown()


def test_the_response_cache_on_s3(endpoint: str) -> None:
    """Questions, removal, quarantine and mending work where nothing can be renamed."""
    config = ResponseCacheConfig(path="s3://bucket/questions")
    storage = Storage(endpoint_url=endpoint, region="us-east-1")
    warnings: list[str] = []
    vectors = unit_vectors(30)
    filled(
        config,
        warnings,
        (entries(KEYS[:30], run_id="r"), questions(KEYS[:30], vectors)),
        storage=storage,
    )
    reader = opened(config, warnings, storage)
    assert set(reader.recall(KEYS)) == set(KEYS[:30])
    found = reader.nearest([SCOPE] * 30, vectors, 0.98, 1)
    assert [c.request_key for some in found for c in some] == KEYS[:30]
    store = CacheStore(config, storage)
    assert purge(store, Selection(entry=KEYS[3])) == Removed(1, 1)
    assert cache_stats(store).entries == 29
    assert not warnings
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    versions = client.list_objects_v2(Bucket="bucket", Prefix="questions/responses.lance/_versions")
    torn = min(o["Key"] for o in versions["Contents"] if o["Key"].endswith(".manifest"))
    client.put_object(Bucket="bucket", Key=torn, Body=b"torn")
    filled(config, warnings, entries(KEYS[30:40]), storage=storage)
    assert ["quarantine" in warning for warning in warnings] == [True], warnings
    assert compact(store, config).brought_back >= 29
    assert set(KEYS[:40]) - {KEYS[3]} <= set(opened(config, warnings, storage).recall(KEYS))
