"""The endpoint on real Ray Serve, asked by OpenAI's client over real HTTP."""

import asyncio
import contextlib
import json
import re
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import PRICE, tier
from pydantic import BaseModel

from jobs.batch import run
from jobs.serve import deploy, end
from pipelines.config import RunConfig

REPLIES = [
    {"regex": "^easy", "response": "sure it is", "confidence": 0.9},
    {"regex": "^hard", "response": "perhaps", "confidence": 0.2},
    {"regex": "^json", "response": '{"city": "Bern"}', "confidence": 0.9},
    {"regex": "^broken", "fails": "engine"},
]
DELAY_S = 1.5


def lines() -> list[dict[str, Any]]:
    """300 requests, some of them twice, some for a tier by name, some wrong."""
    found = []
    for i in range(300):
        number = i // 2 if i < 100 else i
        text = f"{('easy', 'hard', 'odd')[number % 3]} question {number}"
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 9}
        if i % 10 == 9:
            body["model"] = "strong"
        if i % 50 == 49:
            body["temperature"] = "warm"
        found.append({"custom_id": f"r{i:03d}", "body": body})
    return found


def config_of(folder: Path, port: int, cache: str, **sections: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "input": {"path": str(folder / "lines.jsonl"), "format": "openai_batch"},
            "output": {"path": str(folder / f"out-{cache}")},
            "tiers": [
                tier("cheap", replies=REPLIES, delay_s=DELAY_S),
                tier("strong", delay_s=DELAY_S),
                tier("narrow", delay_s=DELAY_S, max_num_seqs=2),
            ],
            "route": {
                "policy": "cascade",
                "steps": [{"tier": "cheap", "accept": [{"by": "confidence", "at_least": 0.5}]}],
                "otherwise": "strong",
            },
            "baseline": "strong",
            "response_cache": {"path": str(folder / cache)},
            "serve": {
                "port": port,
                "data_dir": str(folder / "data"),
                "max_body_bytes": 20_000,
                "max_queued": 2,
                **sections,
            },
        }
    )


@pytest.fixture(scope="module")
def served(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunConfig]:
    assert ray_here is None
    folder = tmp_path_factory.mktemp("serve")
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines()))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = config_of(folder, port, "online-cache")
    deploy(config)
    yield config
    end()


def url(config: RunConfig) -> str:
    return f"http://{config.serve.host}:{config.serve.port}/v1"


def client(config: RunConfig, retries: int = 0) -> openai.AsyncOpenAI:
    http = httpx.AsyncClient(limits=httpx.Limits(max_connections=500), timeout=60)
    return openai.AsyncOpenAI(
        base_url=url(config), api_key="none", max_retries=retries, http_client=http
    )


def sync_client(config: RunConfig) -> openai.OpenAI:
    return openai.OpenAI(base_url=url(config), api_key="none", max_retries=0)


