import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from actors.api_engine import APIEngine
from actors.engine import GIVEN_UP, Answer
from actors.rate_limits import LocalLimits
from pipelines.api_tier import API
from pipelines.cost import Usage
from pipelines.errors import RunFailure, UsageProblem
from pipelines.requests import Request
from tests.standin import standin

KEY = "sk-very-secret-key-0123456789"


def api(url: str, **fields: Any) -> API:
    raw = {"kind": "api", "base_url": f"{url}/v1", "model": "m", "timeout_s": 5, **fields}
    return API.model_validate(raw)


def ask(
    config: API, *texts: str, limits: Any = None, has_fallback: bool = False, **defaults: Any
) -> list[Answer]:
    """The answers to prompts that are all asked at once."""

    async def answers() -> list[Answer]:
        engine = APIEngine(config, defaults, limits, has_fallback)
        await engine.start()
        requests = [Request([{"role": "user", "content": text}], {}) for text in texts]
        done = await asyncio.gather(*(engine.answer(request) for request in requests))
        await engine.stop()
        assert engine.clock.busy_ns == sum(answer.engine_ns for answer in done)
        return done

    return asyncio.run(answers())


def test_rows_are_answered_with_their_usage() -> None:
    with standin(cached=1) as (server, url):
        one, two = ask(api(url), "one two three", "four", max_tokens=2)
    assert (one.response, one.finish_reason) == ("ONE TWO", "length")
    assert one.usage == Usage(3, 1, 2)
    assert (two.response, two.finish_reason, two.attempts) == ("FOUR", "stop", 1)
    assert two.ttft_s is None
    assert two.e2e_s
    assert {b["model"] for b in server.bodies} == {"m"}
    assert all("stream" not in b for b in server.bodies)


@pytest.mark.parametrize(
    ("fields", "path"),
    [({"endpoint": "completions"}, "/v1"), ({"dialect": "anthropic"}, "")],
)
def test_other_endpoints_are_spoken_to(fields: dict[str, Any], path: str) -> None:
    with standin(cached=5) as (_, url):
        (answer,) = ask(api(url, base_url=url + path, **fields), "one two", max_tokens=1)
    assert (answer.response, answer.finish_reason) == ("ONE", "length")
    assert answer.usage.prompt_tokens == (7 if "dialect" in fields else 2)


@pytest.mark.parametrize("fault", ["429", "429-after", "500", "503", "529", "reset"])
def test_a_fault_that_passes_costs_a_try(fault: str) -> None:
    with standin(first=[fault]) as (server, url):
        (answer,) = ask(api(url), "hello")
    assert (answer.response, answer.attempts) == ("HELLO", 2)
    assert server.stats()["paid_twice"] == 0


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_try_has_an_end_whatever_trickles_in(fault: str) -> None:
    with standin(first=[fault]) as (_, url):
        (answer,) = ask(api(url, timeout_s=0.3), "hello")
    assert (answer.response, answer.attempts) == ("HELLO", 2)


@pytest.mark.parametrize("fault", ["not-json", "no-choices", "no-usage", "wrong-usage"])
def test_a_garbled_answer_is_tried_once_more_and_then_a_problem(fault: str) -> None:
    with standin(first=[fault]) as (_, url):
        (answer,) = ask(api(url), "one two")
    assert (answer.response, answer.attempts) == ("ONE TWO", 2)
    # What the first try says it cost is paid for; what says nothing true cannot be.
    assert answer.usage.prompt_tokens == (4 if fault == "no-choices" else 2)
    with standin(first=[fault] * 9) as (server, url):
        (answer,) = ask(api(url), "one two")
    assert answer.problem
    assert answer.problem.kind == "malformed"
    assert len(server.arrivals) == 2


@pytest.mark.parametrize(
    ("fault", "kind"), [("400", "invalid_request"), ("context", "context_length")]
)
def test_a_bad_row_is_never_sent_again(fault: str, kind: str) -> None:
    with standin(first=[fault]) as (server, url):
        (answer,) = ask(api(url), "hello")
    assert answer.problem
    assert answer.problem.kind == kind
    assert answer.attempts == len(server.arrivals) == 1


def test_without_quota_nothing_is_tried_again() -> None:
    with standin(first=["quota"]) as (server, url):
        (answer,) = ask(api(url), "hello")
    assert answer.problem
    assert answer.problem.kind == "unavailable"
    assert len(server.arrivals) == 1


