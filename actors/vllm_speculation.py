"""The parts of speculation under a limit that live inside vLLM's own processes.

They hang on vLLM's official hooks `scheduler_cls` and `worker_extension_cls`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from actors.speculation import LIMIT_FILE, SpeculationLimit

_STEPS_TO_CATCH_UP = 4


class LimitedTable:
    """Batch size -> tokens to speculate, as vLLM's scheduler looks them up once a step.

    A draft model reads its own KV cache, and a step that drafts nothing leaves a gap there.
    Once `behind`, drafting would be guessing: it stays off until the cache was filled again.
    That costs a step over all contexts, so a batch that dips for a moment is not worth it.
    """

    def __init__(self, table: Sequence[int], limit: SpeculationLimit, has_gaps: bool) -> None:
        self._table, self._limit, self._has_gaps = table, limit, has_gaps
        self.behind = False
        self._wanted_steps = 0

    def should_catch_up(self, batch_size: int) -> bool:
        """Called once a step: whether drafts have been wanted for long enough."""
        missing = self.behind and self.wanted(batch_size)
        self._wanted_steps = self._wanted_steps + 1 if missing else 0
        return self._wanted_steps >= _STEPS_TO_CATCH_UP

    def wanted(self, batch_size: int) -> int:
        return min(self._table[min(batch_size, len(self._table) - 1)], self._limit.tokens)

    def __getitem__(self, batch_size: int) -> int:
        tokens = 0 if self.behind else self.wanted(batch_size)
        self.behind = self._has_gaps and tokens == 0
        return tokens


class LimitedScheduler(Scheduler):
    """vLLM's scheduler with its table under the limit."""

    def __init__(self, vllm_config: Any, **arguments: Any) -> None:
        super().__init__(vllm_config=vllm_config, **arguments)
        limit = SpeculationLimit(Path(os.environ[LIMIT_FILE]))
        # The second model runner drafts in every step, wanted or not, so it has no gaps.
        has_gaps = (
            vllm_config.speculative_config.uses_draft_kv_cache()
            and not vllm_config.use_v2_model_runner
        )
        self.dynamic_sd_lookup: Any = LimitedTable(self.dynamic_sd_lookup, limit, has_gaps)

    def schedule(self: Any, *arguments: Any) -> Any:
        requests = len(self.running) + len(self.waiting)
        if self.dynamic_sd_lookup.should_catch_up(requests):
            # Reading these few contexts once more fills both models' caches. vLLM would report
            # it as preemption, which is how it says that the KV cache is too small.
            logged, self.log_stats = self.log_stats, False
            self.reset_prefix_cache(reset_running_requests=True)
            self.log_stats = logged
            self.dynamic_sd_lookup.behind = False
        return super().schedule(*arguments)


class LimitedAsyncScheduler(LimitedScheduler, AsyncScheduler):
    """The same over the scheduler that plans a step while the one before still runs."""


def limited_scheduler(vllm_config: Any, **arguments: Any) -> Scheduler:
    """The scheduler that vLLM itself would take, under the limit."""
    asynchronous = vllm_config.scheduler_config.async_scheduling
    kind = LimitedAsyncScheduler if asynchronous else LimitedScheduler
    return kind(vllm_config=vllm_config, **arguments)


class IdleDrafter:
    """Joins vLLM's worker class: drafting costs nothing in steps that want no draft.

    vLLM would run the draft model once even then, to keep its KV cache without gaps.
    """

    def let_drafter_idle(self: Any) -> None:
        if self.use_v2_model_runner:
            return
        runner = self.model_runner
        propose = runner.propose_draft_token_ids

        def propose_if_wanted(step: Any, sampled: Any, *rest: Any) -> Any:
            if step.num_spec_tokens_to_schedule:
                return propose(step, sampled, *rest)
            if not torch.is_tensor(sampled):
                return [[] for _ in sampled]
            if runner.valid_sampled_token_count_event is not None:
                runner._copy_valid_sampled_token_count(
                    *runner.drafter.prepare_next_token_ids_padded(
                        sampled,
                        runner.requests,
                        runner.input_batch,
                        runner.discard_request_mask.gpu,
                    )
                )
            return torch.empty(len(sampled), 0, dtype=torch.int64, device=runner.device)

        runner.propose_draft_token_ids = propose_if_wanted
