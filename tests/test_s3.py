"""Input, output and response cache on S3, against a local server that speaks its protocol."""

import logging
from collections.abc import Iterator

import boto3
import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import tier
from moto.server import ThreadedMotoServer

from jobs.batch import run
from pipelines.config import RunConfig

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
