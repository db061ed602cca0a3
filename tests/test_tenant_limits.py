import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from actors.online_request import Reservation
from actors.spending import Spending
from actors.tenant_limits import TenantGate
from pipelines.errors import UsageProblem
from pipelines.rate_window import RateWindow
from pipelines.refusal import Refusal
from pipelines.tenants import TenantLimits


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s

    def wall(self) -> datetime:
        return datetime(2026, 1, 31, 12, tzinfo=UTC) + timedelta(seconds=self.s)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def gate(folder: Path, clock: Clock, **limits: float) -> TenantGate:
    mine = TenantLimits(**limits)
    spending = Spending(folder / "spending.sqlite")
    return TenantGate(
        lambda name: mine if name == "acme" else TenantLimits(), spending, clock, clock.wall
    )


NUMBERS = count()


def admit(
    gate: TenantGate, tokens: int = 1, worst: int = 0, name: str = "acme", request: str = ""
) -> Refusal | None:
    most = Reservation(request or f"request {next(NUMBERS)}", tokens, worst)
    return asyncio.run(gate.admit(name, most))


def settle(
    gate: TenantGate, tokens: int, cost: int, worst: int, reserved: int, request: str = "a"
) -> None:
    asyncio.run(gate.settle("acme", Reservation(request, reserved, worst), tokens, cost))


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 9)), max_size=40))
def test_no_minute_exceeds_the_limit_and_waiting_helps(steps: list[tuple[float, int]]) -> None:
    window, now, taken = RateWindow(), 0.0, []
    for passed, amount in steps:
        now += passed
        wait = window.wait_s(amount, 10, now)
        assert wait is not None
        if wait == 0:
            window.take(amount, now)
            taken.append((now, amount))
        else:
            # A hair later, for what floating point rounds off.
            assert window.wait_s(amount, 10, now + wait + 1e-6) == 0
            now += wait + 1e-6
        assert sum(a for at, a in taken if at > now - 60) <= 10


def test_a_rate_is_refused_with_a_time_to_come_back(tmp_path: Path, clock: Clock) -> None:
    limited = gate(tmp_path, clock, requests_per_minute=3)
    assert [admit(limited) for _ in range(3)] == [None] * 3
    refused = admit(limited)
    assert refused is not None
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    assert refused.retry_after_s == 60
    assert admit(limited, name="other") is None, "a limit is one tenant's"
    clock.s = 60
    assert admit(limited) is None


def test_tokens_count_at_their_most_until_known(tmp_path: Path, clock: Clock) -> None:
    limited = gate(tmp_path, clock, tokens_per_minute=100)
    assert admit(limited, tokens=90, request="a") is None
    assert admit(limited, tokens=20) is not None
    settle(limited, tokens=30, cost=0, worst=0, reserved=90)
    assert admit(limited, tokens=20) is None
    never = admit(limited, tokens=101)
    assert never is not None
    assert never.retry_after_s is None, "it would be refused for ever"


def test_a_budget_is_never_passed(tmp_path: Path, clock: Clock) -> None:
    limited = gate(tmp_path, clock, usd_per_day=100e-9)
    asked = [admit(limited, worst=40, request=name) for name in "abc"]
    assert [refusal is None for refusal in asked] == [True, True, False]
    for _ in range(2):
        # Again, because the first answer was lost on the way.
        settle(limited, tokens=1, cost=5, worst=40, reserved=1)
    assert admit(limited, worst=50) is None, "5 spent, 40 and 50 reserved"
    refused = admit(limited, worst=6)
    assert refused is not None
    assert (refused.status, refused.kind) == (429, "insufficient_quota")
    assert refused.retry_after_s is None
    assert limited.left_nusd("acme") == 5
    assert limited.left_nusd("other") is None


def test_days_and_months_end_in_utc(tmp_path: Path, clock: Clock) -> None:
    daily = gate(tmp_path / "a", clock, usd_per_day=10e-9)
    monthly = gate(tmp_path / "b", clock, usd_per_month=10e-9)
    for limited in (daily, monthly):
        limited.charge("acme", 1, 10, "batch-0")
        assert admit(limited, worst=1) is not None
    clock.s = 12 * 3600  # 1 February, 00:00
    assert admit(daily, worst=1) is None
    assert admit(monthly, worst=1) is None
    daily.charge("acme", 1, 10, "batch-1")
    monthly.charge("acme", 1, 10, "batch-2")
    clock.s += 24 * 3600
    assert admit(daily, worst=1) is None
    assert admit(monthly, worst=1) is not None


def test_a_charge_is_made_once(tmp_path: Path, clock: Clock) -> None:
    limited = gate(tmp_path, clock, usd_per_day=100e-9)
    for name in ("batch-1", "batch-1", "batch-2"):
        limited.charge("acme", 1, 30, name)
    assert limited.left_nusd("acme") == 40


def test_what_a_batch_may_spend_is_kept_for_it(tmp_path: Path, clock: Clock) -> None:
    limited = gate(tmp_path, clock, usd_per_day=100e-9)
    limited.hold("acme", 70, "batch-1")
    assert limited.left_nusd("acme") == 30
    assert admit(limited, worst=40) is not None
    clock.s = 7200
    assert admit(limited, worst=40) is not None, "however long it takes"
    limited.charge("acme", 1, 10, "batch-1")
    assert limited.left_nusd("acme") == 90


def test_what_a_dead_replica_reserved_is_free_again(tmp_path: Path, clock: Clock) -> None:
    limited = gate(tmp_path, clock, usd_per_day=100e-9)
    assert admit(limited, worst=100) is None
    assert admit(limited, worst=1) is not None
    clock.s = 3600
    assert admit(limited, worst=1) is None


def test_spending_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "spending.sqlite"
    code = (
        "import sys, time; from datetime import date; from pathlib import Path\n"
        "from actors.spending import Spending\n"
        "spending = Spending(Path(sys.argv[1]))\n"
        "for i in range(20): spending.add(str(i), 'acme', date(2026, 1, 1), 3, 7)\n"
        "print('done', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    day = date(2026, 1, 1)
    later = Spending(path)
    assert later.spent_nusd("acme", day, day) == 140
    # One whose sender heard nothing of it is sent again, and counts once.
    assert not later.add("19", "acme", day, 3, 7)
    assert later.spent_nusd("acme", day, day) == 140


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageProblem, match=r"serve\.data_dir"):
        Spending(tmp_path / "file" / "spending.sqlite")
