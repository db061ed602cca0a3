"""The two ways of asking: OpenAI's, which most servers speak, and Anthropic's own."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

from actors.engine import Answer
from pipelines.api_tier import API
from pipelines.cost import Usage
from pipelines.errors import RowProblem
from pipelines.requests import Request, text_of

_OPENAI_FIELDS = {
    "max_tokens", "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty",
    "n", "logprobs", "top_logprobs", "logit_bias", "response_format", "tools", "tool_choice",
    "parallel_tool_calls",
}  # fmt: skip
_COMPLETIONS_FIELDS = {
    "max_tokens", "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty",
    "n", "logprobs", "logit_bias",
}  # fmt: skip
_OURS = {"lora", "dimensions", "encoding_format"}
"""No server of text takes these."""
_ANTHROPIC_FIELDS = {"max_tokens", "temperature", "top_p", "top_k", "stop", "tools", "tool_choice"}
_ANTHROPIC_MAX_TOKENS = 4096
"""Its API demands a limit."""
_STOPS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length",
          "tool_use": "tool_calls", "refusal": "content_filter"}  # fmt: skip


class Malformed(Exception):
    """An answer that is none: it lacks what every answer has."""


class Dialect(Protocol):
    """How one API is asked and understood.

    `refuse` and `body` take the row's fields with the run's defaults mixed in.
    """

    path: str

    def refuse(self, request: Request, fields: Mapping[str, Any]) -> RowProblem | None: ...

    def body(self, request: Request, fields: Mapping[str, Any]) -> dict[str, Any]: ...

    def answer(self, told: Any) -> Answer:
        """Raises: Malformed"""
        ...


def build_dialect(config: API) -> Dialect:
    if config.dialect == "anthropic":
        return AnthropicMessages(config)
    return OpenAIChat(config) if config.endpoint == "chat" else OpenAICompletions(config)


def _unsupported(fields: Mapping[str, Any], known: set[str], server: str) -> RowProblem | None:
    asked = sorted(n for n, v in fields.items() if n not in known and v not in (None, False))
    return RowProblem("unsupported", f"{asked[0]}: {server} does not take it") if asked else None


class OpenAIChat:
    """`/chat/completions`."""

    path = "/chat/completions"
    _fields = _OPENAI_FIELDS

    def __init__(self, config: API) -> None:
        self._config = config

    def refuse(self, request: Request, fields: Mapping[str, Any]) -> RowProblem | None:
        known = set(fields) - _OURS if self._config.vllm_fields else self._fields
        return _unsupported(fields, known, "the server, as far as it is known,")

    def body(self, request: Request, fields: Mapping[str, Any]) -> dict[str, Any]:
        asked = {name: value for name, value in fields.items() if value is not None}
        if "max_tokens" in asked:
            asked[self._config.max_tokens_field] = asked.pop("max_tokens")
        return {
            "model": self._config.model,
            **self._text(request),
            **self._logprobs(asked),
            **self._config.extra_body,
        }

    def answer(self, told: Any) -> Answer:
        try:
            choices = [self._choice(choice) for choice in told["choices"]]
            first, usage = choices[0], _openai_usage(told["usage"])
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise Malformed(f"an answer without {error}") from error
        message = first["message"]
        calls = message.get("tool_calls") or None
        if message["content"] is None and not calls and not message.get("refusal"):
            raise Malformed("an answer without content")
        logprobs = first.get("logprobs")
        return Answer(
            message["content"] or message.get("refusal") or "",
            first["finish_reason"],
            usage,
            reasoning=message.get("reasoning_content") or message.get("reasoning") or None,
            tool_calls=json.dumps(calls) if calls else None,
            choices=json.dumps(choices) if len(choices) > 1 else None,
            token_logprobs=json.dumps(logprobs) if logprobs else None,
        )

    def _text(self, request: Request) -> dict[str, Any]:
        return {"messages": request.messages}

    def _logprobs(self, fields: dict[str, Any]) -> dict[str, Any]:
        """vLLM's number of logprobs in OpenAI's two fields."""
        asked = fields.get("logprobs")
        if isinstance(asked, bool) or asked is None:
            return fields
        return {**fields, "logprobs": True, "top_logprobs": fields.get("top_logprobs", asked)}

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        choice["message"]["content"] = choice["message"].get("content")
        _ = choice["finish_reason"]
        return choice


class OpenAICompletions(OpenAIChat):
    """`/completions`, for models without a chat template: a row is one user message."""

    path = "/completions"
    _fields = _COMPLETIONS_FIELDS

    def refuse(self, request: Request, fields: Mapping[str, Any]) -> RowProblem | None:
        if len(request.messages) != 1 or request.messages[0]["role"] != "user":
            return RowProblem("unsupported", "messages: the completions endpoint takes one prompt")
        return super().refuse(request, fields)

    def _text(self, request: Request) -> dict[str, Any]:
        return {"prompt": text_of(request.messages[0]["content"])}

    def _logprobs(self, fields: dict[str, Any]) -> dict[str, Any]:
        asked = fields.get("logprobs")
        if isinstance(asked, bool):
            return {**fields, "logprobs": fields.pop("top_logprobs", 0) if asked else None}
        return fields

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice["text"]}
        return {**choice, "message": message, "finish_reason": choice["finish_reason"]}


class AnthropicMessages:
    """`/v1/messages`."""

    path = "/v1/messages"

    def __init__(self, config: API) -> None:
        self._config = config

    def refuse(self, request: Request, fields: Mapping[str, Any]) -> RowProblem | None:
        plain = {k: v for k, v in fields.items() if v != {"type": "text"} and (k, v) != ("n", 1)}
        if any(turn["role"] == "tool" for turn in request.messages):
            return RowProblem("unsupported", "messages: tool results are not translated")
        return _unsupported(plain, _ANTHROPIC_FIELDS, "Anthropic's API")

    def body(self, request: Request, fields: Mapping[str, Any]) -> dict[str, Any]:
        systems = [t for t in request.messages if t["role"] in ("system", "developer")]
        turns = [t for t in request.messages if t["role"] in ("user", "assistant")]
        body: dict[str, Any] = {
            "model": self._config.model,
            "max_tokens": fields.get("max_tokens") or _ANTHROPIC_MAX_TOKENS,
            "messages": [{"role": t["role"], "content": text_of(t["content"])} for t in turns],
        }
        if systems:
            body["system"] = "\n".join(text_of(turn["content"]) for turn in systems)
        for name in ("temperature", "top_p", "top_k"):
            if fields.get(name) is not None:
                body[name] = fields[name]
        if (stop := fields.get("stop")) is not None:
            body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
        if tools := fields.get("tools"):
            body["tools"] = [_anthropic_tool(tool["function"]) for tool in tools]
            body["tool_choice"] = _anthropic_choice(fields.get("tool_choice") or "auto")
        return {**body, **self._config.extra_body}

    def answer(self, told: Any) -> Answer:
        try:
            blocks = told["content"]
            text = "".join(block["text"] for block in blocks if block["type"] == "text")
            calls = [_tool_call(block) for block in blocks if block["type"] == "tool_use"]
            thought = "".join(b["thinking"] for b in blocks if b["type"] == "thinking")
            reason, usage = told["stop_reason"], _anthropic_usage(told["usage"])
        except (KeyError, TypeError, ValueError) as error:
            raise Malformed(f"an answer without {error}") from error
        return Answer(
            text,
            _STOPS.get(reason, reason),
            usage,
            reasoning=thought or None,
            tool_calls=json.dumps(calls) if calls else None,
        )


def _openai_usage(told: Any) -> Usage:
    if not isinstance(told, dict):
        raise ValueError("usable token counts: no usage")
    details = told.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or 0
    return _checked(told["prompt_tokens"], cached, told.get("completion_tokens", 0))


def _anthropic_usage(told: Any) -> Usage:
    """Its `input_tokens` leave out what was read from the prefix cache, or written to it."""
    if not isinstance(told, dict):
        raise ValueError("usable token counts: no usage")
    cached = told.get("cache_read_input_tokens") or 0
    written = told.get("cache_creation_input_tokens") or 0
    return _checked(told["input_tokens"] + cached + written, cached, told["output_tokens"])


def _checked(prompt: Any, cached: Any, completion: Any) -> Usage:
    """Raises: ValueError for what cannot be a count: a wrong bill is worse than a second try."""
    counts = (prompt, cached, completion)
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in counts):
        raise ValueError("usable token counts: usage is wrong")
    if cached > prompt or prompt == 0:
        raise ValueError("possible token counts: usage is wrong")
    return Usage(prompt, cached, completion)


def _anthropic_tool(function: Mapping[str, Any]) -> dict[str, Any]:
    schema = function.get("parameters") or {"type": "object"}
    described = {"description": function["description"]} if function.get("description") else {}
    return {"name": function["name"], **described, "input_schema": schema}


def _anthropic_choice(choice: Any) -> dict[str, Any]:
    if isinstance(choice, dict):
        return {"type": "tool", "name": choice["function"]["name"]}
    return {"type": {"required": "any"}.get(choice, choice)}


def _tool_call(block: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(block["input"])
    function = {"name": block["name"], "arguments": arguments}
    return {"id": block["id"], "type": "function", "function": function}
