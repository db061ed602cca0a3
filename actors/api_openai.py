"""OpenAI's language, which most servers speak: chat completions and completions."""

from collections.abc import Mapping
from typing import Any

from actors.api_reading import (
    NEVER,
    Body,
    Unusable,
    as_json,
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


class OpenAIChat:
    """Chat completions. Fields that only some servers know are passed on: a server that does not
    know one says so."""

    path = "/chat/completions"

    def __init__(self, config: API) -> None:
        self._config = config

    def refuse(self, request: Request, fields: Mapping[str, Any]) -> RowProblem | None:
        return unsupported(fields, NEVER, "an API tier")

    def body(self, request: Request, fields: Mapping[str, Any]) -> Body:
        return {
            "model": self._config.model,
            **self._asked(request),
            **self._fields(fields),
            **self._config.extra_body,
        }

    def _asked(self, request: Request) -> Body:
        return {"messages": request.messages}

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
        choices = listed(told, "choices", usage)
        read = [_choice(choice, usage) for choice in choices]
        first = read[0]["message"]
        return Answer(
            # A refusal is what the model said.
            response=_text(first, "content") or _text(first, "refusal") or _text(first, "content"),
            finish_reason=read[0]["finish_reason"],
            usage=usage,
            reasoning=_text(first, "reasoning_content") or _text(first, "reasoning"),
            tool_calls=as_json(first.get("tool_calls")),
            choices=as_json(read) if len(read) > 1 else None,
            token_logprobs=as_json(read[0].get("logprobs")),
        )


class OpenAICompletions(OpenAIChat):
    """Completions: one prompt, continued as it stands, without a chat template."""

    path = "/completions"

    def refuse(self, request: Request, fields: Mapping[str, Any]) -> RowProblem | None:
        asked = (*NEVER, "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs")
        if problem := unsupported(fields, asked, "the completions endpoint"):
            return problem
        if len(request.messages) != 1:
            return RowProblem(
                "unsupported", "messages: the completions endpoint takes one prompt, no turns"
            )
        return None

    def _asked(self, request: Request) -> Body:
        return {"prompt": request.last_user_text}

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
        choices = listed(told, "choices", usage)
        if any(not isinstance(c, dict) or not isinstance(c.get("text"), str) for c in choices):
            raise Unusable("a choice without text", usage)
        return Answer(
            response=choices[0]["text"],
            finish_reason=choices[0].get("finish_reason"),
            usage=usage,
            choices=as_json(choices) if len(choices) > 1 else None,
            token_logprobs=as_json(choices[0].get("logprobs")),
        )


def openai_usage(told: Any) -> Usage:
    """Raises: Unusable if it is missing or cannot be: an answer is never silently free."""
    given = told.get("usage") if isinstance(told, dict) else None
    if not isinstance(given, dict):
        raise Unusable("it tells no usage")
    details = given.get("prompt_tokens_details") or {}
    prompt = token_count(given, "prompt_tokens")
    cached = (
        token_count(details, "cached_tokens") if details.get("cached_tokens") is not None else 0
    )
    return checked(Usage(prompt, cached, token_count(given, "completion_tokens")))


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
