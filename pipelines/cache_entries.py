"""What the response cache keeps: its tables' schemas, and the digests that vouch for each entry."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = "2"
VERSION_FIELD = b"nightmill.response_cache"
RESPONSES = "responses"
_QUESTIONS = "questions_"
NO_SCOPE = bytes(16)
"""The scope of an entry that is found by its key alone."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_METADATA = {VERSION_FIELD: SCHEMA_VERSION}
_SERVED = ("response", "finish_reason", "prompt_tokens", "completion_tokens", "tier", "model")
_SIGNED = (*_SERVED, "tenant")

# Declared in the schema itself, so that no process ever sees the table without its key: without
# one, concurrent merges write duplicates. So they do for keys of fixed size, whatever is
# declared (LanceDB 0.40: 500 rows of 100 keys): hence binary, not binary(16).
_KEY = pa.field(
    "request_key",
    pa.binary(),
    nullable=False,
    metadata={
        "lance-schema:unenforced-primary-key": "true",
        "lance-schema:unenforced-primary-key:position": "1",
    },
)

ENTRY = pa.schema(
    [
        _KEY,
        ("response", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("tier", pa.string()),
        ("model", pa.string()),
        # "" where requests name none.
        ("tenant", pa.string()),
        # Tenant, context and model policy in one name: only within it may answers be shared.
        ("scope", pa.binary(16)),
        ("run_id", pa.string()),
        ("row_id", pa.string()),
        ("created_at", pa.timestamp("us", "UTC")),
        # `entry_digest`; checked at every hit.
        ("digest", pa.binary(16)),
    ],
    metadata=_METADATA,
)


@dataclass(frozen=True)
class CachedAnswer:
    """An answer that an earlier run paid for."""

    response: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    tier: str
    model: str


@dataclass(frozen=True)
class Candidate:
    """An entry whose question is similar to one that was asked; similarity only proposes.

    Attributes:
        request_key: hexadecimal; its answer is what `recall` gives for it.
        similarity: cosine, to about 1e-4 (vectors are kept at half precision).
        question: the text that was asked then.
    """

    request_key: str
    similarity: float
    question: str


def question_schema(dimensions: int) -> pa.Schema:
    """The schema of a table of questions, whose vectors have length 1.

    Half precision: it moved no similarity by more than 1e-4 and halves memory, disk and reads.
    """
    fields = [
        _KEY,
        ("scope", pa.binary(16)),
        ("question", pa.string()),
        ("vector", pa.list_(pa.float16(), dimensions)),
        ("created_at", pa.timestamp("us", "UTC")),
        # `question_digest`; checked before a candidate is proposed.
        ("digest", pa.binary(16)),
    ]
    return pa.schema(fields, metadata=_METADATA)


def questions_table(revision: str) -> str:
    """The name of the table of what one revision of an embedder embedded: 12 hexadecimal digits.

    Vectors of two revisions cannot be compared, so they never meet in one table.
    """
    return f"{_QUESTIONS}{revision}"


def is_questions(name: str) -> bool:
    return name.startswith(_QUESTIONS)


def entry_digest(entry: Mapping[str, Any]) -> bytes:
    """A digest over the parts of an entry that decide what a hit serves, and to whom."""
    hasher = blake2b(entry["request_key"], digest_size=16)
    hasher.update(entry["scope"] or b"")
    for name in _SIGNED:
        value = str(entry[name]).encode()
        hasher.update(b"%d:%b" % (len(value), value))
    hasher.update(b"%d" % _microseconds(entry["created_at"]))
    return hasher.digest()


def first_release_digest(entry: Mapping[str, Any]) -> bytes:
    """What schema version 1 kept as an entry's digest."""
    hasher = blake2b(entry["request_key"], digest_size=16)
    for name in _SERVED:
        hasher.update(f"{name}={entry[name]}\0".encode())
    return hasher.digest()


def question_digest(
    request_key: bytes, scope: bytes, question: str, vector: bytes, created_at: datetime
) -> bytes:
    """A digest over all of a question; `vector`: the bytes of its half-precision numbers."""
    hasher = blake2b(request_key + (scope or b""), digest_size=16)
    hasher.update(b"%d" % _microseconds(created_at))
    hasher.update(vector)
    hasher.update(str(question).encode())
    return hasher.digest()


def answer(entry: Mapping[str, Any]) -> CachedAnswer:
    return CachedAnswer(*(entry[name] for name in _SERVED))


def _microseconds(moment: datetime | None) -> int:
    # Damage may leave none.
    return -1 if moment is None else (moment - _EPOCH) // _MICROSECOND
