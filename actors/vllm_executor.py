"""vLLM's executor with one call to its workers a step, where vLLM makes two or three.

Without asynchronous scheduling, as on a CPU, each step asks the worker processes to run the
model, then to sample, then for the drafts of the next step, and waits for each reply. For a
small model these waits are a third of the step.
"""

from concurrent.futures import Future
from typing import Any

from vllm.envs import VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS as TIMEOUT_S
from vllm.v1.executor.multiproc_executor import MultiprocExecutor


class OneCallExecutor(MultiprocExecutor):
    """Runs, samples and drafts in one call, unless a grammar has to be made between them."""

    _drafts: Any = None

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        self._drafts = None
        self._wants_drafts = scheduler_output.num_spec_tokens_to_schedule > 0
        if scheduler_output.has_structured_output_requests or self.kv_output_aggregator:
            self._called_once = False
            return super().execute_model(scheduler_output, non_block)
        self._called_once = True
        called = self.collective_rpc(
            run_step,
            args=(scheduler_output, self._wants_drafts),
            unique_reply_rank=self.output_rank,
            non_block=True,
            timeout=TIMEOUT_S,
        )
        step = _Step(self, called)
        return step if non_block else step.result()

    def take_draft_token_ids(self) -> Any:
        """Also where it takes a call: only after a step that wanted some."""
        if self._called_once or not self._wants_drafts:
            return self._drafts
        return super().take_draft_token_ids()


class _Step(Future[Any]):
    """The model's output of a step; its drafts go to the executor."""

    def __init__(self, executor: OneCallExecutor, called: Any) -> None:
        super().__init__()
        self._executor, self._called = executor, called

    def result(self, timeout: float | None = None) -> Any:
        output, self._executor._drafts = self._called.result(timeout)
        return output


def run_step(worker: Any, scheduler_output: Any, wants_drafts: bool) -> tuple[Any, Any]:
    """A step inside a worker: the model's output and, if wanted, the next step's drafts."""
    output = worker.execute_model(scheduler_output)
    if output is None:
        output = worker.sample_tokens(None)
    return output, worker.take_draft_token_ids() if wants_drafts else None
