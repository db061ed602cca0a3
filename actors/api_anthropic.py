"""Anthropic's language: its messages API."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.api_reading import (
    NEVER,
    Body,
    Unusable,
    as_json,
    asks,
    checked,
    listed,
    token_count,
    unsupported,
)
from actors.engine import Answer
from pipelines.api_tier import API
from pipelines.cost import Usage
from pipelines.errors import RowProblem
from pipelines.requests import Request

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "length",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""In OpenAI's words. A paused turn would have to be continued: what is there is not all."""
_CANNOT = (
    *NEVER, "min_tokens", "min_p", "stop_token_ids", "ignore_eos", "bad_words", "logit_bias",
    "skip_special_tokens", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logprobs", "top_logprobs", "structured_outputs", "chat_template_kwargs",
)  # fmt: skip


class AnthropicMessages:
    """Anthropic's messages API."""

    path = "/v1/messages"

    def __init__(self, config: API) -> None:
        self._config = config

    def refuse(self, request: Request, fields: Mapping[str, Any]) -> RowProblem | None:
        if problem := unsupported(fields, _CANNOT, "Anthropic's API"):
            return problem
        if (fields.get("n") or 1) > 1:
            return RowProblem("unsupported", "n: Anthropic's API gives one answer")
        if (temperature := fields.get("temperature")) is not None and temperature > 1:
            return RowProblem(
                "invalid_request", f"temperature: is {temperature}; Anthropic's API takes 0 to 1"
            )
        form = fields.get("response_format")
        if asks(form) and not _schema(form):
            return RowProblem(
                "unsupported", "response_format: Anthropic's API takes a json_schema only"
            )
        return None

    def body(self, request: Request, fields: Mapping[str, Any]) -> Body:
        system, turns = _turns(request.messages)
        body: Body = {
            "model": self._config.model,
            "max_tokens": fields.get("max_tokens") or self._config.default_max_tokens,
            "messages": turns,
        }
        if system:
            body["system"] = system
        body |= {n: fields[n] for n in ("temperature", "top_p") if fields.get(n) is not None}
        # vLLM's way to say no limit.
        if (fields.get("top_k") or 0) > 0:
            body["top_k"] = fields["top_k"]
        if stop := fields.get("stop"):
            body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
        if schema := _schema(fields.get("response_format")):
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        return {**body, **_tools(fields), **self._config.extra_body}

    def read(self, told: Any) -> Answer:
        usage = anthropic_usage(told)
        parts = listed(told, "content", usage, may_be_empty=told.get("stop_reason") is not None)
        if any(not isinstance(part, dict) for part in parts):
            raise Unusable("a content part that is no object", usage)
        texts = [part.get("text", "") for part in parts if part.get("type") == "text"]
        thoughts = [part.get("thinking", "") for part in parts if part.get("type") == "thinking"]
        calls = [_openai_call(part) for part in parts if part.get("type") == "tool_use"]
        reason = told.get("stop_reason")
        return Answer(
            response="".join(texts) if texts or not calls else None,
            finish_reason=_REASONS.get(reason, reason),
            usage=usage,
            reasoning="".join(thoughts) or None,
            tool_calls=as_json(calls),
        )


def anthropic_usage(told: Any) -> Usage:
    """As `openai_usage`. Anthropic counts what its cache read and wrote beside `input_tokens`."""
    given = told.get("usage") if isinstance(told, dict) else None
    if not isinstance(given, dict):
        raise Unusable("it tells no usage")
    names = ("cache_read_input_tokens", "cache_creation_input_tokens")
    read, written = (token_count(given, n) if given.get(n) is not None else 0 for n in names)
    prompt = token_count(given, "input_tokens") + read + written
    return checked(Usage(prompt, read, token_count(given, "output_tokens")))


@dataclass
class _Turn:
    role: str
    parts: list[dict[str, Any]]


def _turns(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Body]]:
    """The system's text, and turns: consecutive ones of a role are one, as tool results are."""
    system = [str(m["content"]) for m in messages if m["role"] in ("system", "developer")]
    turns: list[_Turn] = []
    for message in messages:
        if message["role"] in ("system", "developer"):
            continue
        role = "assistant" if message["role"] == "assistant" else "user"
        if not turns or turns[-1].role != role:
            turns.append(_Turn(role, []))
        turns[-1].parts += _parts(message)
    return "\n\n".join(system), [{"role": t.role, "content": _simplest(t.parts)} for t in turns]


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    text = message.get("content")
    if message["role"] == "tool":
        result = {"tool_use_id": message.get("tool_call_id"), "content": text or ""}
        return [{"type": "tool_result", **result}]
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    for call in message.get("tool_calls") or ():
        named = {"id": call.get("id"), "name": call["function"]["name"]}
        parts.append({"type": "tool_use", **named, "input": _arguments(call)})
    return parts


def _arguments(call: Mapping[str, Any]) -> Any:
    try:
        return json.loads(call["function"].get("arguments") or "{}")
    except ValueError:
        return {}


def _simplest(parts: list[dict[str, Any]]) -> Any:
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _tools(fields: Mapping[str, Any]) -> Body:
    if not (tools := fields.get("tools")):
        return {}
    body: Body = {"tools": [_tool(tool["function"]) for tool in tools]}
    choice = fields.get("tool_choice")
    asked: dict[str, Any] = {"type": "auto"}
    if isinstance(choice, dict):
        asked = {"type": "tool", "name": choice.get("function", {}).get("name")}
    elif choice is not None:
        asked = {"type": {"required": "any"}.get(choice, choice)}
    alone = fields.get("parallel_tool_calls") is False and asked["type"] != "none"
    if alone:
        asked["disable_parallel_tool_use"] = True
    return {**body, "tool_choice": asked} if choice is not None or alone else body


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    tool = {
        "name": function["name"],
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    return {**tool, "description": function["description"]} if "description" in function else tool


def _schema(form: Any) -> dict[str, Any] | None:
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return None
    schema: dict[str, Any] | None = (form.get("json_schema") or {}).get("schema")
    return schema


def _openai_call(part: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(part.get("input") or {}, ensure_ascii=False)
    function = {"name": part.get("name"), "arguments": arguments}
    return {"id": part.get("id"), "type": "function", "function": function}
