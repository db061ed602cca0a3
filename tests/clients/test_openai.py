"""The `openai` package: sync, async, streams, structures, tools, embeddings, files."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from serving import Endpoint

TEXT = "Write in upper case: apple tree"
GREEDY = {"model": "auto", "messages": [{"role": "user", "content": TEXT}]}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Bern", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Fruit(BaseModel):
    fruit: Literal["apple", "pear"]
    ripe: bool


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0) as own:
        yield own


def test_an_answer_says_where_it_is_from_and_what_it_cost(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**GREEDY)
    told = raw.parse()
    assert told.choices[0].message.content == "APPLE TREE"
    assert told.choices[0].finish_reason == "stop"
    assert told.usage
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens
    assert raw.headers["x-nightmill-tier"] == "small"
    assert raw.headers["x-nightmill-source"] in ("generated", "cache_exact")
    assert float(raw.headers["x-nightmill-cost-usd"]) >= 0


def test_many_at_once_and_streams_among_them(endpoint: Endpoint) -> None:
    words = ["apple", "pear", "plum", "fig"]

    async def asked() -> list[str]:
        async with openai.AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.key) as own:

            async def whole(text: str) -> str:
                messages: Any = [{"role": "user", "content": text}]
                told = await own.chat.completions.create(model="small", messages=messages)
                return told.choices[0].message.content or ""

            async def streamed(text: str) -> str:
                messages: Any = [{"role": "user", "content": text}]
                stream = await own.chat.completions.create(
                    model="small", messages=messages, stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            texts = [f"Write in upper case: {word}" for word in words]
            both = [*(whole(text) for text in texts), *(streamed(text) for text in texts)]
            return list(await asyncio.gather(*both))

    assert asyncio.run(asked()) == [word.upper() for word in words] * 2


def test_a_stream_ends_with_its_usage(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options=options))
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == "APPLE TREE"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens > 0


def test_the_stream_helper_puts_an_answer_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**GREEDY) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "APPLE TREE"
    assert kinds >= {"chunk", "content.delta", "content.done"}


def test_a_pydantic_class_comes_back_filled(client: openai.OpenAI) -> None:
    told = client.chat.completions.parse(**GREEDY, response_format=Fruit)
    assert isinstance(told.choices[0].message.parsed, Fruit)
    with client.chat.completions.stream(**GREEDY, response_format=Fruit) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == told.choices[0].message.parsed


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_taken(
    endpoint: Endpoint, client: openai.OpenAI, stream: bool
) -> None:
    asked = {**GREEDY, "tools": [TOOL], "tool_choice": "required", "max_tokens": 200}
    asked |= {"logit_bias": endpoint.no_spaces(), "parallel_tool_calls": False}
    if stream:
        with client.chat.completions.stream(**asked) as events:
            message: Any = events.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**asked).choices[0].message
    (call, *_) = message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Bern", "Rome")
    turns: Any = [
        *GREEDY["messages"],
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        {"role": "user", "content": TEXT},
    ]
    after = client.chat.completions.create(model="small", messages=turns, max_tokens=20)
    assert after.choices[0].finish_reason in ("stop", "length")


def test_choices_logprobs_stops_and_seeds(client: openai.OpenAI) -> None:
    several: Any = {**GREEDY, "n": 2, "temperature": 1.5, "seed": 3, "max_tokens": 8}
    one, again = (client.chat.completions.create(**several) for _ in range(2))
    assert [c.message.content for c in one.choices] == [c.message.content for c in again.choices]
    told = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2, stop=["TREE"])
    assert told.choices[0].message.content == "APPLE "
    assert told.choices[0].logprobs
    assert told.choices[0].logprobs.content
    assert len(told.choices[0].logprobs.content[0].top_logprobs) == 2


def test_completions_and_their_streams(client: openai.OpenAI) -> None:
    told = client.completions.create(model="small", prompt=[TEXT, TEXT], logprobs=1)
    assert [choice.text for choice in told.choices] == ["APPLE TREE"] * 2
    assert told.choices[0].logprobs
    chunks = client.completions.create(model="small", prompt=TEXT, stream=True)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == "APPLE TREE"


@pytest.mark.parametrize("encoding", [openai.omit, "float"])
def test_embeddings(client: openai.OpenAI, encoding: Any) -> None:
    texts = ["apple tree", "apple tree", "42"]
    told = client.embeddings.create(model="vectors", input=texts, encoding_format=encoding)
    same, again, other = (item.embedding for item in told.data)
    assert same == pytest.approx(again, abs=1e-3)
    assert sum(x * x for x in same) == pytest.approx(1, abs=1e-2)
    assert other != pytest.approx(same, abs=1e-3)


def test_models_and_files(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["auto", "small", "vectors"]
    assert client.models.retrieve("small").id == "small"
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": GREEDY}
    text = json.dumps(line).encode() + b"\n"
    file = client.files.create(file=("lines.jsonl", text), purpose="batch")
    assert client.files.content(file.id).content == text
    assert file.id in {f.id for f in client.files.list()}
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": "gpt-none"}, openai.NotFoundError),
        ({"temperature": 9}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
        ({"max_tokens": 10**6}, openai.BadRequestError),
        ({"model": "vectors"}, openai.BadRequestError),
        ({"model": "vectors", "stream": True}, openai.BadRequestError),
    ],
)
def test_errors_are_the_clients_own(client: openai.OpenAI, change: Any, error: Any) -> None:
    with pytest.raises(error):
        client.chat.completions.create(**{**GREEDY, **change})


def test_a_wrong_key_is_an_authentication_error(endpoint: Endpoint) -> None:
    with (
        openai.OpenAI(base_url=endpoint.url, api_key="nm-none", max_retries=0) as own,
        pytest.raises(openai.AuthenticationError),
    ):
        own.models.list()
