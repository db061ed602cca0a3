"""Names for rows and requests: what makes two requests the same, and which row is which.

BLAKE2b at 128 bits: at 10^10 distinct requests the chance of one collision is below 10^-18.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig, Scripted, Tier
from pipelines.requests import Request

KEY_BYTES = 16
_WHOLE_FILE_LIMIT = 64 << 20
_EDGE = 1 << 20


def canonical_json(value: Any) -> bytes:
    """One byte string per JSON value: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=KEY_BYTES).digest()


def request_key(request: Request, policy: bytes) -> bytes:
    """The key of everything that can change a request's answer.

    An omitted sampling field differs from every value, also from its default: the default
    may change. `policy` is `policy_digest` of the run.
    """
    return digest(canonical_json([request.messages, request.sampling, request.tier]) + policy)


def row_id(path: str, ordinal: int) -> str:
    """The id of a row that brings none: its place, never its text, so that equal rows differ."""
    return digest(f"{path}\0{ordinal}".encode()).hex()


def policy_digest(config: RunConfig) -> bytes:
    """What the run adds to every key: routing, models with revisions, sampling defaults."""
    tiers = {
        tier.name: [model_revision(tier), tier.engine.model_dump(mode="json")]
        for tier in config.tiers
    }
    route = config.route.model_dump(mode="json")
    return digest(canonical_json([route, tiers, config.sampling.given()]))


def model_revision(tier: Tier) -> str:
    """A name that changes with the model's weights, tokenizer or template.

    For a local folder: a digest of its files. Above 64 MiB a file counts by size and its
    first and last MiB: every retraining changes those, and reading 100 GB would not pay.
    A hub name counts with its pinned revision, which preflight demands.
    """
    if isinstance(tier.engine, Scripted):
        return "scripted"
    folder = Path(tier.engine.model)
    if folder.is_dir():
        files = sorted(f for f in folder.rglob("*") if f.is_file())
        parts: Mapping[str, str] = {str(f.relative_to(folder)): _file_digest(f) for f in files}
        return digest(canonical_json(parts)).hex()
    return f"{tier.engine.model}@{tier.engine.revision}"


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    hasher = blake2b(str(size).encode(), digest_size=KEY_BYTES)
    with path.open("rb") as file:
        if size <= _WHOLE_FILE_LIMIT:
            hasher.update(file.read())
        else:
            hasher.update(file.read(_EDGE))
            file.seek(-_EDGE, 2)
            hasher.update(file.read(_EDGE))
    return hasher.hexdigest()
