"""The endpoint's OpenAPI document: what requests may hold, what comes back, and which errors."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from jobs import online_schemas as own
from jobs.batches_api import NewBatch
from pipelines.batch_api import ENDPOINTS

Schema = dict[str, Any]

_REFS = "#/components/schemas/"
_TOLD = ("tier", "source", "similarity", "cost-usd", "escalations")
_ANSWERING = (400, 404, 413, 429, 499, 500, 503, 504)


_HEADER = {"schema": {"type": "string"}}


_NEW_BATCH = {"endpoint": ENDPOINTS[0], "completion_window": "24h"}


class _Operation(NamedTuple):
    """Attributes:
    answer: the schema of the answer's JSON, or its media type.
    chunk: of its stream, if it has one.
    errors: statuses beside 200, and those of who may not ask.
    body: the schema of the request's JSON.
    """

    answer: str
    errors: tuple[int, ...] = ()
    body: str | None = None
    listed: bool = False
    chunk: str | None = None
    is_open: bool = False


OPERATIONS = {
    "POST /v1/chat/completions": _Operation(
        "ChatCompletion", _ANSWERING, "ChatBody", chunk="ChatCompletionChunk"
    ),
    "POST /v1/completions": _Operation(
        "Completion", _ANSWERING, "CompletionBody", chunk="Completion"
    ),
    "POST /v1/embeddings": _Operation("CreateEmbeddingResponse", _ANSWERING, "EmbeddingBody"),
    "GET /v1/models": _Operation("Model", listed=True),
    "GET /v1/models/{name}": _Operation("Model", (404,)),
    "POST /v1/files": _Operation("FileObject", (400, 411, 413)),
    "GET /v1/files": _Operation("FileObject", (400,), listed=True),
    "GET /v1/files/{file_id}": _Operation("FileObject", (404,)),
    "DELETE /v1/files/{file_id}": _Operation("FileDeleted", (404,)),
    "GET /v1/files/{file_id}/content": _Operation("application/jsonl", (404,)),
    "POST /v1/batches": _Operation("Batch", (400, 413), "NewBatch"),
    "GET /v1/batches": _Operation("Batch", (400,), listed=True),
    "GET /v1/batches/{batch_id}": _Operation("Batch", (404,)),
    "POST /v1/batches/{batch_id}/cancel": _Operation("Batch", (404,)),
    "GET /v1/nightmill/status": _Operation("Status"),
    "GET /metrics": _Operation("text/plain", (403,)),
    "GET /health": _Operation("Health", is_open=True),
    "GET /ready": _Operation("Ready", is_open=True),
}


def document(app: FastAPI, models: Sequence[str]) -> Schema:
    """Of an app's routes.

    Args:
        models: what a request may name.
    """
    told = get_openapi(title="nightmill", version="1", routes=app.routes)
    components = told.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **_schemas()}
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    for body in ("ChatBody", "CompletionBody", "EmbeddingBody"):
        named = components["schemas"][body]["properties"]["model"]
        named["anyOf"] = [{"enum": list(models)}, {"type": "null"}]
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in told["paths"].items():
        for method, operation in operations.items():
            _describe(operation, OPERATIONS[f"{method.upper()} {path}"])
    files = told["paths"]["/v1/files"]["post"]
    files["responses"]["200"]["links"] = {
        "answer": {
            "operationId": told["paths"]["/v1/batches"]["post"]["operationId"],
            "requestBody": {**_NEW_BATCH, "input_file_id": "$response.body#/id"},
        }
    }
    return told


def _schemas() -> Schema:
    # Here, because loading them takes the time of some hundred requests.
    from openai.types import (
        Batch,
        Completion,
        CreateEmbeddingResponse,
        FileDeleted,
        FileObject,
        Model,
    )
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    models: list[type[BaseModel]] = [
        own.ChatBody, own.CompletionBody, own.EmbeddingBody, own.ErrorBody, own.Health, own.Ready,
        own.Status, NewBatch, Batch, ChatCompletion, ChatCompletionChunk, Completion,
        CreateEmbeddingResponse, FileDeleted, FileObject, Model,
    ]  # fmt: skip
    _, told = models_json_schema(
        [(model, "validation") for model in models], ref_template=f"{_REFS}{{model}}"
    )
    schemas: Schema = told["$defs"]
    # Texts in base64, which the client turns into numbers before it reads them.
    vector = schemas["Embedding"]["properties"]["embedding"]
    schemas["Embedding"]["properties"]["embedding"] = {"anyOf": [vector, {"type": "string"}]}
    # Of a chunk.
    reason = schemas["CompletionChoice"]["properties"]["finish_reason"]
    schemas["CompletionChoice"]["properties"]["finish_reason"] = {
        "anyOf": [reason, {"type": "null"}]
    }
    return schemas


def _describe(operation: Schema, means: _Operation) -> None:
    if means.body is not None:
        content = {"application/json": {"schema": _ref(means.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    if not means.is_open:
        operation["security"] = [{"key": []}]
    operation["responses"] = dict(_responses(means))


def _responses(means: _Operation) -> Iterator[tuple[str, Schema]]:
    content: Schema = {"application/json": {"schema": _answer(means)}}
    if "/" in means.answer:
        content = {means.answer: {"schema": {"type": "string"}}}
    if means.chunk is not None:
        content["text/event-stream"] = {"schema": _event(means.chunk)}
    ids = {"x-request-id": _HEADER}
    told = {f"x-nightmill-{name}": _HEADER for name in _TOLD} if means.errors == _ANSWERING else {}
    yield "200", {"description": "OK", "content": content, "headers": {**ids, **told}}
    if means.answer == "Ready":
        yield "503", {"description": "Not yet", "content": content, "headers": ids}
    for status in sorted({*means.errors, *(() if means.is_open else (401, 403))}):
        wrong = {"application/json": {"schema": _ref("ErrorBody")}}
        yield str(status), {"description": _phrase(status), "content": wrong, "headers": ids}


def _answer(means: _Operation) -> Schema:
    if not means.listed:
        return _ref(means.answer)
    return {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": _ref(means.answer)},
            "first_id": {"type": ["string", "null"]},
            "last_id": {"type": ["string", "null"]},
            "has_more": {"type": "boolean"},
        },
    }


def _event(chunk: str) -> Schema:
    told = {"anyOf": [_ref(chunk), _ref("ErrorBody")]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": told}
    end = {"const": "[DONE]"}
    return {"type": "object", "required": ["data"], "properties": {"data": {"anyOf": [end, data]}}}


def _ref(schema: str) -> Schema:
    return {"$ref": _REFS + schema}


def _phrase(status: int) -> str:
    return "Client Closed Request" if status == 499 else HTTPStatus(status).phrase
