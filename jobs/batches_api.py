"""`/v1/batches`: the main job behind OpenAI's batch API."""

from asyncio import to_thread
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from actors.batch_store import TenantFolder
from jobs.files_api import FORM_BYTES, Limit, invalid, missing, page
from jobs.online_reading import fitted, read_body
from pipelines.batch_api import ENDPOINTS, BatchRequest
from pipelines.storage import Directory


class NewBatch(BaseModel):
    """The body of a batch's creation."""

    input_file_id: str
    endpoint: str = Field(json_schema_extra={"enum": list(ENDPOINTS)})
    completion_window: Literal["24h"]
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = Field(None, max_length=16)


def batches_router(data: Directory) -> APIRouter:
    """Routes like those of `files_router`."""
    router = APIRouter(prefix="/v1")

    def mine(request: Request) -> TenantFolder:
        return TenantFolder(data, request.state.tenant)

    @router.post("/batches")
    async def create(request: Request) -> Any:
        """Have a file answered; it is checked when its turn comes."""
        # FastAPI would take in the whole of a declared body before it asks for the key.
        asked = fitted(NewBatch, await read_body(request, FORM_BYTES))
        return await to_thread(_created, mine(request), asked)

    @router.get("/batches")
    def batches(request: Request, after: str | None = None, limit: Limit = 20) -> Any:
        """The tenant's batches, newest first."""
        folder = mine(request)
        return page([folder.as_object(batch) for batch in folder.batches()], after, limit)

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
        raise invalid("endpoint", f"{asked.endpoint!r}: batches are for {', '.join(ENDPOINTS)}")
    stored = folder.file(asked.input_file_id)
    if stored is None or stored.purpose != "batch":
        raise invalid("input_file_id", f"{asked.input_file_id!r}: no such file for a batch")
    try:
        batch = folder.add_batch(asked.endpoint, stored.id, asked.metadata)
    except ValueError:
        raise invalid("metadata", "budget_usd must be US dollars above 0, as 2.50") from None
    return folder.as_object(batch)


def _batch(folder: TenantFolder, batch_id: str) -> BatchRequest:
    found = folder.batch(batch_id)
    if found is None:
        raise missing("batch", batch_id)
    return found
