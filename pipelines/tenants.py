"""Who may ask, and how much: tenants, their limits, and the hashes of their API keys.

A key is 256 random bits, so nobody finds it by trying, and one pass of BLAKE2b keeps what the
file holds from being used as a key. Slow hashes are for passwords that people choose; here they
would only cost every request its milliseconds.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from pipelines.errors import UsageProblem
from pipelines.section import Section

_KEY = re.compile(r"nm-([0-9a-f]{8})-[A-Za-z0-9_-]{43}")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
TenantName = Annotated[str, Field(pattern=_NAME)]
"""It is a folder's name too."""

HEAD = (
    "# Limits may be edited here and hold without a restart. `nightmill key` writes the file anew\n"
    "# and keeps no other comments.\n"
)


class TenantLimits(Section):
    """What one tenant may use; unset is unlimited. Days and months are those of UTC."""

    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = Field(
        None, description="prompt and completion tokens, counted at their most until known"
    )
    usd_per_day: PositiveFloat | None = None
    usd_per_month: PositiveFloat | None = None


class KeyEntry(Section):
    """One key of a tenant, by its hash alone."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{8}$")]
    blake2b: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    created: datetime


class Tenant(Section):
    """A customer, a team or a service: answers, files and spending are kept apart by tenant."""

    admin: bool = Field(False, description="may read metrics and the status of all tenants")
    limits: TenantLimits = TenantLimits()
    keys: tuple[KeyEntry, ...] = ()


class TenantFile(Section):
    """All tenants, by name."""

    tenants: Mapping[TenantName, Tenant] = {}

    def by_key_id(self) -> dict[str, tuple[str, KeyEntry]]:
        return {key.id: (name, key) for name, t in self.tenants.items() for key in t.keys}


def new_key(now: datetime) -> tuple[str, KeyEntry]:
    """A key that its owner is shown once, and what is kept of it."""
    key_id = secrets.token_hex(4)
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    key = f"nm-{key_id}-{secret}"
    return key, KeyEntry(id=key_id, blake2b=key_hash(key), created=now.astimezone(UTC))


def key_hash(key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=32, person=b"nightmill-key").hexdigest()


def key_id(key: str) -> str | None:
    """The part of a key that may be shown; None for what is no key."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None


def is_key_of(key: str, entry: KeyEntry) -> bool:
    return hmac.compare_digest(key_hash(key), entry.blake2b)


def bearer(authorization: str | None) -> str | None:
    """The key in an Authorization header; None if there is none."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def check_tenant_name(name: str) -> None:
    """Raises: UsageProblem for a name that could not be a folder's."""
    if not re.fullmatch(_NAME, name):
        raise UsageProblem(
            f"tenant {name!r}: use up to 64 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit"
        )


def parse_tenants(text: str, source: str) -> TenantFile:
    """Raises: UsageProblem naming the file and the key."""
    try:
        file = TenantFile.model_validate(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise UsageProblem(f"{source}: is no valid YAML ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageProblem(f"{source}: {where}: {first['msg']}") from error
    ids = [key.id for tenant in file.tenants.values() for key in tenant.keys]
    if twice := {i for i in ids if ids.count(i) > 1}:
        raise UsageProblem(f"{source}: key id {min(twice)} stands there twice; remove one")
    return file


def dump_tenants(file: TenantFile) -> str:
    return HEAD + yaml.safe_dump(
        file.model_dump(mode="json", exclude_defaults=True), sort_keys=False
    )