def test_a_service_that_stays_down_is_given_up_on() -> None:
    with standin(share=1.0, faults=["500"]) as (server, url):
        (answer,) = ask(api(url, max_retries=2), "hello")
        assert answer.problem
        assert (answer.problem.kind, answer.attempts) == ("unavailable", 3)
        assert len(server.arrivals) == 3
    with standin(share=1.0, faults=["429-after"], retry_after_s=9.0) as (server, url):
        (answer,) = ask(api(url, deadline_s=5), "hello")
        assert answer.problem
        assert "deadline_s" in answer.problem.message
        assert len(server.arrivals) == 1


def test_a_breaker_saves_a_service_that_is_down_from_most_of_the_tries() -> None:
    breaker = {"failures": 4, "open_s": 0.2, "outage_s": 0.5}
    with standin(share=1.0, faults=["503"]) as (server, url):
        config = api(url, breaker=breaker, concurrency=4, max_retries=50)
        answers = ask(config, *(f"row {i}" for i in range(100)))
        assert {a.problem.kind for a in answers if a.problem} == {"unavailable"}
        assert all(a.problem for a in answers)
        assert len(server.arrivals) < 30
    with standin(first=["503"] * 8) as (server, url):
        config = api(url, breaker={**breaker, "outage_s": 60}, concurrency=4)
        answers = ask(config, *(f"row {i}" for i in range(50)))
        assert [a.response for a in answers] == [f"ROW {i}" for i in range(50)]


def test_rows_do_not_wait_for_a_dead_service_longer_than_they_may() -> None:
    """With a fallback not at all, without one until their deadline, tried or not."""
    breaker = {"failures": 2, "open_s": 60}
    for more, fields in (({"has_fallback": True}, {}), ({}, {"deadline_s": 1})):
        with standin(share=1.0, faults=["503"]) as (server, url):
            config = api(url, breaker=breaker, concurrency=2, max_retries=0, **fields)
            began = time.monotonic()
            answers = ask(config, *(f"row {i}" for i in range(20)), **more)
            assert time.monotonic() - began < 15
            assert {a.problem.kind for a in answers if a.problem} == {"unavailable"}
            assert len(server.arrivals) <= 4


def test_under_faults_nothing_is_lost_and_nothing_is_paid_twice() -> None:
    faults = ["429", "429-after", "500", "529", "reset"]
    with standin(share=0.3, faults=faults, retry_after_s=0.01) as (server, url):
        answers = ask(api(url, concurrency=32, max_retries=20), *(f"row {i}" for i in range(200)))
        assert [a.response for a in answers] == [f"ROW {i}" for i in range(200)]
        stats = server.stats()
    assert (stats["answered"], stats["paid_twice"]) == (200, 0)
    assert stats["most_at_once"] <= 32
    assert (
        sum(a.usage.prompt_tokens + a.usage.completion_tokens for a in answers) == stats["tokens"]
    )
    assert sum(a.attempts for a in answers) == stats["requests"]


def test_a_learned_limit_is_kept_from_then_on() -> None:
    with standin(tells_limits=True, window_requests=600) as (server, url):
        config = api(url, concurrency=4)
        answers = ask(config, *(f"row {i}" for i in range(16)))
        took = server.arrivals[-1] - server.arrivals[0]
    assert all(a.response for a in answers)
    # Four go before anything is known, six at once, the others one every tenth of a second.
    assert took > 0.4


def test_one_limit_holds_for_all_engines_of_an_account() -> None:
    with standin() as (server, url):
        config = api(url, requests_per_minute=600)
        limits = LocalLimits(config)

        async def both() -> None:
            engines = [APIEngine(config, {}, limits) for _ in range(2)]
            rows = [Request([{"role": "user", "content": f"r{i}"}], {}) for i in range(8)]
            for engine in engines:
                await engine.start()
            await asyncio.gather(*(e.answer(r) for e in engines for r in rows))
            for engine in engines:
                await engine.stop()

        asyncio.run(both())
        took = server.arrivals[-1] - server.arrivals[0]
    assert len(server.arrivals) == 16
    assert took > 0.9


def test_rows_whose_turn_would_come_too_late_are_given_up_and_never_sent() -> None:
    with standin() as (server, url):
        began = time.monotonic()
        done = ask(api(url, requests_per_minute=60, deadline_s=1.5), *(f"r{i}" for i in range(20)))
        took = time.monotonic() - began
    late = [answer.problem for answer in done if answer.problem]
    assert 15 <= len(late) < 20
    assert all("deadline_s would pass" in problem.message for problem in late)
    assert len(server.arrivals) == 20 - len(late)
    assert took < 5


