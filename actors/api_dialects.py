"""What a row asks for in a provider's words, and what the provider's answer says in ours."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.engine import Answer
from pipelines.api_tier import API
from pipelines.cost import Usage
from pipelines.errors import RowProblem
from pipelines.requests import Request

Body = dict[str, Any]

_NEVER = ("lora", "dimensions", "encoding_format")


class Unusable(Exception):
    """An answer that is no answer: what is missing or wrong in it.

    Attributes:
        usage: what it cost all the same; None if it does not say.
    """

    def __init__(self, what: str, usage: Usage | None = None) -> None:
        super().__init__(what)
        self.usage = usage


class Dialect(Protocol):
    """One provider's language.

    Attributes:
        path: below the base URL.
    """

    path: str

    def refuse(self, request: Request, fields: Mapping[str, Any]) -> RowProblem | None:
        """What this API cannot be asked for; silently leaving it out would change the answer."""
        ...

    def body(self, request: Request, fields: Mapping[str, Any]) -> Body: ...

    def read(self, told: Any) -> Answer:
        """The answer with its usage. Raises: Unusable."""
        ...


def dialect_of(config: API) -> Dialect:
    if config.dialect == "anthropic":
        return AnthropicMessages(config)
    return OpenAIChat(config) if config.endpoint == "chat" else OpenAICompletions(config)


class OpenAIChat:
    """Chat completions. Fields that only some servers know are passed on: a server that does not
    know one says so."""

    path = "/chat/completions"

    def __init__(self, config: API) -> None:
        self._config = config

    def refuse(self, request: Request, fields: Mapping[str, Any]) -> RowProblem | None:
        return _unsupported(fields, _NEVER, "an API tier")

    def body(self, request: Request, fields: Mapping[str, Any]) -> Body:
        return {
            "model": self._config.model,
            "messages": request.messages,
            **self._fields(fields),
            **self._config.extra_body,
        }

    def _fields(self, fields: Mapping[str, Any]) -> Body:
        given = {name: value for name, value in fields.items() if value is not None}
        if "max_tokens" in given:
            given[self._config.max_tokens_field] = given.pop("max_tokens")
        asked = given.get("logprobs")
        if asked is not None and not isinstance(asked, bool):
            given |= {"logprobs": True, "top_logprobs": asked}
        return given

    def read(self, told: Any) -> Answer:
        usage = openai_usage(told)
        choices = _list(told, "choices", usage)
        read = [_choice(choice, usage) for choice in choices]
        first = read[0]["message"]
        return Answer(
            # A refusal is what the model said.
            response=_text(first, "content") or _text(first, "refusal") or _text(first, "content"),
            finish_reason=read[0]["finish_reason"],
            usage=usage,
            reasoning=_text(first, "reasoning_content") or _text(first, "reasoning"),
            tool_calls=_json(first.get("tool_calls")),
            choices=_json(read) if len(read) > 1 else None,
            token_logprobs=_json(read[0].get("logprobs")),
        )


class OpenAICompletions(OpenAIChat):
    """Completions: one prompt, continued as it stands, without a chat template."""

    path = "/completions"

    def refuse(self, request: Request, fields: Mapping[str, Any]) -> RowProblem | None:
        asked = (*_NEVER, "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs")
        if problem := _unsupported(fields, asked, "the completions endpoint"):
            return problem
        if len(request.messages) != 1:
            return RowProblem(
                "unsupported", "messages: the completions endpoint takes one prompt, no turns"
            )
        return None

    def body(self, request: Request, fields: Mapping[str, Any]) -> Body:
        return {
            "model": self._config.model,
            "prompt": request.last_user_text,
            **self._fields(fields),
            **self._config.extra_body,
        }

    def _fields(self, fields: Mapping[str, Any]) -> Body:
        given = {name: value for name, value in fields.items() if value is not None}
        likeliest = given.pop("top_logprobs", 0)
        if given.get("logprobs") is True:
            given["logprobs"] = likeliest
        elif given.get("logprobs") is False:
            del given["logprobs"]
        return given

    def read(self, told: Any) -> Answer:
        usage = openai_usage(told)
        choices = _list(told, "choices", usage)
        if any(not isinstance(c, dict) or not isinstance(c.get("text"), str) for c in choices):
            raise Unusable("a choice without text", usage)
        return Answer(
            response=choices[0]["text"],
            finish_reason=choices[0].get("finish_reason"),
            usage=usage,
            choices=_json(choices) if len(choices) > 1 else None,
            token_logprobs=_json(choices[0].get("logprobs")),
        )


_ANTHROPIC_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "length",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""In OpenAI's words. A paused turn would have to be continued: what is there is not all."""
_ANTHROPIC_CANNOT = (
    *_NEVER, "min_tokens", "min_p", "stop_token_ids", "ignore_eos", "bad_words", "logit_bias",
    "skip_special_tokens", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logprobs", "top_logprobs", "structured_outputs", "chat_template_kwargs",
)  # fmt: skip


