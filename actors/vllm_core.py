"""What outlives a vLLM engine core: the tokens that it had sent, its last words in the log."""

import os
import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

_LOG_BYTES = 16_384
_LOG_LINES = 12


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
