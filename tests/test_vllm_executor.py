"""What the executor asks of its workers in one step; that its answers are right, the engine's
tests show."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from actors.vllm_executor import OneCallExecutor, run_step


class Worker:
    """A worker that defers sampling, as those of generating models do."""

    def execute_model(self, step: Any) -> Any:
        return None

    def sample_tokens(self, grammar: Any) -> Any:
        return "sampled"

    def take_draft_token_ids(self) -> Any:
        return "drafts"


class Recording(OneCallExecutor):
    """The executor over a worker in this process; keeps what it was asked for."""

    kv_output_aggregator = ec_output_aggregator = None
    output_rank = 0

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def collective_rpc(self, method: Any, args: Any = (), **rest: Any) -> Any:
        self.asked.append(method)
        called = getattr(Worker(), method) if isinstance(method, str) else None
        reply: Future[Any] = Future()
        reply.set_result(called(*args) if called else method(Worker(), *args))
        return reply if rest.get("non_block") else reply.result()


def step(drafts: int = 0, grammar: bool = False) -> Any:
    return SimpleNamespace(
        num_spec_tokens_to_schedule=drafts, has_structured_output_requests=grammar
    )


@pytest.mark.parametrize("drafts", [0, 4])
def test_a_step_is_one_call(drafts: int) -> None:
    executor = Recording()
    assert executor.execute_model(step(drafts), non_block=True).result() == "sampled"
    assert executor.take_draft_token_ids() == ("drafts" if drafts else None)
    assert executor.asked == [run_step]


def test_a_grammar_is_made_between_two_calls() -> None:
    executor = Recording()
    assert executor.execute_model(step(4, grammar=True), non_block=True).result() is None
    assert executor.sample_tokens(None) == "sampled"
    assert executor.take_draft_token_ids() == "drafts"
    assert executor.asked == ["execute_model", "sample_tokens", "take_draft_token_ids"]


def test_drafts_of_an_earlier_step_are_not_taken_for_this_ones() -> None:
    executor = Recording()
    executor.execute_model(step(4))
    executor.execute_model(step(0, grammar=True))
    assert executor.take_draft_token_ids() is None
