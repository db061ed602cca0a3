import os
import random

import pyarrow as pa

from actors.claims import ClaimShard, claim_committed, claim_rows
from pipelines.schema import empty_columns, patch

SHARDS = 3


def ask(shards: list[ClaimShard]):  # type: ignore[no-untyped-def]
    return lambda calls: {s: shards[s].claim(*call) for s, call in calls.items()}


def rows(keys: list[str | None], first: int = 0, shareable: bool = True) -> pa.Table:
    table = pa.table(empty_columns(len(keys)))
    values = {
        "request_key": keys,
        "row_id": [f"row {first + i}" for i in range(len(keys))],
        "_shareable": [shareable] * len(keys),
        "status": ["error" if key is None else None for key in keys],
    }
    return patch(table, range(len(keys)), values)


def following(table: pa.Table) -> list[bool]:
    return [source == "duplicate" for source in table["source"].to_pylist()]


def test_exactly_one_row_leads_each_key() -> None:
    rng, shards = random.Random(0), [ClaimShard() for _ in range(SHARDS)]
    # Keys that end in zero bytes are told apart too.
    pool = [os.urandom(15).hex() + "00" for _ in range(300)] + [f"{i:032x}" for i in range(300)]
    leaders: list[str] = []
    first = 0
    for _ in range(40):
        keys = rng.choices(pool, k=rng.randrange(1, 200))
        claimed = claim_rows(rows(keys, first), SHARDS, ask(shards))
        leaders += [k for k, f in zip(keys, following(claimed), strict=True) if not f]
        first += len(keys)
    assert len(leaders) == len(set(leaders))
    assert set(leaders) <= set(pool)
    assert sum(shard.size()[0] for shard in shards) == len(leaders)


def test_the_earlier_row_of_a_block_leads() -> None:
    key, shards = "ab" * 16, [ClaimShard()]
    assert following(claim_rows(rows([key, key, key]), 1, ask(shards))) == [False, True, True]


def test_a_row_that_claims_again_gets_the_same_answer() -> None:
    """Ray may run a task twice; a leader must not start to follow itself."""
    shards = [ClaimShard()]
    table = rows(["aa" * 16, "bb" * 16, "aa" * 16])
    once = following(claim_rows(table, 1, ask(shards)))
    assert following(claim_rows(table, 1, ask(shards))) == once == [False, False, True]


def test_rows_that_are_sampled_or_broken_follow_nobody() -> None:
    key, shards = "ab" * 16, [ClaimShard()]
    sampled = claim_rows(rows([key, key], shareable=False), 1, ask(shards))
    assert following(sampled) == [False, False]
    assert following(claim_rows(rows([None, None]), 1, ask(shards))) == [False, False]


def test_rows_committed_before_a_restart_lead() -> None:
    key, shards = "ab" * 16, [ClaimShard()]
    failed = "cd" * 16
    values = {"status": ["ok", "error"], "source": ["generated", None]}
    committed = patch(rows([key, failed]), [0, 1], values)
    claim_committed(committed, 1, ask(shards))
    assert following(claim_rows(rows([key, failed], first=7), 1, ask(shards))) == [True, False]


def test_a_claimed_key_takes_25_bytes() -> None:
    shard = ClaimShard()
    keys = [os.urandom(16) for _ in range(1000)]
    shard.claim(b"".join(keys), os.urandom(8 * len(keys)))
    assert shard.size() == (1000, 25_000)
