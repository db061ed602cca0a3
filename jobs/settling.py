"""Settling the followers of a run: in this process if they are few, else in Ray tasks."""

from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipelines.commit import Kind
from pipelines.prices import PriceList
from pipelines.settle import (
    Partitions,
    followed_keys,
    follower_partitions,
    forget_followers,
    key_numbers,
    leader_partitions,
    settle_partition,
)
from pipelines.storage import Directory

_PARTS_A_TASK = 32


def settle(directory: Directory, kind: Kind, prices: PriceList, run_id: str) -> None:
    """Give every follower of this kind its leader's answer, or its leader's error.

    Those of kind `similar` whose leader has no complete answer are pending afterwards.
    """
    partitions = Partitions(directory, kind)
    if not partitions.parts:
        return
    if partitions.count == 1:
        _settle_here(directory, partitions, prices, run_id)
    else:
        _settle_in_tasks(directory, partitions, prices, run_id)
    forget_followers(directory, kind)


def _settle_here(
    directory: Directory, partitions: Partitions, prices: PriceList, run_id: str
) -> None:
    followers = follower_partitions(directory, partitions.parts, 1)
    followed = _numbers(*followers)
    leaders = leader_partitions(directory, directory.parts("rows"), followed, 1)
    settle_partition(directory, partitions.part(0), followers, leaders, prices, run_id)


def _settle_in_tasks(
    directory: Directory, partitions: Partitions, prices: PriceList, run_id: str
) -> None:
    """A shuffle: parts are cut by partition, then each partition is settled."""
    count = partitions.count
    cut_followers = ray.remote(follower_partitions).options(num_returns=count)
    cut_leaders = ray.remote(leader_partitions).options(num_returns=count)
    numbers, settle_one = ray.remote(_numbers), ray.remote(_settle_one)
    followers = [cut_followers.remote(directory, p, count) for p in _groups(partitions.parts)]
    followed = ray.put(_union(ray.get([numbers.remote(*group) for group in followers])))
    parts = directory.parts("rows")
    leaders = [cut_leaders.remote(directory, p, followed, count) for p in _groups(parts)]
    ray.get(
        [
            settle_one.remote(
                (directory, partitions.part(i), prices, run_id),
                len(followers),
                *(group[i] for group in [*followers, *leaders]),
            )
            for i in range(count)
        ]
    )


def _settle_one(run: tuple[Any, ...], groups: int, *tables: pa.Table) -> None:
    """`settle_partition`, with its tables one by one as Ray passes what other tasks return."""
    directory, part, prices, run_id = run
    followers, leaders = list(tables[:groups]), list(tables[groups:])
    settle_partition(directory, part, followers, leaders, prices, run_id)


def _numbers(*followers: pa.Table) -> np.ndarray:
    return _union([key_numbers(followed_keys(table)) for table in followers])


def _union(numbers: list[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(numbers))


def _groups(paths: list[str]) -> list[list[str]]:
    return [paths[i : i + _PARTS_A_TASK] for i in range(0, len(paths), _PARTS_A_TASK)]
