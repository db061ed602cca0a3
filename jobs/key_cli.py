"""`nightmill key`: the API keys of tenants."""

from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from actors.tenancy import change_tenants, read_tenants
from pipelines.errors import UsageProblem
from pipelines.tenants import (
    KeyEntry,
    Tenant,
    TenantFile,
    TenantLimits,
    check_tenant_name,
    new_key,
)

file_option = click.option(
    "--file",
    "file",
    required=True,
    type=click.Path(path_type=Path),
    help="The tenants' file, `serve.tenants` of a configuration.",
)


@click.group()
def key() -> None:
    """API keys of tenants, for `nightmill serve`."""


@key.command()
@click.argument("tenant")
@file_option
@click.option("--admin", is_flag=True, help="The tenant may read metrics and all tenants' status.")
@click.option("--requests-per-minute", type=int, help="The tenant's limit from now on.")
@click.option("--tokens-per-minute", type=int, help="The tenant's limit from now on.")
@click.option("--usd-per-day", type=float, help="The tenant's budget from now on, by UTC.")
@click.option("--usd-per-month", type=float, help="The tenant's budget from now on, by UTC.")
def new(tenant: str, file: Path, admin: bool, **given: float | None) -> None:
    """Make a key for TENANT and print it: this once, only its hash is kept."""
    check_tenant_name(tenant)
    for name, value in given.items():
        if value is not None and value <= 0:
            raise UsageProblem(f"key new --{name.replace('_', '-')}: must be above 0")
    plain, entry = new_key(datetime.now(UTC))
    limits = {name: value for name, value in given.items() if value is not None}
    change_tenants(file, lambda old: _with_key(old, tenant, entry, admin, limits))
    click.echo(plain)


@key.command("list")
@file_option
def list_keys(file: Path) -> None:
    """List tenants, their limits, and the ids of their keys."""
    table = Table("tenant", "key", "made", "limits")
    for name, tenant in read_tenants(file).tenants.items():
        limits = tenant.limits.model_dump(exclude_none=True)
        said = ", ".join(f"{limit} {value:g}" for limit, value in limits.items())
        shown = f"{name} (admin)" if tenant.admin else name
        for entry in tenant.keys:
            table.add_row(shown, entry.id, f"{entry.created:%Y-%m-%d %H:%M}", said)
        if not tenant.keys:
            table.add_row(shown, "(none)", "", said)
    Console().print(table)


@key.command()
@click.argument("key_id", metavar="ID")
@file_option
def revoke(key_id: str, file: Path) -> None:
    """Take back the key with this ID, the eight digits after its `nm-`."""
    read_tenants(file)
    change_tenants(file, lambda old: _without_key(old, key_id, file))
    click.echo(f"key {key_id} is revoked")


def _with_key(
    old: TenantFile, name: str, entry: KeyEntry, admin: bool, given: dict[str, float]
) -> TenantFile:
    before = old.tenants.get(name, Tenant())
    limits = TenantLimits(**{**before.limits.model_dump(), **given})
    after = Tenant(admin=before.admin or admin, limits=limits, keys=(*before.keys, entry))
    return TenantFile(tenants={**old.tenants, name: after})


def _without_key(old: TenantFile, key_id: str, file: Path) -> TenantFile:
    if key_id not in old.by_key_id():
        raise UsageProblem(f"{file}: no key {key_id!r}; `nightmill key list` shows the ids")
    kept = {
        name: tenant.model_copy(
            update={"keys": tuple(entry for entry in tenant.keys if entry.id != key_id)}
        )
        for name, tenant in old.tenants.items()
    }
    return TenantFile(tenants=kept)
