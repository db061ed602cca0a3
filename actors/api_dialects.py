"""What a row asks for in a provider's words, and what the provider's answer says in ours."""

from collections.abc import Mapping
from typing import Any, Protocol

from actors.api_anthropic import AnthropicMessages
from actors.api_openai import OpenAIChat, OpenAICompletions
from actors.api_reading import Body
from actors.engine import Answer
from pipelines.api_tier import API
from pipelines.errors import RowProblem
from pipelines.requests import Request


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
