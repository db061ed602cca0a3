"""`/v1/files`: what goes into batches, and what comes out of them."""

from asyncio import to_thread
from collections.abc import Iterator
from typing import IO, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile

from actors.batch_store import TenantFolder, TooLarge
from jobs.online_errors import ApiError
from pipelines.batch_api import StoredFile
from pipelines.storage import Directory

_CHUNK_BYTES = 1 << 18
FORM_BYTES = 1 << 16
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


def files_router(data: Directory, max_file_bytes: int) -> APIRouter:
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
                raise invalid("file", "is missing; send a multipart form with file and purpose")
            if purpose != "batch":
                raise invalid("purpose", f"purpose {purpose!r}: files here are for batch")
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
        return page(found, after, limit)

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

    return router


def _file(folder: TenantFolder, file_id: str) -> StoredFile:
    found = folder.file(file_id)
    if found is None:
        raise missing("file", file_id)
    return found


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise ApiError(411, "say the body's length in Content-Length", "invalid_request_error")
    if int(length) > max_bytes + FORM_BYTES:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the file is larger than {max_bytes:,} bytes; divide it",
        "invalid_request_error",
        code="file_too_large",
        param="file",
    )


def missing(what: str, name: str) -> ApiError:
    return ApiError(404, f"no such {what}: {name!r}", "invalid_request_error", code="not_found")


def invalid(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", "invalid_request_error", param=param)


def page(found: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
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