def ask(text: str, model: str = "auto", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


Told = tuple[Any, ...]


async def asked_all(config: RunConfig) -> dict[str, list[Told]]:
    """What all lines at once bring, by their text: tier, source, answer and cost."""
    own = client(config)
    found: dict[str, list[Told]] = defaultdict(list)

    async def one(line: dict[str, Any]) -> None:
        key = json.dumps(line["body"])
        body = {"model": "auto", **line["body"]}
        try:
            raw = await own.chat.completions.with_raw_response.create(**body)
        except openai.BadRequestError as error:
            found[key].append(("error", error.body["code"]))  # type: ignore[index]
            return
        told = raw.headers
        text = raw.parse().choices[0].message.content
        source, cost = told["x-nightmill-source"], told["x-nightmill-cost-usd"]
        found[key].append((told["x-nightmill-tier"], source, text, cost))

    await asyncio.gather(*(one(line) for line in lines()))
    return {key: sorted(told) for key, told in found.items()}


def ran_all(config: RunConfig) -> dict[str, list[Told]]:
    run(config)
    bodies = {line["custom_id"]: json.dumps(line["body"]) for line in lines()}
    found: dict[str, list[Told]] = defaultdict(list)
    for row in pq.read_table(Path(config.output.path) / "rows").to_pylist():
        told: Told = ("error", row["error_kind"])
        if row["status"] == "ok":
            told = (row["tier"], row["source"], row["response"], f"{row['cost_usd']:f}")
        found[bodies[row["custom_id"]]].append(told)
    return {key: sorted(told) for key, told in found.items()}


def test_the_same_requests_get_the_same_in_a_batch_and_online(served: RunConfig) -> None:
    """Tier, source, answer and cost of each; afterwards either is served by the other's cache."""
    folder = Path(served.input.path).parent
    online = asyncio.run(asked_all(served))
    batch = ran_all(config_of(folder, served.serve.port, "batch-cache"))
    assert online == batch
    told = [one for answers in online.values() for one in answers]
    assert {one[1] for one in told} == {"generated", "duplicate", "invalid_request"}
    assert {one[0] for one in told} == {"cheap", "strong", "error"}
    again = asyncio.run(asked_all(served))
    sources = {one[1] for told in again.values() for one in told}
    # Cached answers are there so fast that hardly anybody still asks the same meanwhile.
    assert sources - {"duplicate"} == {"cache_exact", "invalid_request"}
    by_batch = ran_all(served)
    generated = [one for told in by_batch.values() for one in told if one[1] == "generated"]
    assert generated == []


def test_a_stream_says_the_answer_and_its_cost(served: RunConfig) -> None:
    with sync_client(served) as own:
        options = {"include_usage": True}
        request = ask("tell me a story", "strong", stream=True, stream_options=options)
        chunks = list(own.chat.completions.create(**request))
    texts = [c.choices[0].delta.content for c in chunks if c.choices]
    assert [text for text in texts if text] == ["TELL", " ME", " A", " STORY"]
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[-2].model_extra["nightmill"]["cost_usd"] == "0.000008000"
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_the_answer_of_a_cascade_is_streamed_once_it_is_taken(served: RunConfig) -> None:
    with sync_client(served) as own:
        chunks = list(own.chat.completions.create(**ask("easy stream", stream=True)))
    texts = [c.choices[0].delta.content for c in chunks if c.choices]
    assert [text for text in texts if text] == ["sure it is"]


def test_structured_output_completions_and_models(served: RunConfig) -> None:
    class Place(BaseModel):
        city: str

    with sync_client(served) as own:
        parsed = own.chat.completions.parse(**ask("json please", "cheap"), response_format=Place)
        assert parsed.choices[0].message.parsed == Place(city="Bern")
        texts = own.completions.create(model="strong", prompt=["one two", "three"])
        assert [(c.index, c.text) for c in texts.choices] == [(0, "ONE TWO"), (1, "THREE")]
        assert texts.usage is not None
        assert texts.usage.completion_tokens == 3
        assert [m.id for m in own.models.list()] == ["auto", "cheap", "strong", "narrow"]


@pytest.mark.parametrize(
    ("path", "content", "status", "code"),
    [
        ("chat/completions", b"{", 400, None),
        ("chat/completions", b"[1]", 400, None),
        ("chat/completions", b'{"messages": [], "\\ud800": 1}', 400, None),
        ("chat/completions", b'{"model": "\xed\xa0\x80"}', 400, None),
        ("chat/completions", json.dumps(ask("x", temperature=float("nan"))).encode(), 400, None),
        ("chat/completions", json.dumps(ask("x", stream="yes")).encode(), 400, None),
        ("chat/completions", json.dumps(ask("x", metadata=["x"])).encode(), 400, None),
        ("embeddings", b'{"model": "strong", "input": "x", "stream": true}', 400, None),
        ("nowhere", b"", 404, None),
        ("models", b"", 405, None),
        ("chat/completions", json.dumps(ask("x", "gpt")).encode(), 404, "model_not_found"),
        ("chat/completions", json.dumps(ask(" ")).encode(), 400, "invalid_row"),
        ("chat/completions", json.dumps(ask("x", top_p=7)).encode(), 400, "invalid_request"),
        ("chat/completions", json.dumps(ask("x", zzz=7)).encode(), 400, "unsupported"),
        ("chat/completions", json.dumps(ask("x" * 30_000)).encode(), 413, "request_too_large"),
        ("chat/completions", json.dumps(ask("x", max_tokens=10**6)).encode(), 400, None),
        ("chat/completions", json.dumps(ask("x", n=257, temperature=1)).encode(), 400, None),
        ("completions", b'{"model": "cheap", "prompt": "x", "echo": true}', 400, None),
        ("embeddings", b'{"model": "strong", "input": "x"}', 400, "unsupported"),
        ("chat/completions", json.dumps(ask("broken", "cheap")).encode(), 500, "engine"),
    ],
)
def test_what_is_wrong_is_said_in_openai_s_words(
    served: RunConfig, path: str, content: bytes, status: int, code: str | None
) -> None:
    reply = httpx.post(f"{url(served)}/{path}", content=content, timeout=30)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code


def test_a_path_names_all_methods_that_it_takes(served: RunConfig) -> None:
    reply = httpx.request("PUT", f"{url(served)}/files")
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET, POST")


def test_pages_of_other_sites_may_not_ask(served: RunConfig) -> None:
    """A browser sends plain text to anybody without asking, and only hides the answer."""

    def status(origin: str) -> int:
        headers = {"origin": origin, "content-type": "text/plain"}
        content = json.dumps(ask("from a page", "strong"))
        own = httpx.post(f"{url(served)}/chat/completions", headers=headers, content=content)
        return own.status_code

    assert status(url(served)[:-3]) == 200
    assert [status(origin) for origin in ("https://example.org", "null")] == [403, 403]


def test_a_deadline_ends_a_request(served: RunConfig) -> None:
    headers = {"x-nightmill-deadline-s": "0.3"}
    content = json.dumps(ask("too slow", "strong")).encode()
    reply = httpx.post(f"{url(served)}/chat/completions", content=content, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_who_hangs_up_pays_for_what_was_generated_by_then(served: RunConfig) -> None:
    def billed() -> float:
        text = httpx.get(f"{url(served)[:-3]}/metrics").text
        found = re.findall(r'^nightmill:cost_usd_total{.*tier="strong".*} (\S+)', text, re.M)
        return sum(map(float, found))

    before, words = billed(), " ".join(f"word{i}" for i in range(100))
    content = json.dumps(ask(words, "strong", stream=True)).encode()
    with httpx.stream("POST", f"{url(served)}/chat/completions", content=content) as reply:
        said = next(reply.iter_lines())
    assert "WORD0" in said
    deadline = time.monotonic() + 10
    while (cost := billed() - before) == 0 and time.monotonic() < deadline:
        time.sleep(0.2)
    # Its prompt, and some of its 100 words.
    assert 100 * PRICE["input"] < cost * 1e6 < 100 * (PRICE["input"] + 0.9 * PRICE["output"])


def test_who_would_wait_too_long_is_told_to_come_again(served: RunConfig) -> None:
    async def burst() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as own:
            bodies = [ask(f"burst {i}", "narrow") for i in range(12)]
            posts = (own.post(f"{url(served)}/chat/completions", json=body) for body in bodies)
            return await asyncio.gather(*posts)

    replies = asyncio.run(burst())
    refused = [reply for reply in replies if reply.status_code != 200]
    assert {reply.status_code for reply in refused} == {429}
    assert {reply.headers["retry-after"] for reply in refused} == {"1"}
    assert 2 <= len(refused) <= 10


def replica(kind: str) -> psutil.Process:
    """One of our own replicas: other clusters may run on this machine."""
    for process in psutil.Process().children(recursive=True):
        # One that has ended since, or that nobody has waited for, has no command line to read.
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"ServeReplica:nightmill{kind}" in " ".join(process.cmdline()):
                return process
    raise LookupError(f"no replica {kind!r} runs")


@pytest.mark.parametrize("kind", ["-tier-strong", ":ingress"])
def test_a_killed_replica_loses_nothing_if_the_client_tries_again(
    served: RunConfig, kind: str
) -> None:
    async def killed() -> list[str | None]:
        own = client(served, retries=1)
        tasks = [
            asyncio.ensure_future(own.chat.completions.create(**ask(f"{kind} {i}", "strong")))
            for i in range(20)
        ]
        await asyncio.sleep(DELAY_S / 2)
        replica(kind).kill()
        answers = await asyncio.gather(*tasks)
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(killed()) == [f"{kind} {i}".upper() for i in range(20)]


def test_an_endpoint_without_a_tier_is_not_ready(served: RunConfig) -> None:
    def ready() -> int:
        return httpx.get(f"{url(served)[:-3]}/ready").status_code

    def seen(status: int) -> bool:
        deadline = time.monotonic() + 60
        while ready() != status and time.monotonic() < deadline:
            time.sleep(0.2)
        return ready() == status

    assert seen(200)
    replica("-tier-narrow").kill()
    assert seen(503)
    assert httpx.get(f"{url(served)[:-3]}/health").status_code == 200
    assert seen(200)


def test_an_endpoint_whose_door_is_gone_opens_another(served: RunConfig) -> None:
    door, ingress = replica("-door"), replica(":ingress")
    door.kill()
    # What was open stays so until another ingress has the new socket.
    psutil.wait_procs([ingress], timeout=60)
    with httpx.Client(transport=httpx.HTTPTransport(retries=8), timeout=60) as own:
        reply = own.post(f"{url(served)}/chat/completions", json=ask("anew", "strong"))
    assert reply.json()["choices"][0]["message"]["content"] == "ANEW"
    assert ingress.pid != replica(":ingress").pid


def test_a_new_configuration_takes_over_without_losing_a_request(served: RunConfig) -> None:
    before = replica("-tier-cheap").pid

    async def updated() -> list[str | None]:
        own = client(served)
        folder = Path(served.input.path).parent
        port = served.serve.port
        new = config_of(folder, port, "online-cache", max_body_bytes=30_000)
        deploying = asyncio.ensure_future(asyncio.to_thread(deploy, new))
        answers = []
        while not deploying.done() or len(answers) < 8:
            texts = [f"update {len(answers) + i}" for i in range(4)]
            asked = (own.chat.completions.create(**ask(text, "strong")) for text in texts)
            answers += [a.choices[0].message.content for a in await asyncio.gather(*asked)]
        await deploying
        return answers

    answers = asyncio.run(updated())
    assert answers == [f"UPDATE {i}" for i in range(len(answers))]
    assert replica("-tier-cheap").pid == before
    content = json.dumps(ask("x" * 25_000, "strong")).encode()
    reply = httpx.post(f"{url(served)}/chat/completions", content=content, timeout=30)
    assert reply.status_code == 200


def test_a_tier_scales_to_nothing_and_comes_back_when_it_is_asked(served: RunConfig) -> None:
    def runs() -> bool:
        with contextlib.suppress(LookupError):
            return bool(replica("-tier-strong"))
        return False

    def gone() -> bool:
        deadline = time.monotonic() + 60
        while runs() and time.monotonic() < deadline:
            time.sleep(0.5)
        return not runs()

    folder, port = Path(served.input.path).parent, served.serve.port
    raw = config_of(folder, port, "online-cache", idle_s=1, drain_s=1).model_dump(mode="json")
    raw["tiers"][1]["replicas"] = {"min": 0, "max": 1}
    deploy(RunConfig.model_validate(raw))
    for words in ("wake up", "once more"):
        assert gone()
        assert httpx.get(f"{url(served)[:-3]}/ready").status_code == 200
        # Nobody is refused meanwhile: the first waits until the model is loaded.
        answer = sync_client(served).chat.completions.create(**ask(words, "strong"), timeout=60)
        assert answer.choices[0].message.content == words.upper()
        assert runs()
