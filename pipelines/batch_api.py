"""Files and batches as OpenAI's API shows them, and what a batch's input must be."""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines.prices import nano_dollars

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
WINDOW_S = 24 * 3600
_SHOWN_ERRORS = 20

Status = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelled"
]
ENDED = ("completed", "failed", "expired", "cancelled")


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


@dataclass(frozen=True)
class StoredFile:
    """A file that a tenant uploaded, or that a batch wrote. Times are seconds since the epoch."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int

    def as_object(self) -> dict[str, Any]:
        return {"object": "file", "status": "processed", **asdict(self)}


@dataclass(frozen=True)
class BatchRequest:
    """What was asked for; never changes."""

    id: str
    endpoint: str
    input_file_id: str
    created_at: int
    metadata: Mapping[str, str] | None = None

    @property
    def expires_at(self) -> int:
        return self.created_at + WINDOW_S

    @property
    def budget_nusd(self) -> int | None:
        """What the batch may cost, if its metadata says.

        Raises: ValueError if that is no amount above zero.
        """
        text = (self.metadata or {}).get("budget_usd")
        if text is None:
            return None
        usd = float(text)
        if not 1e-9 <= usd < 1e9:
            raise ValueError(text)
        return nano_dollars(usd)


@dataclass(frozen=True)
class LineError:
    """Why a batch cannot run. `line` counts from 1."""

    code: str
    message: str
    line: int | None = None


@dataclass(frozen=True)
class BatchState:
    """How far a batch is; only who runs it writes this. `times` is by the status reached."""

    status: Status = "validating"
    total: int = 0
    completed: int = 0
    failed: int = 0
    times: Mapping[str, int] = field(default_factory=dict)
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: Sequence[LineError] = ()

    @classmethod
    def from_json(cls, text: bytes) -> "BatchState":
        raw = json.loads(text)
        errors = tuple(LineError(**error) for error in raw.pop("errors"))
        return cls(errors=errors, **raw)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def batch_object(
    request: BatchRequest, state: BatchState, cancelling_at: int | None
) -> dict[str, Any]:
    """A batch in OpenAI's format."""
    asked_to_stop = cancelling_at is not None and state.status not in ENDED
    errors = [asdict(error) for error in state.errors]
    return {
        "object": "batch",
        **asdict(request),
        "completion_window": "24h",
        "expires_at": request.expires_at,
        "status": "cancelling" if asked_to_stop else state.status,
        "cancelling_at": cancelling_at,
        **{
            f"{status}_at": state.times.get(status)
            for status in ("in_progress", "finalizing", *ENDED)
        },
        "output_file_id": state.output_file_id,
        "error_file_id": state.error_file_id,
        "errors": {"object": "list", "data": errors} if errors else None,
        "request_counts": {
            "total": state.total, "completed": state.completed, "failed": state.failed,
        },
    }  # fmt: skip


def metadata_columns(body: Mapping[str, Any], names: Iterable[str]) -> dict[str, str | None]:
    """The columns of these names that a request's `metadata` hold, as text; None for a lack."""
    told = body.get("metadata")
    given = told if isinstance(told, Mapping) else {}
    return {name: _text(given.get(name)) for name in names}


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def checked_lines(
    lines: Iterable[bytes],
    endpoint: str,
    named: Sequence[str],
    columns: Mapping[str, Any],
    errors: list[LineError],
) -> Iterator[bytes]:
    """The lines as the main job reads them.

    Args:
        named: columns that a line's metadata may hold.
        columns: what every row carries besides, whatever its metadata say, as its tenant.
        errors: gets what is wrong with lines, up to a page of it.
    """
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _row(line, endpoint, seen)
        if isinstance(row, dict):
            told = metadata_columns(row["body"], named)
            yield json.dumps({**row, **told, **columns}, ensure_ascii=True).encode() + b"\n"
        else:
            errors.append(LineError(row[0], row[1], number))
            if len(errors) >= _SHOWN_ERRORS:
                return
    if not seen and not errors:
        errors.append(LineError("empty_file", "the input file holds no requests"))


def _row(line: bytes, endpoint: str, seen: set[str]) -> dict[str, Any] | tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return "invalid_json_line", f"is no JSON: {error}"
    if not isinstance(row, dict) or not isinstance(row.get("body"), dict):
        return "invalid_request", "must be an object with custom_id, method, url and body"
    name = row.get("custom_id")
    if not isinstance(name, str) or not name:
        return "missing_required_parameter", "custom_id must be a text that is not empty"
    if name in seen:
        return "duplicate_custom_id", f"custom_id {name!r} stands on an earlier line too"
    seen.add(name)
    if row.get("method", "POST") != "POST":
        return "invalid_method", "method must be POST"
    if row.get("url") != endpoint:
        return "mismatched_url", f"url is {row.get('url')!r}, and the batch's endpoint {endpoint}"
    return {"custom_id": name, "method": "POST", "url": endpoint, "body": row["body"]}
