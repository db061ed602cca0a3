"""`openai-agents`: an agent that calls a tool and goes on with its result, whole and streamed."""

import asyncio
from typing import Any, Literal

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    RunConfig,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel
from serving import Endpoint

set_tracing_disabled(True)
ALONE = RunConfig(tracing_disabled=True)
TEXT = "Write in upper case: apple tree"


class Fruit(BaseModel):
    fruit: Literal["apple", "pear"]
    ripe: bool


def agent_of(endpoint: Endpoint, **more: Any) -> Agent[None]:
    client = openai.AsyncOpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0)
    return Agent(
        name="clerk", model=OpenAIChatCompletionsModel("small", openai_client=client), **more
    )


def test_an_agent_answers(endpoint: Endpoint) -> None:
    result = asyncio.run(Runner.run(agent_of(endpoint), TEXT, run_config=ALONE))
    assert result.final_output == "APPLE TREE"
    assert result.context_wrapper.usage.output_tokens > 0


def test_an_agent_gives_a_structure(endpoint: Endpoint) -> None:
    agent = agent_of(endpoint, output_type=Fruit)
    result = asyncio.run(Runner.run(agent, TEXT, run_config=ALONE))
    assert isinstance(result.final_output, Fruit)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_calls_a_tool_and_goes_on_with_its_result(
    endpoint: Endpoint, streamed: bool
) -> None:
    asked: list[str] = []

    @function_tool
    def weather(city: Literal["Bern", "Rome"]) -> str:
        """The weather of a city."""
        asked.append(city)
        return "sunny"

    # Whatever this small model would rather say, it must call the tool; after that it is free.
    settings = ModelSettings(
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
        extra_body={"logit_bias": endpoint.no_spaces()},
    )
    agent = agent_of(endpoint, instructions="Be brief.", tools=[weather], model_settings=settings)

    async def done() -> Any:
        if not streamed:
            return await Runner.run(agent, TEXT, run_config=ALONE)
        result = Runner.run_streamed(agent, TEXT, run_config=ALONE)
        assert [event async for event in result.stream_events()]
        return result

    result = asyncio.run(done())
    assert asked
    assert set(asked) <= {"Bern", "Rome"}
    kinds = [item.type for item in result.new_items]
    assert kinds[:2] == ["tool_call_item", "tool_call_output_item"]
    assert kinds[-1] == "message_output_item"
