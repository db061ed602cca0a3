"""What outlives a vLLM engine core: its unfinished requests with their tokens, its last words."""

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actors.engine import GIVEN_UP, Answer
from actors.vllm_requests import Ask
from actors.vllm_speech import Speech
from pipelines.cost import Usage

if TYPE_CHECKING:
    from vllm import PoolingParams, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

_LOG_BYTES = 16_384
_LOG_LINES = 12


@dataclass
class Generation:
    """One request on its way through the engine, over the deaths that it lives to see.

    Attributes:
        speech: where the answer is said while it comes; None where nobody listens.
        generated: tokens that dead engines left; the next goes on after them.
        engine_ns: what they cost.
        name: by which the engine knows it now.
        given_up: nobody waits for it any more.
    """

    ask: Ask
    speech: Speech | None = None
    name: str = ""
    given_up: bool = False
    generated: list[int] = field(default_factory=list)
    engine_ns: int = 0

    @property
    def resumable(self) -> bool:
        """Whether what comes after some tokens does not depend on who generated them."""
        p = self.ask.params
        return self.ask.generates and self.speech is None and not (
            p.stop or p.bad_words or p.seed is not None or p.n > 1 or p.logprobs is not None
            or p.structured_outputs or p.presence_penalty or p.frequency_penalty
            or p.repetition_penalty != 1.0
        )  # fmt: skip

    def rest(self) -> "SamplingParams | PoolingParams":
        """The parameters for what is still to be generated."""
        params = self.ask.params
        if self.speech is not None:
            return self.speech.spoken(params)
        if not self.generated:
            return params
        rest = params.clone()
        rest.max_tokens = params.max_tokens - len(self.generated)
        rest.min_tokens = max(params.min_tokens - len(self.generated), 0)
        return rest

    def left(self) -> Answer:
        """What dead engines had used of a request that nobody waits for."""
        usage = Usage(len(self.ask.tokens), 0, len(self.generated))
        return Answer(problem=GIVEN_UP, usage=usage, engine_ns=self.engine_ns)

    def keep(self, generated: list[int], engine_ns: int) -> None:
        """Take over what a dead engine left, but for one token, so that there is a rest."""
        if not self.resumable:
            return
        room = self.ask.params.max_tokens - 1 - len(self.generated)
        if generated[:room]:
            self.generated += generated[:room]
            self.engine_ns += engine_ns


def tokens_left(llm: "AsyncLLM", name: str) -> list[int]:
    """The tokens of an unfinished request that had reached us when its engine died."""
    processor = llm.output_processor
    for inner in processor.external_req_ids.get(name, ()):
        state = processor.request_states.get(inner)
        if state is not None and state.detokenizer is not None:
            return list(state.detokenizer.output_token_ids)
    return []


def decode(
    tokenizer: Any, prompt: list[int], ids: list[int], params: "SamplingParams", stopped: bool
) -> str:
    """The text of tokens that more than one engine generated, as one would have sent it."""
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    request = EngineCoreRequest(
        request_id="", prompt_token_ids=prompt, mm_features=None, sampling_params=params,
        pooling_params=None, arrival_time=0.0, lora_request=None, cache_salt=None,
        data_parallel_rank=None,
    )  # fmt: skip
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    detokenizer.update(ids, stopped)
    return detokenizer.get_next_output_text(finished=True, delta=False)


def kill_core(llm: "AsyncLLM") -> None:
    """Kill an engine core and its workers, as a crash would."""
    import psutil

    for process in llm.engine_core.resources.engine_manager.processes:
        try:
            core = psutil.Process(process.pid)
            for victim in (*core.children(recursive=True), core):
                victim.kill()
        except psutil.NoSuchProcess:
            continue


def last_words() -> str:
    """The end of what this process and its engine wrote to standard error, if that is a file."""
    if not stat.S_ISREG(os.fstat(2).st_mode):
        return "not kept (standard error is no file)"
    with open("/proc/self/fd/2", "rb") as log:
        log.seek(max(os.fstat(2).st_size - _LOG_BYTES, 0))
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES:])
