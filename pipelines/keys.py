"""Names for rows and requests: what makes two requests the same, and which row is which.

BLAKE2b at 128 bits: at 10^10 distinct requests the chance of one collision is below 10^-18.
"""

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.api_tier import API
from pipelines.config import RunConfig
from pipelines.language import languages_revision
from pipelines.requests import Request
from pipelines.route_config import Rules
from pipelines.tier import VLLM, Tier

KEY_BYTES = 16
SORTABLE = np.dtype(f"S{KEY_BYTES + 1}")
"""Digests in NumPy. It drops zero bytes at the end of byte strings; one more byte keeps them."""
_WHOLE_FILE_LIMIT = 64 << 20
_EDGE = 1 << 20


def canonical_json(value: Any) -> bytes:
    """One byte string per JSON value: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")


def sortable(digests: bytes) -> np.ndarray:
    """Digests that stand one after the other as an array of dtype `SORTABLE`."""
    raw = np.frombuffer(digests, dtype=np.uint8).reshape(-1, KEY_BYTES)
    padded = np.ones((len(raw), KEY_BYTES + 1), dtype=np.uint8)
    padded[:, :KEY_BYTES] = raw
    return padded.view(SORTABLE).ravel()


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=KEY_BYTES).digest()


def request_key(request: Request, policy: bytes, routed_by: Mapping[str, Any]) -> bytes:
    """The key of everything that can change a request's answer.

    An omitted sampling field differs from every value, also from its default: the default
    may change.

    Args:
        policy: `policy_digest` of the run.
        routed_by: the row's values of the columns that routing looks at: equal requests that
            may go to different tiers are different questions.
    """
    columns = {name: str(value) for name, value in routed_by.items()}
    parts = [request.messages, request.sampling, request.tier, columns]
    return digest(canonical_json(parts) + policy)


def context_key(request: Request, policy: bytes, routed_by: Mapping[str, Any]) -> bytes:
    """As `request_key`, with the text of the last user message left out.

    Two requests with one context differ in nothing but the question that is asked.
    """
    last = max(i for i, turn in enumerate(request.messages) if turn["role"] == "user")
    # No checked message of a user is without content.
    blanked = {**request.messages[last], "content": None}
    turns = [*request.messages[:last], blanked, *request.messages[last + 1 :]]
    return request_key(Request(turns, request.sampling, request.tier), policy, routed_by)


def row_id(path: str, ordinal: int) -> str:
    """The id of a row that brings none: its place, never its text, so that equal rows differ."""
    return digest(f"{path}\0{ordinal}".encode()).hex()


def policy_digest(config: RunConfig, learned: bytes = b"") -> bytes:
    """What the run adds to every key: routing, models with revisions, sampling defaults.

    Args:
        learned: the digest of the plan that routing was calibrated to.
    """
    tiers = {tier.name: tier_identity(tier) for tier in config.tiers}
    decides: list[Any] = [config.route.model_dump(mode="json"), tiers, config.sampling.given()]
    if isinstance(config.route, Rules) and config.route.asks_language:
        decides.append(languages_revision())
    return digest(canonical_json(decides) + learned)


def tier_identity(tier: Tier) -> list[Any]:
    """What of a tier can change an answer."""
    if isinstance(tier.engine, API):
        return [tier.engine.identity]
    # A draft model changes no answer: the model that answers verifies each of its tokens.
    engine = tier.engine.model_dump(mode="json", exclude={"draft_model"})
    return [model_revision(tier), engine]


def model_revision(tier: Tier) -> str:
    """A name that changes with the model's weights, tokenizer or template.

    For a local folder: a digest of its files. Above 64 MiB a file counts by size and its
    first and last MiB: every retraining changes those, and reading 100 GB would not pay.
    A hub name counts with its pinned revision, which preflight demands. Adapters and folders
    that engine arguments name count too.
    """
    engine = tier.engine
    if not isinstance(engine, VLLM):
        return engine.kind
    folders = folder_digests([engine.model, engine.engine_args, engine.lora_adapters])
    return digest(canonical_json([folders, engine.model, engine.revision])).hex()


def folder_digests(named: Any) -> dict[str, str]:
    """A digest of every local folder that is named somewhere in a value."""
    return {name: _folder_digest(Path(name)) for name in _texts(named) if Path(name).is_dir()}


def _folder_digest(folder: Path) -> str:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    parts = {str(f.relative_to(folder)): _file_digest(f) for f in files}
    return digest(canonical_json(parts)).hex()


def _texts(value: Any) -> Iterator[str]:
    """All texts inside engine arguments: a tokenizer, a draft model or an adapter may be one."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


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
