"""vLLM's per-step statistics, fed to those who divide its time and watch how full it is."""

import time
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from actors.admission import Admission
from pipelines.engine_time import EngineClock, Occupancy


class StepLogger(StatLoggerBase):
    """Tells what each step computed and when it ended, and how many ran and waited."""

    def __init__(self, clock: EngineClock, occupancy: Occupancy, admission: Admission) -> None:
        self._clock, self._occupancy, self._admission = clock, occupancy, admission

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
        generated = iteration_stats.num_generation_tokens
        step_ns = self._clock.step(computed + generated, time.monotonic_ns())
        self._occupancy.generated_tokens += generated
        if scheduler_stats is None:
            return
        running = scheduler_stats.num_running_reqs
        waiting = scheduler_stats.num_waiting_reqs + self._admission.waiting
        self._occupancy.observe(running, waiting, step_ns)
        if iteration_stats.num_preempted_reqs:
            self._occupancy.preemptions += iteration_stats.num_preempted_reqs
            self._admission.limit.preempted(running)

    def log_engine_initialized(self) -> None:
        pass
