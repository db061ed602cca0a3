"""The chain of stages: one linear Ray Data pipeline, whose blocks stay whole from end to end.

A block that goes in is a block that comes out of every stage. That is what makes committing
safe: Ray may run any task again, and the block it makes again has the same rows under the same
name. Stages that would emit rows as they finish could not promise that.

The classes come from the caller, so that this module needs no engine and a test can bring
its own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, Dataset, Datasink, Datasource
from ray.data._internal.execution.interfaces import TaskContext
from ray.data.block import Block as RayBlock
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipelines.blocks import Block

_MAX_RESTARTS = 3
_ROW_BYTES = 1024
"""For Ray's planning only, before a block has been read."""


@dataclass(frozen=True)
class Stage:
    """A class that Ray Data hosts in a pool of actors and calls with one block at a time.

    Attributes:
        replicas: actors in the pool, or those that it starts with.
        max_replicas: how far the pool may grow while blocks wait; by default not at all.
        blocks_in_flight: blocks that one actor works on at once, each in a thread.
        options: Ray's for every actor, such as `num_gpus`.
        options_of_each: called for each actor, for options that no two may share.
    """

    host: type
    arguments: dict[str, Any]
    replicas: int = 1
    max_replicas: int | None = None
    blocks_in_flight: int = 2
    options: dict[str, Any] = field(default_factory=lambda: {"num_cpus": 0})
    options_of_each: Callable[[], dict[str, Any]] | None = None


class BlockSource(Datasource):
    """The planned blocks, each read by one task."""

    def __init__(self, blocks: Sequence[Block], read: Callable[[Block], pa.Table]) -> None:
        super().__init__()
        self._blocks, self._read = blocks, read

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [self._task(block) for block in self._blocks]

    def estimate_inmemory_data_size(self) -> int:
        return sum(block.num_rows for block in self._blocks) * _ROW_BYTES

    def _task(self, block: Block) -> ReadTask:
        read = self._read
        size = block.num_rows * _ROW_BYTES
        return ReadTask(lambda: [read(block)], BlockMetadata(block.num_rows, size, None, None))


class BlockSink(Datasink[None]):
    """Hands every block that comes out, with the number of its task, to `take`."""

    def __init__(self, take: Callable[[int, pa.Table], None]) -> None:
        self._take = take

    def write(self, blocks: Iterable[RayBlock], ctx: TaskContext) -> None:
        for block in blocks:
            self._take(ctx.task_idx, block)


def run_chain(
    blocks: Sequence[Block],
    read: Callable[[Block], pa.Table],
    stages: Sequence[Stage],
    commit: Callable[[pa.Table], None],
) -> None:
    """Stream the blocks through the stages and commit each as it comes out."""
    dataset = _read(blocks, read)
    for stage in stages:
        dataset = _hosted(dataset, stage)
    dataset.write_datasink(BlockSink(lambda _, table: commit(table)))


def run_sort(
    blocks: Sequence[Block],
    read: Callable[[Block], pa.Table],
    keys: Sequence[str],
    take: Callable[[int, pa.Table], None],
) -> None:
    """Sort all rows, on disk where memory does not hold them, and hand on block after block."""
    dataset = _read(blocks, read).sort(list(keys))
    dataset.write_datasink(BlockSink(take))


def _read(blocks: Sequence[Block], read: Callable[[Block], pa.Table]) -> Dataset:
    context = ray.data.DataContext.get_current()
    # Without a size to shape output to, a task that takes a block returns a block.
    context.target_max_block_size = None
    context.enable_progress_bars = False
    # Each running task would have a thread that measures its memory every second, by a walk
    # through all pages; a chain of actors that hold engines has nothing to learn from it.
    context.memory_usage_poll_interval_s = None
    # The detector of high memory asks for the options of an actor that it does not start, and so
    # for a placement group, whose GPUs nobody would use and nobody else would get.
    context.issue_detectors_config.detectors = []
    # A pool grows when every actor holds all the blocks that it works on at once. Ray's default
    # is 1.75 times as many, which no actor is ever given here.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    return ray.data.read_datasource(BlockSource(blocks, read), override_num_blocks=len(blocks))


def _hosted(dataset: Dataset, stage: Stage) -> Dataset:
    # The public method refuses whole blocks where GPUs are asked for, because a GPU stage
    # usually needs its batch bounded; here the engine does that, row by row.
    return dataset.map_batches_internal(
        stage.host,
        fn_constructor_kwargs=stage.arguments,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            min_size=stage.replicas,
            max_size=stage.max_replicas or stage.replicas,
            max_tasks_in_flight_per_actor=stage.blocks_in_flight,
            enable_true_multi_threading=True,
        ),
        ray_remote_args_fn=stage.options_of_each,
        max_concurrency=stage.blocks_in_flight,
        # Ray Data's own default is to try for ever. That is right for a block, because a try
        # counts as soon as a machine is silent, long before another one can be there.
        max_restarts=_MAX_RESTARTS,
        max_task_retries=-1,
        **stage.options,
    )
