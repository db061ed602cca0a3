"""A request as the tokens that a vLLM engine reads, told with the model's tokenizer alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.prompt_tokens import PromptTokens
from pipelines.requests import Request


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt.

    Attributes:
        second_at: where the second text of a pair begins, for models that are told.
    """

    tokens: list[int]
    second_at: int | None = None


class Prompts:
    """Args:
    tokenizer: as `transformers` loads it.
    task: of the tier.
    use_sep_token: whether a token parts the texts of a pair.
    """

    def __init__(self, tokenizer: Any, task: str, use_sep_token: bool) -> None:
        self._tokenizer, self._task = tokenizer, task
        self._use_sep_token = use_sep_token
        self._tokens = PromptTokens(tokenizer)

    def read(self, request: Request, fields: Mapping[str, Any]) -> Prompt:
        """Raises whatever the chat template raises.

        Args:
            fields: the request's, and the defaults of those that it leaves out.
        """
        texts = [message["content"] for message in request.messages if "content" in message]
        if self._task == "score":
            return self._pair(*texts)
        if self._task != "generate":
            return Prompt(self._tokenizer(texts[0])["input_ids"])
        messages = [_with_parsed_arguments(message) for message in request.messages]
        template = {"tools": fields.get("tools"), **fields.get("chat_template_kwargs", {})}
        return Prompt(self._tokens(messages, request.cache_salt, **template))

    def _pair(self, query: str, document: str) -> Prompt:
        """As vLLM's own scoring does it."""
        if not self._use_sep_token:
            return Prompt(self._tokenizer(query + document)["input_ids"])
        encoded = self._tokenizer(text=query, text_pair=document)
        types = encoded.get("token_type_ids")
        return Prompt(encoded["input_ids"], types.index(1) if types and 1 in types else None)


def _with_parsed_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Templates expect the arguments of earlier calls as objects, OpenAI gives JSON text."""
    if "tool_calls" not in message:
        return message
    calls = json.loads(json.dumps(message["tool_calls"]))
    for call in calls:
        if isinstance(call["function"].get("arguments"), str):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"] or "{}")
    return {**message, "tool_calls": calls}
