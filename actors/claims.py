"""The claim step: of all rows with one key, run-wide, exactly one leads."""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.keys import KEY_BYTES, digest, sortable
from pipelines.schema import patch
from pipelines.waiting import undecided_rows

_RUN_RATIO = 4


class ClaimShard:
    """Who leads each key of one shard.

    Keys live in sorted runs that are merged as they grow, 25 bytes a key (17 for the key, 8 for
    its leader), where a dictionary of the same would take about 200. A row that claims again,
    because Ray ran its task again, gets the answer that it got the first time.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def claim(self, keys: bytes, rows: bytes) -> bytes:
        """Claim keys for rows, in order.

        Args:
            keys: 16 bytes a row.
            rows: 8 bytes a row that tell it from every other row of the run.

        Returns:
            one byte a row: 1 if the row leads its key, 0 if another does.
        """
        wanted = sortable(keys)
        claimants = np.frombuffer(rows, dtype=np.uint64)
        leaders, known = self._look_up(wanted)
        if not known.all():
            fresh = np.flatnonzero(~known)
            # np.unique keeps the first occurrence: the earliest row of this call leads.
            new_keys, first = np.unique(wanted[fresh], return_index=True)
            self._add(new_keys, claimants[fresh[first]])
            leaders, _ = self._look_up(wanted)
        return (leaders == claimants).astype(np.uint8).tobytes()

    def size(self) -> tuple[int, int]:
        """(keys claimed, bytes held)."""
        return (
            sum(len(keys) for keys, _ in self._runs),
            sum(keys.nbytes + rows.nbytes for keys, rows in self._runs),
        )

    def _look_up(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        leaders = np.zeros(len(wanted), dtype=np.uint64)
        known = np.zeros(len(wanted), dtype=bool)
        for keys, rows in self._runs:
            at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            hit = keys[at] == wanted
            leaders[hit] = rows[at[hit]]
            known |= hit
        return leaders, known

    def _add(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Keep runs growing geometrically, so that few are searched and little is copied."""
        while self._runs and len(self._runs[-1][0]) < _RUN_RATIO * len(keys):
            older_keys, older_rows = self._runs.pop()
            keys = np.concatenate([older_keys, keys])
            rows = np.concatenate([older_rows, rows])
            order = np.argsort(keys, kind="stable")
            keys, rows = keys[order], rows[order]
        self._runs.append((keys, rows))


ShardCalls = Mapping[int, tuple[bytes, bytes]]
Ask = Callable[[ShardCalls], Mapping[int, bytes]]


def claim_rows(table: pa.Table, shards: int, ask: Ask) -> pa.Table:
    """Mark the rows whose key another row leads: `source` becomes duplicate.

    Only rows that one answer may serve take part.

    Args:
        ask: sends (keys, rows) to each shard and brings back each one's reply.
    """
    shareable = table["_shareable"].to_numpy(zero_copy_only=False)
    at = [row for row in undecided_rows(table) if shareable[row]]
    if not at:
        return table
    leads = _claim(table.select(["request_key", "row_id"]).take(at), shards, ask)
    followers = [row for row, lead in zip(at, leads, strict=True) if not lead]
    return patch(table, followers, {"source": ["duplicate"] * len(followers)})


def claim_committed(table: pa.Table, shards: int, ask: Ask) -> None:
    """Give committed rows the keys that they answered, before a run goes on.

    Args:
        table: `row_id, request_key, source, status` of rows of an earlier start.
    """
    answered = pc.and_(pc.equal(table["status"], "ok"), pc.not_equal(table["source"], "duplicate"))
    leaders = table.filter(answered)
    if leaders.num_rows:
        _claim(leaders, shards, ask)


def _claim(rows: pa.Table, shards: int, ask: Ask) -> np.ndarray:
    keys = np.frombuffer(
        bytes.fromhex("".join(rows["request_key"].to_pylist())), dtype=np.uint8
    ).reshape(-1, KEY_BYTES)
    claimants = np.frombuffer(
        b"".join(digest(row.encode())[:8] for row in rows["row_id"].to_pylist()), dtype=np.uint64
    )
    shard = keys[:, 0] % shards
    members = {s: np.flatnonzero(shard == s) for s in np.unique(shard).tolist()}
    replies = ask({s: (keys[m].tobytes(), claimants[m].tobytes()) for s, m in members.items()})
    leads = np.zeros(len(keys), dtype=bool)
    for s, m in members.items():
        leads[m] = np.frombuffer(replies[s], dtype=np.uint8).astype(bool)
    return leads