class AnthropicMessages:
    """Anthropic's messages API."""

    path = "/v1/messages"

    def __init__(self, config: API) -> None:
        self._config = config

    def refuse(self, request: Request, fields: Mapping[str, Any]) -> RowProblem | None:
        if problem := _unsupported(fields, _ANTHROPIC_CANNOT, "Anthropic's API"):
            return problem
        if (fields.get("n") or 1) > 1:
            return RowProblem("unsupported", "n: Anthropic's API gives one answer")
        if (temperature := fields.get("temperature")) is not None and temperature > 1:
            return RowProblem(
                "invalid_request", f"temperature: is {temperature}; Anthropic's API takes 0 to 1"
            )
        form = fields.get("response_format")
        if _asks(form) and not _schema(form):
            return RowProblem(
                "unsupported", "response_format: Anthropic's API takes a json_schema only"
            )
        return None

    def body(self, request: Request, fields: Mapping[str, Any]) -> Body:
        system, turns = _anthropic_turns(request.messages)
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
        return {**body, **_anthropic_tools(fields), **self._config.extra_body}

    def read(self, told: Any) -> Answer:
        usage = anthropic_usage(told)
        parts = _list(told, "content", usage, may_be_empty=told.get("stop_reason") is not None)
        if any(not isinstance(part, dict) for part in parts):
            raise Unusable("a content part that is no object", usage)
        texts = [part.get("text", "") for part in parts if part.get("type") == "text"]
        thoughts = [part.get("thinking", "") for part in parts if part.get("type") == "thinking"]
        calls = [_openai_call(part) for part in parts if part.get("type") == "tool_use"]
        reason = told.get("stop_reason")
        return Answer(
            response="".join(texts) if texts or not calls else None,
            finish_reason=_ANTHROPIC_REASONS.get(reason, reason),
            usage=usage,
            reasoning="".join(thoughts) or None,
            tool_calls=_json(calls),
        )


def openai_usage(told: Any) -> Usage:
    """Raises: Unusable if it is missing or cannot be: an answer is never silently free."""
    given = told.get("usage") if isinstance(told, dict) else None
    if not isinstance(given, dict):
        raise Unusable("it tells no usage")
    details = given.get("prompt_tokens_details") or {}
    prompt = _tokens(given, "prompt_tokens")
    cached = _tokens(details, "cached_tokens") if details.get("cached_tokens") is not None else 0
    return _checked(Usage(prompt, cached, _tokens(given, "completion_tokens")))


def anthropic_usage(told: Any) -> Usage:
    """As `openai_usage`. Anthropic counts what its cache read and wrote beside `input_tokens`."""
    given = told.get("usage") if isinstance(told, dict) else None
    if not isinstance(given, dict):
        raise Unusable("it tells no usage")
    names = ("cache_read_input_tokens", "cache_creation_input_tokens")
    read, written = (_tokens(given, n) if given.get(n) is not None else 0 for n in names)
    prompt = _tokens(given, "input_tokens") + read + written
    return _checked(Usage(prompt, read, _tokens(given, "output_tokens")))


def _tokens(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Unusable(f"its usage.{name} is {value!r}")
    return value


def _checked(usage: Usage) -> Usage:
    if usage.prompt_tokens == 0:
        raise Unusable("its usage counts no prompt")
    if usage.cached_prompt_tokens > usage.prompt_tokens:
        raise Unusable("its usage counts more cached prompt tokens than prompt tokens")
    return usage


def _list(told: Any, name: str, usage: Usage, may_be_empty: bool = False) -> list[Any]:
    found = told.get(name)
    if not isinstance(found, list) or not (found or may_be_empty):
        raise Unusable(f"it has no {name}", usage)
    return found


def _choice(choice: Any, usage: Usage) -> dict[str, Any]:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise Unusable("a choice without a message", usage)
    if message.get("content") is None and not (message.get("tool_calls") or message.get("refusal")):
        # A reasoning model may spend all its tokens before it says anything.
        message = {**message, "content": ""}
    return {
        "index": choice.get("index", 0),
        "message": message,
        "finish_reason": choice.get("finish_reason"),
        "logprobs": choice.get("logprobs"),
    }


def _text(message: Mapping[str, Any], name: str) -> str | None:
    value = message.get(name)
    return value if isinstance(value, str) else None


def _asks(value: Any) -> bool:
    """Whether a field says anything; a zero does, as of a seed or of logprobs."""
    return value is not None and value is not False and value not in ("none", {"type": "text"})


def _unsupported(fields: Mapping[str, Any], names: Sequence[str], who: str) -> RowProblem | None:
    for name in names:
        if _asks(fields.get(name)):
            return RowProblem("unsupported", f"{name}: {who} cannot be asked for it")
    return None


@dataclass
class _Turn:
    role: str
    parts: list[dict[str, Any]]


def _anthropic_turns(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Body]]:
    """The system's text, and turns: consecutive ones of a role are one, as tool results are."""
    system = [str(m["content"]) for m in messages if m["role"] in ("system", "developer")]
    turns: list[_Turn] = []
    for message in messages:
        if message["role"] in ("system", "developer"):
            continue
        role = "assistant" if message["role"] == "assistant" else "user"
        if not turns or turns[-1].role != role:
            turns.append(_Turn(role, []))
        turns[-1].parts += _anthropic_parts(message)
    return "\n\n".join(system), [{"role": t.role, "content": _simplest(t.parts)} for t in turns]


def _anthropic_parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
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


def _anthropic_tools(fields: Mapping[str, Any]) -> Body:
    if not (tools := fields.get("tools")):
        return {}
    body: Body = {"tools": [_anthropic_tool(tool["function"]) for tool in tools]}
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


def _anthropic_tool(function: Mapping[str, Any]) -> dict[str, Any]:
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


def _json(value: Any) -> str | None:
    return json.dumps(value, ensure_ascii=False) if value else None
