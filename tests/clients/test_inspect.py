"""`inspect-ai`: an evaluation of a local data set, with and without a tool."""

import json
from pathlib import Path
from typing import Any, Literal

from inspect_ai import Task, eval
from inspect_ai.dataset import json_dataset
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import exact
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, ToolFunction, tool
from serving import Endpoint

WORDS = ("apple tree", "plum", "fig leaf")


def model(endpoint: Endpoint, **config: Any) -> Any:
    # Each evaluation has an event loop of its own, and a client belongs to one.
    return get_model(
        "openai-api/nightmill/small",
        base_url=endpoint.url,
        api_key=endpoint.key,
        memoize=False,
        config=GenerateConfig(**{"max_tokens": 64, **config}),
    )


def samples(folder: Path) -> Any:
    path = folder / "samples.jsonl"
    lines = [{"input": f"Write in upper case: {w}", "target": w.upper()} for w in WORDS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return json_dataset(str(path))


def test_an_evaluation_scores(endpoint: Endpoint, tmp_path: Path) -> None:
    task = Task(dataset=samples(tmp_path), solver=generate(), scorer=exact())
    (log,) = eval(task, model=model(endpoint), log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    assert log.results
    assert log.results.scores[0].metrics["mean"].value == 1.0
    usage = log.stats.model_usage["openai-api/nightmill/small"]
    assert usage.output_tokens > 0


@tool
def weather() -> Tool:
    async def execute(city: Literal["Bern", "Rome"]) -> str:
        """The weather of a city.

        Args:
            city: its name.
        """
        return f"{city}: sunny"

    return execute


def test_a_tool_is_called_and_the_task_runs_to_its_end(endpoint: Endpoint, tmp_path: Path) -> None:
    bias = {int(token): float(value) for token, value in endpoint.no_spaces().items()}
    config = {"logit_bias": bias, "parallel_tool_calls": False, "max_tokens": 200}
    tools = use_tools(weather(), tool_choice=ToolFunction("weather"))
    task = Task(dataset=samples(tmp_path), solver=[tools, generate()])
    (log,) = eval(task, model=model(endpoint, **config), log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    assert log.samples
    for sample in log.samples:
        roles = [message.role for message in sample.messages]
        assert roles[:3] == ["user", "assistant", "tool"]
        assert roles[-1] == "assistant"
