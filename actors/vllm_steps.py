"""vLLM's per-step statistics, fed to whoever follows the engine: its clock, its speculation."""

import time
from collections.abc import Callable
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from actors.speculation import Speculation
from pipelines.engine_time import EngineClock


class StepLogger(StatLoggerBase):
    """Tells what each step computed and when it ended."""

    def __init__(self, clock: EngineClock, speculation: Speculation) -> None:
        self._clock, self._speculation = clock, speculation

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if iteration_stats is None:
            return
        computed = iteration_stats.prompt_token_stats.computed
        generated, now_ns = iteration_stats.num_generation_tokens, time.monotonic_ns()
        self._clock.step(computed + generated, now_ns)
        if scheduler_stats is None:
            return
        if drafted := scheduler_stats.spec_decoding_stats:
            self._speculation.count(
                drafted.num_drafts, drafted.num_draft_tokens, drafted.num_accepted_tokens
            )
        self._speculation.step(scheduler_stats.num_running_reqs, generated, now_ns)

    def log_engine_initialized(self) -> None:
        pass


def step_logger(clock: EngineClock, speculation: Speculation) -> Callable[..., StepLogger]:
    """The factory that vLLM calls with its configuration and engine index."""
    return lambda *_: StepLogger(clock, speculation)