class CountedLimits(LocalLimits):
    calls = 0

    async def lease(self, tokens: Any, returned: int) -> Any:
        self.calls += 1
        return await super().lease(tokens, returned)


def test_a_limit_costs_one_call_for_many_rows_and_none_where_there_is_none() -> None:
    with standin() as (_, url):
        for limit, most in ((None, 0), (10**6, 8)):
            config = api(url, requests_per_minute=limit)
            limits = CountedLimits(config)
            ask(config, *(f"row {i}" for i in range(64)), limits=limits)
            assert limits.calls <= most


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NIGHTMILL_TEST_KEY", KEY)
    return "NIGHTMILL_TEST_KEY"


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_the_key_is_sent_and_never_shown(
    key: str, dialect: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    version = "" if dialect == "anthropic" else "/v1"
    fields = {"dialect": dialect, "api_key_env": key}
    with standin(key=KEY, first=["500", "400", "ok", "no-choices"]) as (_, url):
        config = api(url, base_url=url + version, **fields)
        answers = ask(config, "hello", "there", "bye")
    with (
        standin(key="sk-another") as (_, url),
        pytest.raises(RunFailure, match="NIGHTMILL_TEST_KEY") as error,
    ):
        ask(api(url, base_url=url + version, **fields), "hello")
    assert [a.problem is None for a in answers].count(False) == 1
    shown = capfd.readouterr()
    for text in (caplog.text, shown.out, shown.err, repr(error.value), repr((answers, config))):
        assert KEY not in text


def test_without_a_key_none_is_sent_not_even_one_that_lies_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with standin() as (server, url):
        ask(api(url), "hello")
        assert "Authorization" not in server.headers
    with standin() as (server, url):
        ask(api(url, base_url=url, dialect="anthropic"), "hello")
        assert KEY not in str(server.headers)


def test_a_provider_that_repeats_the_key_is_not_quoted(key: str) -> None:
    with standin(first=["400-key"]) as (_, url):
        (answer,) = ask(api(url, api_key_env=key), "hello")
    assert answer.problem
    assert "***" in answer.problem.message
    assert KEY not in answer.problem.message


@pytest.mark.parametrize("content", [None, "", "two words"])
def test_a_key_file_holds_the_key_and_no_more(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageProblem, match="api_key_file") as error:
        ask(api("http://127.0.0.1:1", api_key_file=str(path)), "hello")
    assert "words" not in str(error.value)


def test_a_key_from_a_file_opens_the_door(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    with standin(key=KEY) as (_, url):
        (answer,) = ask(api(url, api_key_file=str(tmp_path / "key")), "hello")
    assert answer.response == "HELLO"


def test_a_model_that_does_not_exist_ends_the_run() -> None:
    with standin(first=["404"]) as (_, url), pytest.raises(RunFailure, match="model"):
        ask(api(url), "hello")


def given_up(after_s: float, url: str, **fields: Any) -> tuple[bool, Answer | None]:
    """Whether the answer came with what it used, and the answer, of a request given up so early."""

    async def asked() -> tuple[bool, Answer | None]:
        engine = APIEngine(api(url, **fields), {})
        await engine.start()
        request = Request([{"role": "user", "content": "one two"}], {})
        work = asyncio.ensure_future(engine.answer(request))
        await asyncio.sleep(after_s)
        comes = engine.give_up(request)
        answer = await work if comes else None
        work.cancel()
        await engine.stop()
        return comes, answer

    return asyncio.run(asked())


def test_what_nobody_waits_for_is_paid_if_it_was_asked_for_and_never_asked_again() -> None:
    with standin(latency_s=0.4) as (server, url):
        comes, answer = given_up(0.1, url)
    assert comes
    assert answer is not None
    assert (answer.response, answer.usage) == ("ONE TWO", Usage(2, 0, 2))
    with standin(share=1.0, faults=["503"]) as (server, url):
        comes, answer = given_up(0.1, url)
    assert comes
    assert answer is not None
    assert (answer.problem, answer.usage) == (GIVEN_UP, Usage())
    assert answer.attempts == len(server.arrivals) < 5
    # One that waits for the rate limit was never sent, so it may be cancelled.
    with standin(window_requests=1, tells_limits=True) as (server, url):
        assert given_up(0.0, url) == (False, None)
        assert not server.arrivals
