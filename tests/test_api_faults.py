import json
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from conftest import PRICE, MakeConfig
from pydantic import ValidationError

from jobs.preflight import check_config
from pipelines.api_faults import (
    Breaker,
    backoff_s,
    failure_fault,
    retry_after,
    status_fault,
    wait_s,
)
from pipelines.api_tier import API
from pipelines.api_tier import Breaker as BreakerConfig
from pipelines.config_file import dump_config
from pipelines.errors import UsageProblem
from pipelines.keys import tier_identity
from pipelines.tier import Tier

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


def body(code: str | None = None, message: str = "no", kind: str = "t") -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "content", "action", "kind"),
    [
        (400, body(), "row", "invalid_request"),
        (422, b"not json", "row", "invalid_request"),
        (400, body("context_length_exceeded"), "row", "context_length"),
        (400, body(message="This model's maximum context length is 8 tokens"), "row",
         "context_length"),
        (400, body(message="prompt is too long: 300 tokens", kind="invalid_request_error"), "row",
         "context_length"),
        (413, body(kind="request_too_large"), "row", "context_length"),
        (400, body("unsupported_parameter"), "row", "unsupported"),
        (418, b"", "row", "invalid_request"),
        (401, body(message="Incorrect API key provided: sk-secret"), "fatal", "unavailable"),
        (403, body(), "fatal", "unavailable"),
        (404, body("model_not_found"), "fatal", "unavailable"),
        (429, body("rate_limit_exceeded"), "throttled", "unavailable"),
        (429, body("insufficient_quota"), "outage", "unavailable"),
        (429, body(None, kind="insufficient_quota"), "outage", "unavailable"),
        (402, b"", "outage", "unavailable"),
        (408, b"", "retry", "unavailable"),
        (500, b"<html>", "retry", "unavailable"),
        (503, body(), "retry", "unavailable"),
        (529, body(kind="overloaded_error"), "retry", "unavailable"),
    ],
)  # fmt: skip
def test_a_status_says_who_is_at_fault(status: int, content: bytes, action: str, kind: str) -> None:
    fault = status_fault(status, {}, content, NOW)
    assert (fault.action, fault.kind) == (action, kind)
    assert "sk-secret" not in fault.message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "Tue, 24 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Tue, 24 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers, NOW) == seconds


def test_backoff_grows_with_full_jitter_and_has_an_end() -> None:
    rng = Random(0)
    for tries, most in ((1, 0.5), (2, 1.0), (5, 8.0), (50, 60.0)):
        waits = [backoff_s(tries, rng) for _ in range(500)]
        assert max(waits) <= most
        assert min(waits) < 0.1 * most
        assert max(waits) > 0.9 * most


def test_what_the_provider_asks_for_is_waited_for_in_full() -> None:
    fault = status_fault(429, {"retry-after": "3"}, b"", NOW)
    assert all(3.0 <= wait_s(fault, 1, Random(i)) <= 3.3 for i in range(100))


def test_a_breaker_opens_probes_and_closes() -> None:
    breaker = Breaker(BreakerConfig(failures=3, open_s=10, outage_s=30))
    breaker.failed(0.0)
    breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(3):
        assert breaker.ask(1.0).action == "go"
        breaker.failed(1.0)
    assert breaker.ask(2.0).action == "wait"
    assert breaker.ask(11.0).action == "probe"
    assert breaker.ask(11.0).action == "wait"
    # Others that were under way when it opened tell nothing new.
    breaker.failed(11.5)
    breaker.failed(12.0, probe=True)
    assert breaker.ask(13.0).action == "wait"
    assert breaker.ask(22.0).action == "probe"
    breaker.succeeded()
    assert breaker.ask(22.0).action == "go"


def test_a_breaker_calls_it_an_outage_in_the_end_and_still_probes() -> None:
    breaker = Breaker(BreakerConfig(failures=1, open_s=10, outage_s=30))
    breaker.failed(0.0)
    breaker.failed(10.0, probe=breaker.ask(10.0).action == "probe")
    breaker.failed(20.0, probe=breaker.ask(20.0).action == "probe")
    assert breaker.ask(29.0).action == "wait"
    assert breaker.ask(29.99).action == "wait"
    assert breaker.ask(30.0).action == "probe"
    assert breaker.ask(30.0).action == "outage"
    breaker.abandoned()
    assert breaker.ask(31.0).action == "probe"


def test_a_throttled_or_garbled_answer_is_no_sign_of_an_outage() -> None:
    assert not status_fault(429, {}, b"", NOW).is_down
    assert not failure_fault("malformed", "no choices").is_down
    assert status_fault(500, {}, b"", NOW).is_down
    assert failure_fault("timeout", "ReadTimeout").is_down
    assert status_fault(429, {}, body("insufficient_quota"), NOW).is_down


BASE = {"kind": "api", "base_url": "https://host/v1", "model": "m"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"api_key": "sk-secret"}, "api_key_env"),
        ({"api_key_env": "A", "api_key_file": "/k"}, "at most one"),
        ({"api_key_env": "sk-secret"}, "api_key_env"),
        ({"base_url": "ftp://host"}, "http"),
        ({"base_url": "https://u:sk-secret@host/v1"}, "api_key_env"),
        ({"base_url": "https://host/v1?key=sk-secret"}, "api_key_env"),
        ({"dialect": "anthropic", "endpoint": "completions"}, "endpoint"),
        ({"extra_body": {"stream": True}}, "stream"),
        ({"extra_headers": {"Authorization": "x"}}, "extra_headers"),
    ],
)
def test_what_an_api_tier_may_not_say(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        API.model_validate({**BASE, **fields})
    shown = [f"{'.'.join(map(str, e['loc']))} {e['msg']}" for e in error.value.errors()]
    assert said in "\n".join(shown)
    assert "sk-secret" not in "\n".join(shown)


def test_a_key_that_is_nowhere_stops_the_run_before_it_starts(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {
        "name": "only",
        "engine": {**BASE, "api_key_env": "NIGHTMILL_TEST_KEY"},
        "billing": {"kind": "serverless", "usd_per_mtok": PRICE},
    }
    config = make_config([], tiers=[raw])
    monkeypatch.delenv("NIGHTMILL_TEST_KEY", raising=False)
    with pytest.raises(UsageProblem, match=r"tiers.only.engine.api_key_env: NIGHTMILL_TEST_KEY"):
        check_config(config, NOW.date())
    monkeypatch.setenv("NIGHTMILL_TEST_KEY", "sk-secret")
    check_config(config, NOW.date())
    assert "sk-secret" not in dump_config(config)


def identity(**fields: Any) -> list[Any]:
    raw = {
        "name": "t",
        "engine": {**BASE, **fields},
        "billing": {"kind": "serverless", "usd_per_mtok": PRICE},
    }
    return tier_identity(Tier.model_validate(raw))


def test_what_changes_answers_changes_the_identity_and_nothing_else_does() -> None:
    plain = identity()
    assert identity(concurrency=3, timeout_s=1, api_key_env="K") == plain
    for changed in (
        {"model": "n"},
        {"base_url": "https://other/v1"},
        {"dialect": "anthropic"},
        {"endpoint": "completions"},
        {"extra_body": {"service_tier": "flex"}},
    ):
        assert identity(**changed) != plain


def test_an_api_tier_reserves_no_gpu() -> None:
    raw = {
        "name": "t",
        "num_gpus": 1,
        "engine": BASE,
        "billing": {"kind": "provisioned", "usd_per_gpu_hour": 1.0},
    }
    with pytest.raises(ValidationError, match="num_gpus"):
        Tier.model_validate(raw)
