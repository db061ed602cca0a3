"""What the endpoint's OpenAPI document says of bodies: requests, and answers that are our own.

A field is described by the class that checks it wherever there is one.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema

from jobs.online_reading import Envelope
from pipelines.requests import ROLES, Count, SamplingFields

_TEXT = {"type": "string", "pattern": r"\S"}
_OTHERS = {"enum": [role for role in ROLES if role != "user"]}
_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
_PARTS = {"type": "array", "items": _PART}
_CALL = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string"},
                "arguments": {"type": ["string", "object", "null"]},
            },
        },
    },
}
_FROM_USER = {
    "title": "FromUser",
    "required": ["content"],
    "properties": {
        "role": {"const": "user"},
        "content": {"anyOf": [_TEXT, {**_PARTS, "contains": {"properties": {"text": _TEXT}}}]},
    },
}
_FROM_OTHERS = {
    "title": "FromOthers",
    "required": ["content"],
    "properties": {"role": _OTHERS, "content": {"anyOf": [{"type": "string"}, _PARTS]}},
}
_CALLING = {
    "title": "Calling",
    "required": ["tool_calls"],
    "properties": {
        "role": _OTHERS,
        "content": {"type": "null"},
        "tool_calls": {"type": "array", "minItems": 1},
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {"tool_calls": {"type": ["array", "null"], "items": _CALL}},
    "anyOf": [_FROM_USER, _FROM_OTHERS, _CALLING],
}
Text = Annotated[str, WithJsonSchema(_TEXT)]
Message = Annotated[dict[str, Any], WithJsonSchema(_MESSAGE)]


class _Generating(Envelope, SamplingFields):
    model_config = SamplingFields.model_config

    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None


class ChatBody(_Generating):
    """Asks for the next turn of a conversation."""

    messages: Annotated[list[Message], Field(min_length=1)]


class CompletionBody(_Generating):
    """Asks for an answer to each of some texts."""

    prompt: Text | Annotated[list[Text], Field(min_length=1)]
    echo: Literal[False] | None = None


class EmbeddingBody(BaseModel):
    """Asks for the vector of each of some texts."""

    model_config = SamplingFields.model_config

    input: Text | Annotated[list[Text], Field(min_length=1)]
    model: str | None = None
    dimensions: Annotated[Count, Field(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    lora: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    priority: Count | None = None


class Error(BaseModel):
    """What is wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every response that is no success."""

    error: Error


class Health(BaseModel):
    """The process that was asked lives."""

    status: Literal["ok"]


class Ready(BaseModel):
    """Whether requests would be answered."""

    ready: bool


class Status(BaseModel):
    """Sums since the start.

    Attributes:
        of: the tenant that they are of, or all.
    """

    tenant: str | None
    of: str
    totals: dict[str, Any]
    health: dict[str, Any]
