import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from actors.tenancy import Tenants, change_tenants
from jobs.cli import main
from pipelines.errors import UsageProblem
from pipelines.tenants import KeyEntry, Tenant, TenantFile, new_key, parse_tenants


def key(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["key", *(str(a) for a in arguments)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tenants.yaml"


def made(file: Path, tenant: str, *options: object) -> str:
    done = key("new", tenant, "--file", file, *options)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def test_a_key_is_its_tenants_and_stands_nowhere(file: Path) -> None:
    mine, other = made(file, "acme"), made(file, "other", "--admin")
    tenants = Tenants(file)
    found = tenants.authenticate(f"Bearer {mine}")
    assert found is not None
    assert (found.tenant, found.admin) == ("acme", False)
    boss = tenants.authenticate(f"bearer {other}")
    assert boss is not None
    assert (boss.tenant, boss.admin) == ("other", True)
    assert mine.rsplit("-", 1)[-1] not in file.read_text()
    assert mine not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic x", "Bearer nm-", "Bearer \x00", "Bearer ключ"],
)
def test_what_is_no_key_is_nobody(file: Path, header: str | None) -> None:
    made(file, "acme")
    assert Tenants(file).authenticate(header) is None


def test_a_key_with_the_right_id_and_another_secret_is_nobody(file: Path) -> None:
    right = made(file, "acme")
    last = "A" if right[-1] != "A" else "B"
    assert Tenants(file).authenticate(f"Bearer {right[:-1]}{last}") is None
    unknown, _ = new_key(datetime.now(UTC))
    assert Tenants(file).authenticate(f"Bearer {unknown}") is None


def test_keys_and_limits_change_without_a_restart(file: Path) -> None:
    first = made(file, "acme")
    tenants = Tenants(file)
    second = made(file, "acme", "--requests-per-minute", 7)
    assert tenants.authenticate(f"Bearer {second}")
    assert tenants.limits("acme").requests_per_minute == 7
    assert key("revoke", first.split("-")[1], "--file", file).exit_code == 0
    assert tenants.authenticate(f"Bearer {first}") is None
    assert tenants.authenticate(f"Bearer {second}")
    assert tenants.limits("acme").requests_per_minute == 7, "revoking touches nothing else"


@pytest.mark.parametrize("broken", ["tenants: [", "tenants: {acme: {kyes: []}}", None])
def test_a_broken_file_leaves_what_was(
    file: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    mine = made(file, "acme")
    tenants = Tenants(file)
    good = file.read_text()
    file.unlink() if broken is None else file.write_text(broken)
    for _ in range(3):
        assert tenants.authenticate(f"Bearer {mine}")
    assert len(caplog.records) == 1, "said once, not with every request"
    assert str(file) in caplog.text
    file.write_text(good.replace("acme", "acme2"))
    found = tenants.authenticate(f"Bearer {mine}")
    assert found is not None
    assert found.tenant == "acme2"


def test_keys_made_at_once_are_all_kept(file: Path) -> None:
    def make(i: int) -> None:
        _, entry = new_key(datetime.now(UTC))
        change_tenants(
            file,
            lambda old: TenantFile(tenants={**old.tenants, f"t{i}": Tenant(keys=(entry,))}),
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(24)))
    assert len(yaml.safe_load(file.read_text())["tenants"]) == 24
    assert os.listdir(file.parent) == [file.name]


def entry(key_id: str) -> str:
    made = KeyEntry(id=key_id, blake2b="0" * 64, created=datetime.now(UTC))
    return str(made.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tenants: {../x: {}}", "../x"),
        ("tenants: {a: {limits: {usd_per_day: 0}}}", "tenants.a.limits.usd_per_day"),
        ("tenants: {a: {limits: {rpm: 3}}}", "tenants.a.limits.rpm"),
        (f"tenants: {{a: {{keys: [{entry('0' * 8)}, {entry('0' * 8)}]}}}}", "twice"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(text: str, says: str) -> None:
    with pytest.raises(UsageProblem, match=r"f\.yaml") as problem:
        parse_tenants(text, "f.yaml")
    assert says in str(problem.value)


def test_wrong_use_of_the_command_ends_with_2(file: Path) -> None:
    assert key("new", "a/b", "--file", file).exit_code == 2
    assert key("new", "a", "--file", file, "--usd-per-day", -1).exit_code == 2
    gone = key("list", "--file", file)
    assert gone.exit_code == 2
    assert "nightmill key new" in gone.stderr
    made(file, "acme")
    unknown = key("revoke", "ffffffff", "--file", file)
    assert unknown.exit_code == 2
    assert "key list" in " ".join(unknown.stderr.split())


def test_list_shows_no_secret(file: Path) -> None:
    mine = made(file, "acme", "--usd-per-day", 2.5)
    shown = key("list", "--file", file).stdout
    assert mine.split("-")[1] in shown
    assert mine.split("-", 2)[2] not in shown
    assert "acme" in shown
