"""Files and batches through the `openai` client, over real HTTP; jobs are real runs on Ray."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import openai
import pytest
import ray
import uvicorn
from conftest import ROOT, MakeConfig, tier, write_jsonl
from fastapi import Depends, FastAPI, Request

from actors.batch_store import TenantFolder
from actors.online_service import Service
from jobs.batch_runner import BatchRunner
from jobs.batch_work import BatchWork
from jobs.batches_api import batches_router
from jobs.files_api import files_router
from jobs.online_errors import answer_errors
from jobs.online_plan import plan_endpoint, policies
from jobs.preflight import plan_run
from pipelines.batch_api import LineError, checked_lines
from pipelines.config import Storage
from pipelines.config_file import dump_config
from pipelines.intake import read_block
from pipelines.storage import Directory, open_filesystem

CHAT = "/v1/chat/completions"
MAX_BYTES = 100_000


def line(name: str, text: str = "hi", url: str = CHAT, **body: Any) -> dict[str, Any]:
    said = {"prompt": text} if url.endswith("/v1/completions") else messages(text)
    return {"custom_id": name, "method": "POST", "url": url, "body": {**said, **body}}


def messages(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


class Budget:
    """An account that remembers what it was charged."""

    def __init__(self, left: int | None = None) -> None:
        self.left, self.charges = left, dict[str, tuple[str, int, int]]()
        self.held: dict[str, int] = {}

    def left_nusd(self, tenant: str) -> int | None:
        return self.left

    def hold(self, tenant: str, nusd: int, name: str) -> None:
        self.held[name] = nusd

    def charge(self, tenant: str, tokens: int, cost_nusd: int, once: str) -> None:
        assert once not in self.charges
        self.charges[once] = (tenant, tokens, cost_nusd)


@pytest.fixture
def data(tmp_path: Path) -> Directory:
    return Directory(str(tmp_path / "data"), Storage())


@pytest.fixture
def client(data: Directory) -> Iterator[Callable[[str], openai.OpenAI]]:
    """Clients of an endpoint where the key is the tenant's name."""

    async def known(request: Request) -> None:
        request.state.tenant = request.headers["authorization"].removeprefix("Bearer ")

    app = FastAPI()
    answer_errors(app)
    for router in (files_router(data, MAX_BYTES), batches_router(data)):
        app.include_router(router, dependencies=[Depends(known)])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", loop="asyncio"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    yield lambda tenant: openai.OpenAI(api_key=tenant, base_url=url, max_retries=0)
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture
def on_this_ray(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs join the tests' Ray, which takes less time than one of their own."""
    assert ray_here is None
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


def uploaded(client: openai.OpenAI, rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return client.files.create(file=("in.jsonl", text), purpose="batch").id


def created(client: openai.OpenAI, rows: list[dict[str, Any]], endpoint: Any = CHAT) -> str:
    return client.batches.create(
        input_file_id=uploaded(client, rows), endpoint=endpoint, completion_window="24h"
    ).id


def stepped(runner: BatchRunner, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not until():
        runner.step()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ended(client: openai.OpenAI, batch: str) -> Callable[[], bool]:
    return lambda: (
        client.batches.retrieve(batch).status in ("completed", "failed", "cancelled", "expired")
    )


def test_files_come_back_as_they_were(client: Callable[[str], openai.OpenAI]) -> None:
    acme = client("acme")
    first, second = (uploaded(acme, [line(name)]) for name in "ab")
    assert acme.files.retrieve(first).filename == "in.jsonl"
    assert acme.files.content(first).text == json.dumps(line("a")) + "\n"
    assert {f.id for f in acme.files.list(limit=1)} == {first, second}, "page after page"
    assert acme.files.delete(first).deleted
    with pytest.raises(openai.NotFoundError):
        acme.files.retrieve(first)
    assert [f.id for f in acme.files.list()] == [second]


def test_a_tenant_sees_nothing_of_another(client: Callable[[str], openai.OpenAI]) -> None:
    acme, other = client("acme"), client("other")
    file = uploaded(acme, [line("a")])
    batch = acme.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h").id
    assert list(other.files.list()) == []
    assert list(other.batches.list()) == []
    for ask in (
        lambda: other.files.retrieve(file),
        lambda: other.files.content(file),
        lambda: other.files.delete(file),
        lambda: other.batches.retrieve(batch),
        lambda: other.batches.cancel(batch),
        lambda: other.files.retrieve("../../acme/files/" + file),
        lambda: other.files.retrieve("%2e%2e%2f" + file),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    with pytest.raises(openai.BadRequestError, match="no such file"):
        other.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
    assert acme.batches.retrieve(batch).status == "validating"


def test_what_cannot_be_is_refused_at_once(client: Callable[[str], openai.OpenAI]) -> None:
    acme = client("acme")
    for size in (MAX_BYTES + 1, 2 * MAX_BYTES):
        with pytest.raises(openai.APIStatusError, match="larger than") as large:
            acme.files.create(file=("x", b"x" * size), purpose="batch")
        assert large.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="file: is missing"):
        acme.post("/files", cast_to=object, body={"purpose": "batch"})
    assert list(acme.files.list()) == [], "nothing is left of it"
    with pytest.raises(openai.BadRequestError, match="purpose"):
        acme.files.create(file=("x", b"x"), purpose="vision")
    file = uploaded(acme, [line("a")])
    window: Any = "1h"
    with pytest.raises(openai.BadRequestError, match="completion_window: Input should be '24h'"):
        acme.batches.create(input_file_id=file, endpoint=CHAT, completion_window=window)
    for amount in ("-1", "1e-12"):
        with pytest.raises(openai.BadRequestError, match="budget_usd"):
            acme.batches.create(
                input_file_id=file, endpoint=CHAT, completion_window="24h",
                metadata={"budget_usd": amount},
            )  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="endpoint"):
        acme.batches.create(input_file_id=file, endpoint="/v1/responses", completion_window="24h")


@pytest.mark.usefixtures("on_this_ray")
def test_a_batch_is_a_run(
    client: Callable[[str], openai.OpenAI], data: Directory, make_config: MakeConfig
) -> None:
    acme, account = client("acme"), Budget(left=10**9)
    rows = [line("a", "one two"), line("b", "three"), line("c", model="gpt-none")]
    batch = created(acme, rows)
    runner = BatchRunner(data, make_config([]), account)
    stepped(runner, ended(acme, batch))
    done = acme.batches.retrieve(batch)
    assert done.status == "completed", done.errors
    counts = done.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    assert done.output_file_id
    assert done.error_file_id
    lines = [json.loads(x) for x in acme.files.content(done.output_file_id).text.splitlines()]
    said = {x["custom_id"]: x["response"]["body"]["choices"][0]["message"] for x in lines}
    assert {name: m["content"] for name, m in said.items()} == {"a": "ONE TWO", "b": "THREE"}
    (wrong,) = map(json.loads, acme.files.content(done.error_file_id).text.splitlines())
    assert wrong["custom_id"] == "c"
    assert "gpt-none" in wrong["error"]["message"]
    assert account.held == {batch: 10**9}, "nobody else may spend it meanwhile"
    tokens = 3 + 3
    # Three prompt tokens at .5 and three of completion at 1.5 dollars a million.
    assert account.charges == {batch: ("acme", tokens, 3 * 500 + 3 * 1500)}


RUNNER = """
import sys
from jobs.batch_runner import BatchRunner
from pipelines.config import Storage
from pipelines.config_file import load_config
from pipelines.storage import Directory
BatchRunner(Directory(sys.argv[1], Storage()), load_config(sys.argv[2])).run_until_stopped()
"""


@pytest.mark.usefixtures("on_this_ray")
def test_a_batch_outlives_whoever_runs_it(
    client: Callable[[str], openai.OpenAI],
    data: Directory,
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    acme = client("acme")
    rows = [line(str(i), f"w{i}", "/v1/completions") for i in range(16)]
    batch = created(acme, rows, "/v1/completions")
    slow = tier("only", delay_s=0.5, max_num_seqs=1)
    config = make_config([], tiers=[slow], input={"path": "-", "block_rows": 1})
    path = tmp_path / "serving.yaml"
    path.write_text(dump_config(config))
    first = subprocess.Popen(
        [sys.executable, "-c", RUNNER, data.url, str(path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    run = tmp_path / "data/tenants/acme/batches" / batch / "run"
    deadline = time.monotonic() + 60
    while not list(run.glob("rows/part-*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert acme.batches.retrieve(batch).status == "in_progress"
    lock = run / ".nightmill/lock.json"
    deadline = time.monotonic() + 30
    while lock.exists() and _lives(json.loads(lock.read_text())["pid"]):
        assert time.monotonic() < deadline, "the job outlives who started it"
        time.sleep(0.1)
    assert len(list(run.glob("rows/part-*"))) < 16, "it ended with who started it"
    stepped(BatchRunner(data, config), ended(acme, batch))
    done = acme.batches.retrieve(batch)
    assert done.status == "completed", done.errors
    assert done.output_file_id
    lines = map(json.loads, acme.files.content(done.output_file_id).text.splitlines())
    bodies = {x["custom_id"]: x["response"]["body"] for x in lines}
    assert {name: b["choices"][0]["text"] for name, b in bodies.items()} == {
        str(i): f"W{i}" for i in range(16)
    }
    assert bodies["0"]["object"] == "text_completion"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_batch_that_cannot_run_says_why(
    client: Callable[[str], openai.OpenAI], data: Directory, make_config: MakeConfig
) -> None:
    acme, config = client("acme"), make_config([])
    wrong = created(acme, [line("a"), line("a"), line("b", url="/v1/embeddings")])
    BatchRunner(data, config).step()
    failed = acme.batches.retrieve(wrong)
    assert failed.status == "failed"
    assert failed.errors
    told = [(e.line, e.code) for e in failed.errors.data or []]
    assert told == [(2, "duplicate_custom_id"), (3, "mismatched_url")]
    poor, gone = created(acme, [line("a")]), created(acme, [line("a")])
    acme.files.delete(acme.batches.retrieve(gone).input_file_id)
    for _ in range(2):
        BatchRunner(data, config, Budget(left=0)).step()
    BatchRunner(data, config).step()
    codes = {}
    for batch in (poor, gone):
        errors = acme.batches.retrieve(batch).errors
        codes[batch] = errors and errors.data and errors.data[0].code
    assert codes[poor] == "insufficient_quota"
    cancelled = created(acme, [line("a")])
    assert acme.batches.cancel(cancelled).status == "cancelling"
    BatchRunner(data, config).step()
    assert acme.batches.retrieve(cancelled).status == "cancelled"


def test_one_batch_that_does_not_start_keeps_no_other_back(
    client: Callable[[str], openai.OpenAI],
    data: Directory,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    acme, other = client("acme"), client("other")
    stuck, wrong = created(acme, [line("a")]), created(other, [line("a"), line("a")])
    write_input = BatchWork.write_input

    def hiccups(self: BatchWork) -> Any:
        if self._folder.tenant == "acme":
            raise OSError("the storage is away")
        return write_input(self)

    monkeypatch.setattr(BatchWork, "write_input", hiccups)
    runner = BatchRunner(data, make_config([]))
    runner.step()
    assert other.batches.retrieve(wrong).status == "failed"
    assert acme.batches.retrieve(stuck).status == "validating"
    monkeypatch.undo()
    acme.batches.cancel(stuck)
    runner.step()
    assert acme.batches.retrieve(stuck).status == "cancelled"


@pytest.mark.usefixtures("on_this_ray")
def test_a_running_batch_is_cancelled(
    client: Callable[[str], openai.OpenAI], data: Directory, make_config: MakeConfig
) -> None:
    acme, account = client("acme"), Budget()
    batch = created(acme, [line(str(i), f"w{i}") for i in range(50)])
    slow = tier("only", delay_s=0.5, max_num_seqs=1)
    config = make_config([], tiers=[slow], input={"path": "-", "block_rows": 1})
    runner = BatchRunner(data, config, account)

    def has_begun() -> bool:
        counts = acme.batches.retrieve(batch).request_counts
        return counts is not None and counts.completed > 0

    stepped(runner, has_begun)
    assert acme.batches.cancel(batch).status == "cancelling"
    stepped(runner, ended(acme, batch))
    assert acme.batches.retrieve(batch).status == "cancelled"
    tenant, tokens, nusd = account.charges[batch]
    assert tenant == "acme"
    # A prompt token at .5 and one of completion at 1.5 dollars a million, for each row.
    assert 0 < nusd == tokens // 2 * 2000 < 50 * 2000, "what was answered is paid"


@pytest.mark.usefixtures("on_this_ray")
def test_a_batch_stays_within_what_it_may_cost(
    client: Callable[[str], openai.OpenAI], data: Directory, make_config: MakeConfig
) -> None:
    acme, account = client("acme"), Budget(left=10**9)
    file = uploaded(acme, [line("a", "one two", max_tokens=5), line("b", "three", max_tokens=5)])
    batch = acme.batches.create(
        input_file_id=file, endpoint=CHAT, completion_window="24h",
        metadata={"budget_usd": "0.000000001"},
    ).id  # fmt: skip
    runner = BatchRunner(data, make_config([]), account)
    stepped(runner, ended(acme, batch))
    done = acme.batches.retrieve(batch)
    assert done.status == "expired"
    assert done.errors
    assert [e.code for e in done.errors.data or []] == ["insufficient_quota"]
    assert account.held == {batch: 1}
    assert account.charges == {batch: ("acme", 0, 0)}


def test_a_batch_expires_after_its_window(
    data: Directory, make_config: MakeConfig, tmp_path: Path
) -> None:
    folder = TenantFolder(data, None)
    path = write_jsonl(tmp_path / "in.jsonl", [line("a")])
    with path.open("rb") as content:
        file = folder.add_file(content, "in.jsonl", "batch")
    batch = folder.add_batch(CHAT, file.id, None)
    BatchRunner(data, make_config([]), clock=lambda: time.time() + 24 * 3600).step()
    assert folder.state(batch).status == "expired"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"{", "invalid_json_line"),
        (b"[]", "invalid_request"),
        (b'{"custom_id": "a", "url": "/v1/chat/completions"}', "invalid_request"),
        (b'{"url": "/v1/chat/completions", "body": {}}', "missing_required_parameter"),
        (b'{"custom_id": "a", "method": "GET", "body": {}}', "invalid_method"),
        (b"\xff", "invalid_json_line"),
        (b"[" * 100_000, "invalid_json_line"),
        (b"", "empty_file"),
    ],
)
def test_lines_that_are_no_requests_are_named(text: bytes, code: str) -> None:
    errors: list[LineError] = []
    assert list(checked_lines([text], CHAT, (), {}, errors)) == []
    assert [error.code for error in errors] == [code]


def test_every_row_says_whose_it_is() -> None:
    errors: list[LineError] = []
    given = {**line("a"), "tenant": "somebody else"}
    (row,) = checked_lines([json.dumps(given).encode()], CHAT, (), {"tenant": "acme"}, errors)
    assert json.loads(row)["tenant"] == "acme"


def test_an_id_leads_nowhere_else(data: Directory, tmp_path: Path) -> None:
    acme, other = TenantFolder(data, "acme"), TenantFolder(data, "other")
    with write_jsonl(tmp_path / "in.jsonl", [line("a")]).open("rb") as content:
        file = acme.add_file(content, "in.jsonl", "batch")
    batch = acme.add_batch(CHAT, file.id, None)
    other.add_batch(CHAT, "file-x", None)
    assert other.file(f"../../acme/files/{file.id}") is None
    assert other.batch(f"../../acme/batches/{batch.id}") is None
    assert acme.file(file.id) == file
    assert acme.batch(batch.id) == batch


def test_a_job_runs_by_the_endpoints_configuration(
    data: Directory, make_config: MakeConfig
) -> None:
    config = make_config([], budget_usd=5.0)
    folder = TenantFolder(data, "acme")
    work = BatchWork(data, config, folder, folder.add_batch(CHAT, "file-x", None))
    job = work.job_config(2 * 10**9, 3 * 10**9)
    assert job.tiers == config.tiers
    assert job.input.columns.tenant == "tenant"
    assert job.budget_usd == 2.0, "the smallest of all"
    assert work.job_config(None, None).budget_usd == 5.0


def test_a_line_has_the_key_that_the_same_request_has_online(
    data: Directory, make_config: MakeConfig
) -> None:
    """So that they share answers; without tenants as with the columns that the route looks at."""
    rules = {"rules": [{"when": {"columns": {"kind": ["code"]}}, "tier": "only"}]}
    config = make_config([], route={"policy": "rules", "otherwise": "only", **rules})
    asked = [line("a"), line("b", metadata={"kind": "code"}), line("c", metadata={"kind": 5})]
    plan = plan_endpoint(config, date(2026, 11, 27))
    service = Service(policies(plan), {}, {}, 0, None)
    online = [service.read(CHAT, one["body"], None)["request_key"] for one in asked]  # type: ignore[index]
    folder = TenantFolder(data, None)
    text = "".join(json.dumps(one) + "\n" for one in asked).encode()
    file = folder.add_file(io.BytesIO(text), "in.jsonl", "batch")
    work = BatchWork(data, config, folder, folder.add_batch(CHAT, file.id, None))
    assert work.write_input() == (3, [])
    job = plan_run(work.job_config(), date(2026, 11, 27))
    fs, _ = open_filesystem(job.config.input.path, job.config.storage)
    rows = read_block(job.blocks[0], job.dialect, job.schema, job.policy, fs)
    assert rows["request_key"].to_pylist() == online
    assert len(set(online)) == 3
