from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from blocks import block
from conftest import MakeConfig

from jobs import settling
from pipelines import settle
from pipelines.commit import (
    BILL_PARTS,
    FOLLOWERS,
    PENDING,
    commit_block,
    committed_blocks,
    sweep,
)
from pipelines.config import Columns, Storage
from pipelines.intake import Dialect
from pipelines.ledger import bill_table
from pipelines.leftovers import pending_blocks, read_leftover
from pipelines.prices import PriceList, price_list
from pipelines.pricing import price_rows
from pipelines.schema import BEYOND_TEXT, nano_dollars
from pipelines.storage import Directory

A, B, C = "aa" * 16, "bb" * 16, "cc" * 16
DIALECT = Dialect(Columns(), "jsonl", False, ("only",), {}, ())


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(str(tmp_path / "out"), Storage())


@pytest.fixture
def prices(make_config: MakeConfig) -> PriceList:
    return price_list(make_config([]), date(2026, 11, 24))


def answered(key: str, row: str, **more: Any) -> dict[str, Any]:
    return {
        "request_key": key,
        "row_id": row,
        "status": "ok",
        "source": "generated",
        "response": f"answer to {key[:2]}",
        "finish_reason": "stop",
        "tier": "only",
        "prompt_tokens": 10,
        "cached_prompt_tokens": 0,
        "completion_tokens": 5,
        "_work": [
            {
                "tier": "only",
                "prompt_tokens": 10,
                "cached_prompt_tokens": 0,
                "completion_tokens": 5,
                "engine_ns": 1000,
                "attempt_id": "run.0",
            }
        ],
        **more,
    }


def follower(key: str, row: str) -> dict[str, Any]:
    return {"request_key": key, "row_id": row, "source": "duplicate"}


def committed(directory: Directory, prices: PriceList, name: str, *rows: dict[str, Any]) -> None:
    commit_block(directory, name, price_rows(block(name, rows), prices, "run"))


def settled(directory: Directory, prices: PriceList) -> list[dict[str, Any]]:
    for kind in FOLLOWERS:
        settling.settle(directory, kind, prices, "run")
    rows = [r for part in directory.parts("rows") for r in directory.read_table(part).to_pylist()]
    return sorted(rows, key=lambda row: row["row_id"])


def test_followers_get_their_leaders_answer_at_no_cost(
    directory: Directory, prices: PriceList
) -> None:
    committed(directory, prices, "0", follower(B, "r0"), answered(A, "r1"), follower(A, "r2"))
    committed(directory, prices, "1", answered(B, "r3"), follower(A, "r4"))
    rows = settled(directory, prices)
    assert [row["row_id"] for row in rows] == ["r0", "r1", "r2", "r3", "r4"]
    assert [row["response"][-2:] for row in rows] == ["bb", "aa", "aa", "bb", "aa"]
    assert [row["cost_usd"] > 0 for row in rows] == [False, True, False, True, False]
    assert len({row["baseline_cost_usd"] for row in rows}) == 1
    assert [row["attempts"] for row in rows if row["source"] == "duplicate"] == [0, 0, 0]


def test_followers_get_all_that_their_leader_got(directory: Directory, prices: PriceList) -> None:
    beyond = {field.name: "x" for field in BEYOND_TEXT} | {"embedding": [0.5, 2.0]}
    leader = answered(A, "r0", **beyond)
    committed(directory, prices, "0", leader, follower(A, "r1"), answered(B, "r2"))
    rows = settled(directory, prices)
    for name, value in beyond.items():
        assert [row[name] for row in rows] == [value, value, None]


def test_followers_of_a_failed_leader_fail_alike_and_are_in_errors(
    directory: Directory, prices: PriceList
) -> None:
    failed = answered(A, "r0", status="error", source=None, response=None, error_kind="engine")
    committed(directory, prices, "0", {**failed, "error": "died"}, follower(A, "r1"))
    rows = settled(directory, prices)
    assert [(r["status"], r["error_kind"], r["error"]) for r in rows] == [
        ("error", "engine", "died")
    ] * 2
    errors = [r for p in directory.parts("errors") for r in directory.read_table(p).to_pylist()]
    assert {row["row_id"] for row in errors} == {"r0", "r1"}


def test_a_follower_whose_leader_left_nothing_is_an_error_not_a_loss(
    directory: Directory, prices: PriceList
) -> None:
    committed(directory, prices, "0", follower(A, "r0"))
    (row,) = settled(directory, prices)
    assert (row["status"], row["error_kind"]) == ("error", "lost_leader")


