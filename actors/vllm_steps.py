"""vLLM's per-step statistics, fed to those who divide its time and watch how it fares."""

import time
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from actors.admission import Admission
from actors.speculation import Speculation
from pipelines.engine_time import EngineClock, Occupancy


class StepLogger(StatLoggerBase):
    """Tells what each step computed and drafted and when it ended, how many ran and waited."""

    def __init__(
        self,
        clock: EngineClock,
        occupancy: Occupancy,
        admission: Admission,
        speculation: Speculation,
    ) -> None:
        self._clock, self._occupancy = clock, occupancy
        self._admission, self._speculation = admission, speculation

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
        step_ns = self._clock.step(computed + generated, now_ns)
        self._occupancy.generated_tokens += generated
        if scheduler_stats is None:
            return
        running = scheduler_stats.num_running_reqs
        waiting = scheduler_stats.num_waiting_reqs + self._admission.waiting
        self._occupancy.observe(running, waiting, step_ns)
        if iteration_stats.num_preempted_reqs:
            self._occupancy.preemptions += iteration_stats.num_preempted_reqs
            self._admission.limit.preempted(running)
        if drafted := scheduler_stats.spec_decoding_stats:
            self._speculation.count(
                drafted.num_drafts, drafted.num_draft_tokens, drafted.num_accepted_tokens
            )
        self._speculation.step(running, generated, now_ns)

    def log_engine_initialized(self) -> None:
        pass
