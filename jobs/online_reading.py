"""What a client sends: its body, what is around the request in it, and how long it would wait."""

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.online_errors import ApiError
from pipelines.serve_config import Serve

M = TypeVar("M", bound=BaseModel)

_TEXTS = {"/v1/completions": "prompt", "/v1/embeddings": "input"}
_NOT_HERE = ("echo", "suffix", "best_of")


class StreamOptions(BaseModel):
    """What a stream tells beside its text."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class Envelope(BaseModel):
    """Fields of a request that cannot change an answer, only who gives it and how."""

    model_config = ConfigDict(strict=True, frozen=True)

    model: str | None = Field(None, description="auto, which is the default, or a tier")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, Any] | None = Field(None, description="columns that the route looks at")
    user: str | None = None
    store: bool | None = None
    service_tier: str | None = None
    priority: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="the larger waits for the smaller, which is 0 unless it is stated",
    )

    @property
    def wanted(self) -> str:
        """The model."""
        return "auto" if self.model is None else self.model

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


async def read_body(request: Request, max_bytes: int) -> dict[str, Any]:
    """The members of a JSON object that say something: null is as good as omitted.

    Raises: ApiError.
    """
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_bytes:
            message = f"the body has more than {max_bytes} bytes"
            raise ApiError(413, message, "invalid_request_error", "request_too_large")
    try:
        body = json.loads(content.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", "invalid_request_error")
    if b"\\u" in content and not _is_unicode(body):
        message = "the body holds no valid Unicode (a lone surrogate)"
        raise ApiError(400, message, "invalid_request_error")
    return {name: value for name, value in body.items() if value is not None}


def fitted(model: type[M], body: dict[str, Any]) -> M:
    """The body as this model has it.

    Raises: ApiError naming the field.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        message = f"{param}: {first['msg']}"
        raise ApiError(400, message, "invalid_request_error", param=param) from None


def split(url: str, body: dict[str, Any], stream: bool, serve: Serve) -> list[dict[str, Any]]:
    """One body for each text: prompts and inputs may be lists of them.

    Raises: ApiError for what no tier has.
    """
    if stream and url == "/v1/embeddings":
        message = "stream: an embedding comes whole"
        raise ApiError(400, message, "invalid_request_error", param="stream")
    plain = {name: value for name, value in body.items() if name != "stream_options"}
    for name in _NOT_HERE:
        if plain.pop(name, False) is not False:
            raise ApiError(400, f"{name}: not supported", "invalid_request_error", param=name)
    if url == "/v1/embeddings" and plain.get("encoding_format") == "base64":
        plain["encoding_format"] = "float"
    member = _TEXTS.get(url)
    texts = plain.get(member) if member else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return [plain]
    most = 1 if stream else serve.max_texts
    if not 0 < len(texts) <= most:
        message = f"{member}: holds {len(texts)} texts; 1 to {most} are taken"
        raise ApiError(400, message, "invalid_request_error", param=member)
    return [{**plain, str(member): text} for text in texts]


def check_limit(body: dict[str, Any], serve: Serve) -> None:
    """Raises: ApiError if a checked body asks for more than the endpoint gives."""
    if body.get("n", 1) > serve.max_texts:
        raise ApiError(
            400, f"n: at most {serve.max_texts} here", "invalid_request_error", param="n"
        )
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name, 0) > serve.max_tokens:
            message = f"{name}: at most {serve.max_tokens} here"
            raise ApiError(400, message, "invalid_request_error", param=name)


def deadline_of(request: Request, longest_s: float) -> float:
    """Seconds that the client would wait, at most `longest_s`.

    Raises: ApiError.
    """
    asked = request.headers.get("x-nightmill-deadline-s")
    if asked is None:
        return longest_s
    try:
        seconds = float(asked)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        message = "x-nightmill-deadline-s: must be a number of seconds above 0"
        raise ApiError(400, message, "invalid_request_error")
    return min(seconds, longest_s)


def _is_unicode(body: dict[str, Any]) -> bool:
    """Half of a surrogate pair could be neither keyed nor told back."""
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