def test_settling_again_after_a_kill_adds_nothing(
    directory: Directory, prices: PriceList, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(directory, prices, "0", answered(A, "r0"), follower(A, "r1"))
    with monkeypatch.context() as patched:
        patched.setattr(settling, "forget_followers", lambda *_: None)
        settling.settle(directory, "equal", prices, "run")
    assert [row["row_id"] for row in settled(directory, prices)] == ["r0", "r1"]


def test_a_kill_while_followers_are_forgotten_doubles_none(
    directory: Directory, prices: PriceList, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(directory, prices, "0", answered(A, "r0"), follower(A, "r1"))
    committed(directory, prices, "1", answered(B, "r2"), follower(B, "r3"))
    with monkeypatch.context() as patched:
        patched.setattr(settle, "drop_settled", lambda _: None)
        settling.settle(directory, "equal", prices, "run")
    directory.remove(directory.parts(FOLLOWERS["equal"])[0])
    settle.drop_settled(directory)
    assert [row["row_id"] for row in settled(directory, prices)] == ["r0", "r1", "r2", "r3"]


@pytest.mark.usefixtures("ray_here")
def test_partitions_in_tasks_settle_what_one_does_here(
    directory: Directory, prices: PriceList, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "_FOLLOWERS_AT_ONCE", 2)
    keys = [f"{i * 2**120:032x}" for i in range(7)]
    committed(directory, prices, "0", *(answered(k, f"a{i}") for i, k in enumerate(keys)))
    committed(directory, prices, "1", *(follower(k, f"b{i}") for i, k in enumerate(keys)))
    assert settle.Partitions(directory, "equal").count == 4
    rows = settled(directory, prices)
    assert len(rows) == 14
    assert all(row["response"] for row in rows)


@pytest.mark.parametrize("left", ["similar", "equal", "pending", "bill", "errors"])
def test_what_a_kill_left_of_an_unfinished_block_is_swept_away(
    directory: Directory, prices: PriceList, left: str
) -> None:
    """Killed after any side file and before the part in `rows/`, the block was never there."""
    pending = {**answered(A, "r2"), "status": "pending", "source": None}
    failed = answered(A, "r3", status="error", source=None, response=None, error_kind="engine")
    waiting = [follower(A, "r1"), similar(C, "r4", A)]
    committed(directory, prices, "0", answered(A, "r0"), *waiting, pending, failed)
    keep = {**FOLLOWERS, "pending": PENDING, "bill": BILL_PARTS, "errors": "errors"}
    for folder in ("rows", *keep.values()):
        if folder != keep[left]:
            directory.remove(folder)
    sweep(directory)
    assert not any(directory.parts(folder) for folder in keep.values())
    committed(directory, prices, "0", answered(A, "r0"), answered(B, "r1"))
    assert [row["row_id"] for row in settled(directory, prices)] == ["r0", "r1"]


def test_a_block_committed_again_differently_leaves_nothing_of_the_first(
    directory: Directory, prices: PriceList
) -> None:
    committed(directory, prices, "0", follower(A, "r0"), answered(B, "r1"))
    committed(directory, prices, "0", answered(A, "r0"), answered(B, "r1"))
    assert directory.parts(FOLLOWERS["equal"]) == []
    assert len(settled(directory, prices)) == 2


def test_a_block_committed_twice_counts_once(directory: Directory, prices: PriceList) -> None:
    """Ray may run a write task again; the bill must not grow."""
    for _ in range(2):
        committed(directory, prices, "0", answered(A, "r0"), answered(B, "r1"))
    assert settle.count_rows(directory)["rows"] == 2
    row_cost = (10 * 500_000_000 + 5 * 1_500_000_000) // 10**6
    assert settle.write_bill(directory, []) == {"row": 2 * row_cost}


def test_the_bill_is_the_rows_and_the_overheads(directory: Directory, prices: PriceList) -> None:
    """Invariant 2."""
    committed(directory, prices, "0", answered(A, "r0"), follower(A, "r1"), answered(B, "r2"))
    settled(directory, prices)
    idle = {"kind": "idle", "row_id": None, "tier": "only", "seconds": 1.0, "tokens": 0}
    overheads = [{**idle, "cost_nusd": 77, "attempt_id": "run.0", "engine_ns": 10**9}]
    total = sum(settle.write_bill(directory, overheads).values())
    bill = directory.read_table("bill.parquet")
    assert bill.num_rows == 4
    assert pc.sum(bill["cost_nusd"]).as_py() == total
    rows = pa.concat_tables([directory.read_table(p) for p in directory.parts("rows")])
    assert int(nano_dollars(rows["cost_usd"]).sum()) + 77 == total
    billed = bill.filter(pc.equal(bill["kind"], "row"))
    assert sorted(billed["row_id"].to_pylist()) == sorted(rows["row_id"].to_pylist())


def test_pending_rows_come_back_as_they_were_before_routing(
    directory: Directory, prices: PriceList
) -> None:
    pending = {**answered(A, "r0"), "status": "pending", "source": None, "_request": "{}"}
    committed(directory, prices, "0", pending, answered(B, "r1"))
    assert committed_blocks(directory) == {"0"}
    (left,) = pending_blocks(directory)
    assert (left.name, left.num_rows) == ("0.more", 1)
    (row,) = read_leftover(left, directory, DIALECT, b"").to_pylist()
    assert (row["row_id"], row["request_key"], row["_request"]) == ("r0", A, "{}")
    assert (row["status"], row["tier"], row["cost_usd"]) == (None, None, None)
    committed(directory, prices, "0.more", answered(A, "r0"))
    assert pending_blocks(directory) == []


def test_the_ledger_keeps_its_columns_without_any_line() -> None:
    assert bill_table([]).num_rows == 0


def similar(key: str, row: str, entry: str) -> dict[str, Any]:
    hit = {"cache_entry": entry, "cache_group": "g", "cache_rule": "similarity>=0.98"}
    return {**follower(key, row), "similarity": 0.75, **hit}


def test_a_row_that_follows_a_similar_one_is_a_semantic_hit_and_so_are_its_repeats(
    directory: Directory, prices: PriceList
) -> None:
    committed(directory, prices, "0", follower(B, "r0"), similar(B, "r1", A))
    committed(directory, prices, "1", answered(A, "r2"), follower(A, "r3"))
    rows = settled(directory, prices)
    assert [row["response"] for row in rows] == ["answer to aa"] * 4
    assert [row["source"] for row in rows] == [
        "duplicate", "cache_semantic", "generated", "duplicate",
    ]  # fmt: skip
    assert [(row["cache_entry"], row["similarity"]) for row in rows] == [
        (A, 0.75), (A, 0.75), (None, None), (None, None),
    ]  # fmt: skip
    assert [row["cost_usd"] > 0 for row in rows] == [False, False, True, False]


@pytest.mark.parametrize(
    "leader",
    [
        {"status": "error", "response": None, "source": None, "error_kind": "engine"},
        {"finish_reason": "length"},
        None,
    ],
)
def test_who_is_only_similar_to_a_row_without_a_full_answer_is_answered_itself(
    directory: Directory, prices: PriceList, leader: dict[str, Any] | None
) -> None:
    committed(directory, prices, "0", similar(B, "r1", A), similar(C, "r2", A), follower(B, "r3"))
    if leader is not None:
        committed(directory, prices, "1", answered(A, "r0", **leader))
    settling.settle(directory, "similar", prices, "run")
    (again,) = pending_blocks(directory)
    left = read_leftover(again, directory, DIALECT, b"")
    assert left["row_id"].to_pylist() == ["r1", "r2"]
    assert left["cache_entry"].null_count == left["source"].null_count == 2
    committed(directory, prices, again.name, answered(B, "r1"), answered(C, "r2"))
    rows = settled(directory, prices)[-3:]
    assert [(row["row_id"], row["source"]) for row in rows] == [
        ("r1", "generated"), ("r2", "generated"), ("r3", "duplicate"),
    ]  # fmt: skip
    assert pending_blocks(directory) == []


def test_repeats_of_an_audited_row_get_its_own_answer_and_are_no_hits(
    directory: Directory, prices: PriceList
) -> None:
    audit = {"cache_entry": B, "cache_group": "g", "cache_rule": "audit", "similarity": 0.75}
    committed(directory, prices, "0", answered(A, "r0", **audit), follower(A, "r1"))
    rows = settled(directory, prices)
    assert [row["cache_entry"] for row in rows] == [B, None]
    assert rows[1]["response"] == "answer to aa"
