"""The API engine against a server that fails as it is told."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.api_engine import APIEngine
from actors.engine import Answer
from actors.rate_limits import RateLimits
from pipelines.api_tier import API
from pipelines.errors import RunFailure
from pipelines.rate_limit import Limits
from pipelines.requests import Request
from tests.standin import standin


class LocalLimits:
    """A `RateLimits` in this process, as an engine sees one in an actor."""

    def __init__(self, stated: Limits) -> None:
        self.here = RateLimits(stated)
        self.correct, self.learn, self.pause = self.here.correct, self.here.learn, self.here.pause

    async def reserve(self, tokens: Sequence[int]) -> list[float]:
        return self.here.reserve(tokens)


def asked(text: str = "hello there", **sampling: Any) -> Request:
    return Request([{"role": "user", "content": text}], sampling)


def answers(
    url: str,
    *requests: Request,
    limits: LocalLimits | None = None,
    gives_up: bool = False,
    **config: Any,
) -> list[Answer]:
    raw = {"kind": "api", "base_url": f"{url}/v1", "model": "m", **config}
    engine = APIEngine("api", API.model_validate(raw), {"temperature": 0.0}, limits, gives_up)

    async def all_of_them() -> list[Answer]:
        await engine.start()
        try:
            return await asyncio.gather(*(engine.answer(request) for request in requests))
        finally:
            await engine.stop()

    return asyncio.run(all_of_them())


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "HELLO THERE"),
        ({"endpoint": "completions"}, "HELLO THERE"),
        ({"dialect": "anthropic"}, "HELLO THERE"),
    ],
)
def test_every_dialect_answers_with_its_usage(config: dict[str, Any], text: str) -> None:
    with standin(cached=1) as (state, url):
        (answer,) = answers(url, asked(max_tokens=8), **config)
    assert (answer.response, answer.finish_reason, answer.attempts) == (text, "stop", 1)
    cached = 0 if config.get("endpoint") else 1
    extra = 1 if config.get("dialect") else 0
    assert answer.usage.prompt_tokens == 2 + extra
    assert answer.usage.cached_prompt_tokens >= cached
    assert answer.usage.completion_tokens == 2
    assert state.bodies[0]["model"] == "m"
    assert answer.e2e_s is not None


def test_an_answer_cut_at_its_limit_says_so() -> None:
    with standin() as (_, url):
        cut = answers(url, asked("a b c", max_tokens=2))
        claude = answers(url, asked("a b c", max_tokens=2), dialect="anthropic")
    assert [a.finish_reason for a in (*cut, *claude)] == ["length", "length"]


@pytest.mark.parametrize(
    "fault",
    ["429", "429-after", "500", "503", "529", "reset", "not-json", "no-choices", "no-usage",
     "wrong-usage"],
)  # fmt: skip
def test_what_may_pass_is_tried_again(fault: str) -> None:
    with standin(first=[fault]) as (state, url):
        (answer,) = answers(url, asked())
    assert (answer.response, answer.attempts) == ("HELLO THERE", 2)
    assert sum(state.answered.values()) == 1


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_try_has_a_limit_also_where_bytes_keep_coming(fault: str) -> None:
    with standin(first=[fault], drip_s=0.2) as (_, url):
        (answer,) = answers(url, asked(), timeout_s=0.5)
    assert (answer.response, answer.attempts) == ("HELLO THERE", 2)


@pytest.mark.parametrize(
    ("fault", "kind"), [("400", "invalid_request"), ("context", "context_length")]
)
def test_what_is_wrong_with_the_row_is_never_tried_again(fault: str, kind: str) -> None:
    with standin(first=[fault]) as (state, url):
        (answer,) = answers(url, asked())
    assert answer.problem is not None
    assert (answer.problem.kind, answer.attempts) == (kind, 1)
    assert len(state.arrivals) == 1


@pytest.mark.parametrize(
    ("faults", "config"),
    [
        (["500"] * 3, {"max_tries": 3}),
        (["500"] * 9, {"deadline_s": 0.3}),
        (["quota"], {}),
        (["hang"] * 3, {"timeout_s": 0.1, "max_tries": 2}),
    ],
)
def test_an_outage_is_a_problem_that_another_tier_may_solve(
    faults: list[str], config: dict[str, Any]
) -> None:
    with standin(first=faults) as (_, url):
        (answer,) = answers(url, asked(), **config)
    assert answer.problem is not None
    assert answer.problem.kind == "unavailable"


def test_no_server_at_all_is_an_outage() -> None:
    (answer,) = answers("http://127.0.0.1:9", asked(), max_tries=2)
    assert answer.problem is not None
    assert answer.problem.kind == "unavailable"


def test_an_unreadable_server_is_not_paid_for_ever() -> None:
    with standin(first=["no-usage"] * 20) as (state, url):
        (answer,) = answers(url, asked())
    assert answer.problem is not None
    assert answer.problem.kind == "engine"
    assert "usage" in answer.problem.message
    assert len(state.arrivals) == 3


def test_who_has_a_fallback_leaves_a_dead_server_alone() -> None:
    requests = [asked(f"row {i}") for i in range(20)]
    config = {"max_concurrency": 1, "max_tries": 1, "breaker_failures": 3}
    with standin(first=["500"] * 50) as (state, url):
        found = answers(url, *requests, gives_up=True, **config)
    # One more may have been on its way to the door.
    assert len(state.arrivals) <= 4
    assert {a.problem.kind for a in found if a.problem} == {"unavailable"}


@pytest.mark.parametrize("fault", ["401", "404"])
def test_a_wrong_key_or_model_ends_the_run_and_hides_the_key(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TEST_KEY", "sk-very-secret")
    script = {"key": "another"} if fault == "401" else {"first": [fault]}
    with standin(**script) as (_, url), pytest.raises(RunFailure, match="API_TEST_KEY") as caught:
        answers(url, asked(), api_key_env="API_TEST_KEY")
    assert "sk-very-secret" not in str(caught.value)


def test_a_key_comes_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TEST_KEY", "sk-1")
    (tmp_path / "key").write_text("sk-1\n")
    with standin(key="sk-1") as (_, url):
        for named in ({"api_key_env": "API_TEST_KEY"}, {"api_key_file": str(tmp_path / "key")}):
            assert answers(url, asked(), **named)[0].response == "HELLO THERE"
    with pytest.raises(RunFailure, match="NO_SUCH_KEY is not set"):
        answers("http://127.0.0.1:9", asked(), api_key_env="NO_SUCH_KEY")


def test_a_quoted_key_is_masked_in_a_rows_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TEST_KEY", "scripted")
    with standin(first=["400"]) as (_, url):
        (answer,) = answers(url, asked(), api_key_env="API_TEST_KEY")
    assert answer.problem is not None
    assert "scripted" not in answer.problem.message
    assert "***" in answer.problem.message


def test_requests_keep_a_stated_limit_and_learn_an_unstated_one() -> None:
    requests = [asked(f"row {i}") for i in range(12)]
    stated = LocalLimits(Limits(requests_per_minute=300))
    with standin() as (state, url):
        answers(url, *requests, limits=stated, requests_per_minute=300)
    assert state.arrivals[-1] - state.arrivals[0] >= 1.0
    silent = LocalLimits(Limits())
    with standin(window_requests=240, tells_limits=True) as (_, url):
        answers(url, *requests[:1], limits=silent)
    assert silent.here.reserve([1] * 8)[-1] > 0


def test_never_more_at_once_than_said() -> None:
    with standin(latency_s=0.02) as (state, url):
        answers(url, *(asked(f"row {i}") for i in range(40)), max_concurrency=5)
    assert state.most_at_once == 5


def test_fields_go_out_under_the_servers_names() -> None:
    with standin() as (state, url):
        answers(
            url, asked(max_tokens=5, logprobs=2, stop="x", seed=3),
            max_tokens_field="max_completion_tokens", extra_body={"service_tier": "flex"},
        )  # fmt: skip
        answers(url, asked(stop="x"), dialect="anthropic")
    openai, claude = state.bodies
    assert openai["max_completion_tokens"] == 5
    assert (openai["logprobs"], openai["top_logprobs"], openai["seed"]) == (True, 2, 3)
    assert openai["service_tier"] == "flex"
    assert claude["stop_sequences"] == ["x"]
    assert claude["max_tokens"] > 0


@pytest.mark.parametrize(
    ("config", "request_"),
    [
        ({}, asked(top_k=3)),
        ({}, asked(lora="a")),
        ({"endpoint": "completions"}, Request([{"role": "system", "content": "s"}], {})),
        ({"dialect": "anthropic"}, asked(seed=1)),
        ({"dialect": "anthropic"}, asked(response_format={"type": "json_object"})),
    ],
)
def test_what_a_server_cannot_do_is_told_without_asking_it(
    config: dict[str, Any], request_: Request
) -> None:
    raw = {"kind": "api", "base_url": "http://x/v1", "model": "m", **config}
    problem = APIEngine("api", API.model_validate(raw), {}).refuse(request_)
    assert problem is not None
    assert problem.kind == "unsupported"


def test_vllms_fields_go_to_a_server_that_takes_them() -> None:
    with standin() as (state, url):
        answers(url, asked(top_k=3), vllm_fields=True)
    assert state.bodies[0]["top_k"] == 3


def test_tools_are_asked_for_in_each_dialect() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with standin() as (state, url):
        answers(url, asked(tools=[tool], tool_choice="required"), dialect="anthropic")
        answers(url, asked(tools=[tool]))
    assert state.bodies[0]["tools"] == [{"name": "f", "input_schema": {"type": "object"}}]
    assert state.bodies[0]["tool_choice"] == {"type": "any"}
    assert state.bodies[1]["tools"] == [tool]


def test_several_choices_and_a_message_survive_the_trip() -> None:
    with standin() as (_, url):
        (answer,) = answers(url, asked(n=2, temperature=0.5))
    assert answer.choices is not None
    assert [c["message"]["content"] for c in json.loads(answer.choices)] == ["HELLO THERE"] * 2
