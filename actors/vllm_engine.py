"""vLLM as an engine: continuous batching over `AsyncLLM`, one final output a request."""

import asyncio
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.engine import Answer
from actors.turns import Turns
from pipelines.config import VLLM
from pipelines.cost import Usage
from pipelines.engine_time import EngineClock
from pipelines.errors import RowProblem, RunFailure
from pipelines.requests import Request, text_of

if TYPE_CHECKING:
    from vllm import SamplingParams

# Sampling fields that vLLM takes under the same name.
_PASSED = (
    "min_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed",
    "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip
_UNSUPPORTED = ("response_format", "tools", "tool_choice", "logprobs", "top_logprobs")
_MAX_RESTARTS = 5
_SUSPICIOUS_BYTES_PER_TOKEN = 8
"""Text this long for its context is worth tokenizing before a model is loaded for it."""
_DEATHS_BEFORE_ALONE = 2
_LONG_TEXT_BYTES = 8192
_HEADROOM = 1.125
"""Requests handed to vLLM per request that it runs, so that a slot never waits for Python."""


class VLLMEngine:
    """One vLLM engine core in a process of its own, fed row by row.

    Sizes that the configuration leaves open are those that vLLM's offline class picks for the
    device: `AsyncLLM` alone would take its online defaults, which are a fraction of them.

    Args:
        defaults: the run's sampling fields, for what a row leaves out.
        max_attempts: how often a row is generated when the engine core dies under it.
    """

    def __init__(self, config: VLLM, defaults: dict[str, Any], max_attempts: int) -> None:
        self.model = config.model
        self.clock = EngineClock()
        self.sizes: dict[str, int] = {}
        self._config = config
        self._defaults = defaults
        self._max_attempts = max_attempts
        self._ids = count()
        self._restarts = 0
        self._lock = asyncio.Lock()
        self._turns = Turns()
        # For long prompts, which would delay the answers of others on the loop; a short one is
        # done in less time than handing it over takes.
        self._tokenizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenize")

    async def start(self) -> None:
        self._set_environment()
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors.device import check_formats
        from actors.vllm_steps import step_logger

        check_formats(self._config)
        arguments = {
            "model": self._config.model,
            "revision": self._config.revision,
            # Each step's statistics come through our own logger; the default ones would print.
            "disable_log_stats": True,
            **self._config.engine_args,
        }
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(**arguments),
            usage_context=UsageContext.LLM_CLASS,
            stat_loggers=[step_logger(self.clock)],
        )
        scheduler = self._llm.vllm_config.scheduler_config
        self.sizes = {
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        }
        self._slots = asyncio.Semaphore(int(scheduler.max_num_seqs * _HEADROOM) + 1)
        self._max_model_len = self._llm.model_config.max_model_len
        self._model_defaults = self._llm.model_config.get_diff_sampling_param()
        self._tokenizer = self._llm.get_tokenizer()

    def refuse(self, request: Request) -> RowProblem | None:
        if problem := _unsupported({**self._defaults, **request.sampling}):
            return problem
        limit = self._stated_context
        if limit is None or _text_bytes(request) < _SUSPICIOUS_BYTES_PER_TOKEN * limit:
            return None
        text = "".join(text_of(m.get("content")) for m in request.messages)
        tokens = len(self._light_tokenizer(text, add_special_tokens=False)["input_ids"])
        return _too_long(tokens, limit) if tokens > limit else None

    @cached_property
    def _stated_context(self) -> int | None:
        """The context length that a local model's files or the configuration state."""
        stated = self._config.engine_args.get("max_model_len")
        file = Path(self.model, "config.json")
        if stated is None and file.is_file():
            stated = json.loads(file.read_text()).get("max_position_embeddings")
        has_tokenizer = Path(self.model, "tokenizer.json").is_file()
        return stated if isinstance(stated, int) and has_tokenizer else None

    @cached_property
    def _light_tokenizer(self) -> Any:
        """Without torch, so in a fraction of the time; the exact check comes with the engine."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(self.model)

    async def answer(self, request: Request) -> Answer:
        # Prepared when its turn is near: a whole block at once would hold up the loop.
        async with self._slots:
            prepared = await self._prepare(request)
            if isinstance(prepared, RowProblem):
                return Answer(problem=prepared)
            tokens, params = prepared
            return await self._generate(tokens, params)

    async def stop(self) -> None:
        self._tokenizing.shutdown(wait=False)
        if hasattr(self, "_llm"):
            self._llm.shutdown()
            # Its destructor would shut it down once more, when the interpreter is half gone.
            del self._llm

    def _set_environment(self) -> None:
        """CPU engines take their memory and threads from the environment, at import."""
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(int(self._config.kv_cache_gib), 1))
        # Ray sets it to the CPUs that an actor reserves, which is not what computes here.
        os.environ.pop("OMP_NUM_THREADS", None)
        if self._config.cpu_threads:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            os.environ["OMP_NUM_THREADS"] = str(self._config.cpu_threads)

    async def _prepare(self, request: Request) -> tuple[list[int], "SamplingParams"] | RowProblem:
        fields = {**self._model_defaults, **self._defaults, **request.sampling}
        if problem := _unsupported(fields):
            return problem
        try:
            if _text_bytes(request) < _LONG_TEXT_BYTES:
                tokens = self._tokenize(request)
            else:
                loop = asyncio.get_running_loop()
                tokens = await loop.run_in_executor(self._tokenizing, self._tokenize, request)
        # A chat template is a program from the model's folder: it may raise anything.
        except Exception as error:
            return RowProblem("template", f"the chat template refused the messages ({error})")
        room = self._max_model_len - len(tokens)
        if room < 1:
            return _too_long(len(tokens), self._max_model_len)
        params = _sampling_params(fields, room)
        return params if isinstance(params, RowProblem) else (tokens, params)

    def _tokenize(self, request: Request) -> list[int]:
        ids: list[int] = self._tokenizer.apply_chat_template(
            request.messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return ids

    async def _generate(self, tokens: list[int], params: "SamplingParams") -> Answer:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        for attempt in range(1, self._max_attempts + 1):
            # Whoever was there at two deaths runs alone, so that it takes nobody with it.
            turn = self._turns.alone if attempt > _DEATHS_BEFORE_ALONE else self._turns.together
            async with turn():
                llm = self._llm
                try:
                    answer = await self._once(tokens, params)
                    self._restarts = 0
                    return replace(answer, attempts=attempt)
                except (VLLMClientError, EngineGenerateError) as error:
                    problem = RowProblem("invalid_request", str(error))
                    return Answer(problem=problem, attempts=attempt)
                except EngineDeadError:
                    await self._restart(llm)
        problem = RowProblem("engine", f"the engine died {self._max_attempts} times under this row")
        return Answer(problem=problem, attempts=self._max_attempts)

    async def _once(self, tokens: list[int], params: "SamplingParams") -> Answer:
        from vllm.inputs.engine import tokens_input

        name = str(next(self._ids))
        started = time.monotonic_ns()
        self.clock.admit(name, len(tokens), started)
        computed = 0
        engine_ns = 0
        try:
            # An input of the engine's own kind: a raw prompt would take a detour by a thread.
            async for output in self._llm.generate(tokens_input(tokens), params, name):
                final = output
            completion = final.outputs[0]
            usage = Usage(len(tokens), final.num_cached_tokens or 0, len(completion.token_ids))
            computed = usage.prompt_tokens - usage.cached_prompt_tokens
        finally:
            # Also when it failed: the time that it took was not free.
            engine_ns = self.clock.finish(name, computed, time.monotonic_ns())
        if completion.finish_reason not in ("stop", "length"):
            problem = RowProblem("engine", f"generation ended with {completion.finish_reason}")
            return Answer(problem=problem, usage=usage, engine_ns=engine_ns)
        return Answer(
            response=completion.text,
            finish_reason=completion.finish_reason,
            usage=usage,
            engine_ns=engine_ns,
            ttft_s=final.metrics.first_token_latency if final.metrics else None,
            e2e_s=(time.monotonic_ns() - started) / 1e9,
        )

    async def _restart(self, dead: Any) -> None:
        """Start the engine again, once for all the rows that its death interrupted."""
        async with self._lock:
            if self._llm is not dead:
                return
            self._restarts += 1
            if self._restarts > _MAX_RESTARTS:
                raise RunFailure(
                    f"the engine of {self.model} died {self._restarts} times without an answer "
                    "between; see the logs"
                )
            dead.shutdown()
            await self.start()


def _text_bytes(request: Request) -> int:
    return sum(len(text_of(m.get("content")).encode()) for m in request.messages)


def _too_long(tokens: int, limit: int) -> RowProblem:
    return RowProblem(
        "context_length",
        f"the prompt has {tokens} tokens; the model holds {limit} with the answer. "
        "Shorten it or route it to a tier with a longer context",
    )


def _unsupported(fields: dict[str, Any]) -> RowProblem | None:
    for name in _UNSUPPORTED:
        if fields.get(name):
            return RowProblem("unsupported", f"{name} is not supported by this tier")
    if fields.get("n", 1) > 1:
        return RowProblem("unsupported", "n > 1 is not supported by this tier")
    return None


def _sampling_params(fields: dict[str, Any], room: int) -> "SamplingParams | RowProblem":
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import RequestOutputKind

    passed = {name: fields[name] for name in _PASSED if fields.get(name) is not None}
    try:
        return SamplingParams(
            max_tokens=min(fields.get("max_tokens") or room, room),
            # One object a request instead of one a step.
            output_kind=RequestOutputKind.FINAL_ONLY,
            **passed,
        )
    except (ValueError, VLLMClientError) as error:
        return RowProblem("invalid_request", str(error))
