from hypothesis import given
from hypothesis import strategies as st

from pipelines.cost import time_cost
from pipelines.ledger import Committed, Replica, batch_lines, overhead_lines
from pipelines.prices import HourRate, TokenRate

HOURLY = HourRate(3_990_000_000)
ns = st.integers(0, 10**13)


@given(idle=ns, load=ns, lost=ns, shares=st.lists(st.integers(0, 10**10), max_size=20))
def test_rows_and_overheads_make_up_the_replicas_time_to_the_nano_dollar(
    idle: int, load: int, lost: int, shares: list[int]
) -> None:
    """Invariant 2, for a tier that pays by the hour."""
    busy = sum(shares) + lost
    replica = Replica("t", alive_ns=idle + load + busy, load_ns=load, busy_ns=busy)
    rows = [time_cost(share, HOURLY) for share in shares]
    committed = {("run.0", "t"): Committed(sum(shares), sum(rows))}
    lines = overhead_lines({"run.0": [replica]}, committed, {"t": HOURLY})
    total = sum(rows) + sum(line["cost_nusd"] for line in lines)
    assert total == time_cost(replica.alive_ns, HOURLY)


def test_work_that_no_committed_row_pays_is_a_retry_line() -> None:
    replica = Replica("t", alive_ns=100, load_ns=10, busy_ns=60)
    lines = overhead_lines({"a": [replica]}, {("a", "t"): Committed(45, 0)}, {"t": HOURLY})
    assert {line["kind"]: line["engine_ns"] for line in lines} == {
        "load": 10,
        "retry": 15,
        "idle": 30,
    }


def test_time_costs_nothing_where_tokens_are_paid() -> None:
    replica = Replica("t", alive_ns=100, load_ns=10, busy_ns=60)
    lines = overhead_lines({"a": [replica]}, {}, {"t": TokenRate(1, 1, 1)})
    assert sum(line["cost_nusd"] for line in lines) == 0


def test_tokens_that_no_committed_row_pays_are_a_retry_line() -> None:
    replica = Replica("t", alive_ns=100, token_nusd=70)
    committed = {("a", "t"): Committed(0, 50)}
    lines = overhead_lines({"a": [replica]}, committed, {"t": TokenRate(1, 1, 1)})
    assert {line["kind"]: line["cost_nusd"] for line in lines} == {"retry": 20, "idle": 0}


def test_a_batch_is_charged_once_however_many_starts_read_it() -> None:
    """The first start was killed with the answers of batch-1 in its hands."""
    first = Replica("t", batch_nusd={"batch-1": 70})
    second = Replica("t", batch_nusd={"batch-1": 70, "batch-2": 30})
    committed = {("a", "t"): Committed(0, 20), ("b", "t"): Committed(0, 65)}
    attempts = {"a": [first], "b": [second]}
    lines = batch_lines(attempts, committed)
    assert [(line["kind"], line["cost_nusd"]) for line in lines] == [("retry", 15)]
    committed["b", "t"] = Committed(0, 80)
    assert batch_lines(attempts, committed) == []
    # One that was killed before it told of the batch that its rows are from.
    untold = {"a": [Replica("t")], "b": [Replica("t", batch_nusd={"batch-1": 70})]}
    paid = {("a", "t"): Committed(0, 20), ("b", "t"): Committed(0, 50)}
    assert batch_lines(untold, paid) == []
    # What a start without batches has paid by the row is not of these.
    attempts["c"], committed["c", "t"] = [Replica("t", token_nusd=9)], Committed(0, 9)
    committed["b", "t"] = Committed(0, 65)
    assert [line["cost_nusd"] for line in batch_lines(attempts, committed)] == [15]


def test_idle_engines_that_are_paid_by_the_token_stand_in_the_bill() -> None:
    replica = Replica("t", alive_ns=100, load_ns=10, busy_ns=60)
    lines = overhead_lines({"a": [replica]}, {}, {"t": TokenRate(1, 1, 1)})
    assert {line["kind"] for line in lines} == {"load", "retry", "idle"}
