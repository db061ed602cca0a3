"""OpenAI-batch results: the same output and error files that the hosted service gives back."""

import json
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import pyarrow as pa

from pipelines.schema import BEYOND_TEXT
from pipelines.storage import Directory

OUTPUT_FILE = "batch_output.jsonl"
ERROR_FILE = "batch_errors.jsonl"
_COLUMNS = [
    "custom_id", "url", "row_id", "request_key", "status", "response", "finish_reason", "model",
    "prompt_tokens", "cached_prompt_tokens", "completion_tokens", "error_kind", "error",
    *BEYOND_TEXT.names,
]  # fmt: skip


def write_openai_batch(directory: Directory) -> None:
    """Write every committed row as one line of the output or the error file."""
    with (
        directory.fs.open(directory.path(OUTPUT_FILE), "wb") as output,
        directory.fs.open(directory.path(ERROR_FILE), "wb") as errors,
    ):
        for name in directory.parts("rows"):
            for row in _rows(directory.read_table(name)):
                line = json.dumps(batch_line(row), ensure_ascii=False).encode() + b"\n"
                (output if row["status"] == "ok" else errors).write(line)


def batch_line(row: dict[str, Any]) -> dict[str, Any]:
    """One row in OpenAI's batch result format."""
    line: dict[str, Any] = {
        "id": f"batch_req_{row['row_id']}",
        "custom_id": row["custom_id"],
        "response": None,
        "error": None,
    }
    if row["status"] != "ok":
        line["error"] = {"code": row["error_kind"], "message": row["error"]}
        return line
    line["response"] = {
        "status_code": 200,
        "request_id": row["request_key"],
        "body": answer_body(row),
    }
    return line


def answer_body(row: Mapping[str, Any]) -> dict[str, Any]:
    """An answered row as the endpoint `url` of OpenAI's API would give it back."""
    if row["embedding"] is not None:
        return _embedding_body(row)
    choices = json.loads(row["choices"]) if row["choices"] else [_choice(row)]
    if row.get("url") == "/v1/completions":
        return _text_body(row, "cmpl", "text_completion", [_as_text(c) for c in choices])
    return _text_body(row, "chatcmpl", "chat.completion", choices)


def _text_body(
    row: Mapping[str, Any], prefix: str, kind: str, choices: list[dict[str, Any]]
) -> dict[str, Any]:
    prompt, completion = row["prompt_tokens"], row["completion_tokens"]
    return {
        "id": f"{prefix}-{row['row_id']}",
        "object": kind,
        "model": row["model"],
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": row["cached_prompt_tokens"]},
        },
    }


def _choice(row: Mapping[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": row["response"]}
    if row["reasoning"] is not None:
        message["reasoning_content"] = row["reasoning"]
    if row["tool_calls"]:
        message["tool_calls"] = json.loads(row["tool_calls"])
    choice = {"index": 0, "message": message, "finish_reason": row["finish_reason"]}
    if row["token_logprobs"]:
        choice["logprobs"] = json.loads(row["token_logprobs"])
    return choice


def _as_text(choice: dict[str, Any]) -> dict[str, Any]:
    """A chat's choice as one of a completion."""
    told = {
        "index": choice["index"],
        "text": choice["message"].get("content"),
        "finish_reason": choice["finish_reason"],
    }
    return {**told, "logprobs": text_logprobs(choice.get("logprobs"))}


def text_logprobs(chat: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Logprobs of a chat's choice in the older format of completions."""
    if chat is None:
        return None
    content = chat["content"]
    ends = list(accumulate((len(entry["token"]) for entry in content), initial=0))
    return {
        "tokens": [entry["token"] for entry in content],
        "token_logprobs": [entry["logprob"] for entry in content],
        "top_logprobs": [
            {top["token"]: top["logprob"] for top in entry.get("top_logprobs", ())}
            for entry in content
        ],
        "text_offset": ends[:-1],
    }


def _embedding_body(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "object": "list",
        "model": row["model"],
        "data": [{"object": "embedding", "index": 0, "embedding": row["embedding"]}],
        "usage": {"prompt_tokens": row["prompt_tokens"], "total_tokens": row["prompt_tokens"]},
    }


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    # Lines need not say their url.
    columns = [name for name in _COLUMNS if name in table.column_names]
    rows: list[dict[str, Any]] = table.select(columns).to_pylist()
    return rows
