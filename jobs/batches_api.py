"""`/v1/files` and `/v1/batches`: the main job behind OpenAI's batch API."""

from asyncio import to_thread
from collections.abc import Iterator
from typing import IO, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from actors.batch_store import TenantFolder, TooLarge
from jobs.online_errors import ApiError
from jobs.online_reading import fitted, read_body
from pipelines.batch_api import ENDPOINTS, BatchRequest, StoredFile
from pipelines.storage import Directory

_CHUNK_BYTES = 1 << 18
_FORM_BYTES = 1 << 16
"""What a form may hold beside its file, and the body of a batch's creation at all."""
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                    },
                }
            }
        },
    }
}

Limit = Annotated[int, Query(ge=1, le=10_000)]


class NewBatch(BaseModel):
    """The body of a batch's creation."""

    input_file_id: str
    endpoint: str = Field(json_schema_extra={"enum": list(ENDPOINTS)})
    completion_window: Literal["24h"]
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = Field(None, max_length=16)


def batches_router(data: Directory, max_file_bytes: int) -> APIRouter:
    """Routes that need `request.state.tenant`; another tenant's id is the id of nothing.

    All state lies in the data directory, so any replica may answer. They are plain functions:
    FastAPI runs them in threads, where reading and writing files keeps nobody waiting.
    """
    router = APIRouter(prefix="/v1")

    def mine(request: Request) -> TenantFolder:
        return TenantFolder(data, request.state.tenant)

    @router.post("/files", openapi_extra=_UPLOAD)
    async def upload(request: Request) -> Any:
        """Store a file of OpenAI-batch lines."""
        # FastAPI would take in the whole body of a declared form before it asks for the key.
        _check_length(request, max_file_bytes)
        async with request.form(max_files=1, max_fields=4) as form:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise _invalid("file", "is missing; send a multipart form with file and purpose")
            if purpose != "batch":
                raise _invalid("purpose", f"purpose {purpose!r}: files here are for batch")
            name = file.filename or "upload.jsonl"
            folder = mine(request)
            try:
                stored = await to_thread(folder.add_file, file.file, name, purpose, max_file_bytes)
            except TooLarge:
                raise _too_large(max_file_bytes) from None
        return stored.as_object()

    @router.get("/files")
    def files(
        request: Request,
        purpose: str | None = None,
        after: str | None = None,
        limit: Limit = 10_000,
    ) -> Any:
        """The tenant's files, newest first."""
        found = [f.as_object() for f in mine(request).files() if purpose in (None, f.purpose)]
        return _page(found, after, limit)

    @router.get("/files/{file_id}")
    def file(request: Request, file_id: str) -> Any:
        """One file, without its content."""
        return _file(mine(request), file_id).as_object()

    @router.get("/files/{file_id}/content")
    def content(request: Request, file_id: str) -> StreamingResponse:
        """A file's content."""
        folder = mine(request)
        stored = _file(folder, file_id)
        headers = {"content-length": str(stored.bytes)}
        return StreamingResponse(
            _chunks(folder.open_file(stored)), media_type="application/jsonl", headers=headers
        )

    @router.delete("/files/{file_id}")
    def remove(request: Request, file_id: str) -> Any:
        """Delete a file. A batch that has begun has a copy of its input."""
        folder = mine(request)
        folder.remove_file(_file(folder, file_id))
        return {"id": file_id, "object": "file", "deleted": True}

    @router.post("/batches")
    async def create(request: Request) -> Any:
        """Have a file answered; it is checked when its turn comes."""
        # FastAPI would take in the whole of a declared body before it asks for the key.
        asked = fitted(NewBatch, await read_body(request, _FORM_BYTES))
        return await to_thread(_created, mine(request), asked)

    @router.get("/batches")
    def batches(request: Request, after: str | None = None, limit: Limit = 20) -> Any:
        """The tenant's batches, newest first."""
        folder = mine(request)
        return _page([folder.as_object(batch) for batch in folder.batches()], after, limit)

    @router.get("/batches/{batch_id}")
    def batch(request: Request, batch_id: str) -> Any:
        """How far a batch is."""
        folder = mine(request)
        return folder.as_object(_batch(folder, batch_id))

    @router.post("/batches/{batch_id}/cancel")
    def cancel(request: Request, batch_id: str) -> Any:
        """Ask a batch to end; what it has answered is paid."""
        folder = mine(request)
        found = _batch(folder, batch_id)
        folder.cancel(found)
        return folder.as_object(found)

    return router


def _created(folder: TenantFolder, asked: NewBatch) -> dict[str, Any]:
    if asked.endpoint not in ENDPOINTS:
        raise _invalid("endpoint", f"{asked.endpoint!r}: batches are for {', '.join(ENDPOINTS)}")
    stored = folder.file(asked.input_file_id)
    if stored is None or stored.purpose != "batch":
        raise _invalid("input_file_id", f"{asked.input_file_id!r}: no such file for a batch")
    try:
        batch = folder.add_batch(asked.endpoint, stored.id, asked.metadata)
    except ValueError:
        raise _invalid("metadata", "budget_usd must be US dollars above 0, as 2.50") from None
    return folder.as_object(batch)


def _file(folder: TenantFolder, file_id: str) -> StoredFile:
    found = folder.file(file_id)
    if found is None:
        raise _missing("file", file_id)
    return found


def _batch(folder: TenantFolder, batch_id: str) -> BatchRequest:
    found = folder.batch(batch_id)
    if found is None:
        raise _missing("batch", batch_id)
    return found


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise ApiError(411, "say the body's length in Content-Length", "invalid_request_error")
    if int(length) > max_bytes + _FORM_BYTES:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the file is larger than {max_bytes:,} bytes; divide it",
        "invalid_request_error",
        code="file_too_large",
        param="file",
    )


def _missing(what: str, name: str) -> ApiError:
    return ApiError(404, f"no such {what}: {name!r}", "invalid_request_error", code="not_found")


def _invalid(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", "invalid_request_error", param=param)


def _page(found: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    ids = [item["id"] for item in found]
    first = ids.index(after) + 1 if after in ids else 0
    shown = found[first : first + limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": first + limit < len(found),
    }


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    with content:
        while chunk := content.read(_CHUNK_BYTES):
            yield chunk
