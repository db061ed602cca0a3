"""vLLM's per-step statistics, fed to the clock that divides the engine's time among rows."""

import time
from collections.abc import Callable
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from pipelines.engine_time import EngineClock


class StepLogger(StatLoggerBase):
    """Tells an `EngineClock` what each step computed and when it ended."""

    def __init__(self, clock: EngineClock) -> None:
        self._clock = clock

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
        self._clock.step(computed + iteration_stats.num_generation_tokens, time.monotonic_ns())

    def log_engine_initialized(self) -> None:
        pass


def step_logger(clock: EngineClock) -> Callable[..., StepLogger]:
    """The factory that vLLM calls with its configuration and engine index."""
    return lambda *_: StepLogger(clock)
