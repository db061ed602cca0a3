"""What rows look like in OpenAI's batch result format."""

import json
from typing import Any

from pipelines.openai_batch import batch_line
from pipelines.schema import BEYOND_TEXT, RESULT


def body(**columns: Any) -> dict[str, Any]:
    row = {
        **dict.fromkeys(RESULT.names), "custom_id": "a", "row_id": "a", "status": "ok",
        "prompt_tokens": 3, "cached_prompt_tokens": 0, "completion_tokens": 2, **columns,
    }  # fmt: skip
    answered: dict[str, Any] = batch_line(row)["response"]["body"]
    return answered


def test_calls_thoughts_and_logprobs_stand_in_the_choice() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    logprobs = {"content": []}
    columns = {
        "tool_calls": json.dumps([call]), "reasoning": "hm", "finish_reason": "tool_calls",
        "token_logprobs": json.dumps(logprobs),
    }  # fmt: skip
    (choice,) = body(**columns)["choices"]
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call],
        },
        "finish_reason": "tool_calls",
        "logprobs": logprobs,
    }  # fmt: skip


def test_all_choices_come_out() -> None:
    choices = [{"index": i, "message": {"content": str(i)}} for i in range(3)]
    assert body(choices=json.dumps(choices), response="0")["choices"] == choices


def test_an_embedding_is_a_list_of_one() -> None:
    answered = body(embedding=[0.5, 1.0], completion_tokens=0)
    assert answered["data"] == [{"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}]
    assert answered["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_a_plain_answer_shows_nothing_else() -> None:
    answered = body(response="x", finish_reason="stop")
    assert answered["choices"][0]["message"] == {"role": "assistant", "content": "x"}
    assert not set(answered) & set(BEYOND_TEXT.names) - {"choices"}


def test_a_completion_is_text() -> None:
    answered = body(url="/v1/completions", response="x", finish_reason="stop")
    assert answered["object"] == "text_completion"
    assert answered["choices"] == [
        {"index": 0, "text": "x", "finish_reason": "stop", "logprobs": None}
    ]
    assert answered["usage"]["total_tokens"] == 5
