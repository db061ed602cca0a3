"""vLLM as an engine: continuous batching over `AsyncLLM`, one final output a request."""

import asyncio
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.admission import Admission, Admitted
from actors.engine import Answer
from actors.speculation import Speculation, draft_counts
from actors.turns import Turns
from actors.vllm_answers import Reader
from actors.vllm_core import decode, kill_core, last_words, tokens_left
from actors.vllm_requests import (
    Ask,
    Translator,
    check_parsers,
    check_task,
    engine_arguments,
    refusal,
)
from pipelines.config import VLLM
from pipelines.cost import Usage
from pipelines.engine_time import EngineClock, Occupancy
from pipelines.errors import RowProblem, RunFailure
from pipelines.requests import Request, text_of

if TYPE_CHECKING:
    from vllm import PoolingParams, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

_MAX_RESTARTS = 5
_SUSPICIOUS_BYTES_PER_TOKEN = 8
"""Text this long for its context is worth tokenizing before a model is loaded for it."""
_DEATHS_BEFORE_ALONE = 2
_LONG_TEXT_BYTES = 8192


@dataclass
class Generation:
    """One request on its way through the engine, over the deaths that it lives to see.

    Attributes:
        generated: tokens that dead engines left; the next goes on after them.
        engine_ns: what they cost.
    """

    ask: Ask
    generated: list[int] = field(default_factory=list)
    engine_ns: int = 0

    @property
    def resumable(self) -> bool:
        """Whether what comes after some tokens does not depend on who generated them."""
        p = self.ask.params
        return self.ask.generates and not (
            p.stop or p.bad_words or p.seed is not None or p.n > 1 or p.logprobs is not None
            or p.structured_outputs or p.presence_penalty or p.frequency_penalty
            or p.repetition_penalty != 1.0
        )  # fmt: skip

    def rest(self) -> "SamplingParams | PoolingParams":
        """The parameters for what is still to be generated."""
        params = self.ask.params
        if not self.generated:
            return params
        rest = params.clone()
        rest.max_tokens = params.max_tokens - len(self.generated)
        rest.min_tokens = max(params.min_tokens - len(self.generated), 0)
        return rest

    def keep(self, generated: list[int], engine_ns: int) -> None:
        """Take over what a dead engine left, but for one token, so that there is a rest."""
        if not self.resumable:
            return
        room = self.ask.params.max_tokens - 1 - len(self.generated)
        if generated[:room]:
            self.generated += generated[:room]
            self.engine_ns += engine_ns


class VLLMEngine:
    """One vLLM engine core in a process of its own, fed row by row.

    Sizes that the configuration leaves open are those that vLLM's offline class picks for the
    device: `AsyncLLM` alone would take its online defaults, which are a fraction of them.

    Args:
        defaults: the run's sampling fields, for what a row leaves out.
        max_attempts: how often a row is generated when the engine core dies under it.
        stall_s: an engine that has work and makes no step for so long is started again.
        planned: engine arguments that `tune` found; the configuration's own win over them.
    """

    def __init__(
        self,
        config: VLLM,
        defaults: dict[str, Any],
        max_attempts: int,
        stall_s: float,
        planned: dict[str, Any] | None = None,
    ) -> None:
        self.model = config.model
        self.clock = EngineClock()
        self.occupancy = Occupancy()
        self.sizes: dict[str, int] = {}
        self._config = config
        self._planned = planned or {}
        self.speculation = Speculation({**self._planned, **config.engine_args})
        self._defaults = defaults
        self._max_attempts = max_attempts
        self._stall_s = stall_s
        self.admission = Admission(defaults.get("max_tokens"))
        self._watchdog: asyncio.Task[None] | None = None
        self._last_words = ""
        self._ids = count()
        self._restarts = 0
        self._lock = asyncio.Lock()
        self._turns = Turns()
        # For long prompts, which would delay the answers of others on the loop; a short one is
        # done in less time than handing it over takes.
        self._tokenizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenize")

    async def start(self) -> None:
        # In a thread: loading takes long, and the loop has others to talk to meanwhile.
        self._llm = await asyncio.to_thread(self._load)
        await self.speculation.attach(self._llm)
        scheduler = self._llm.vllm_config.scheduler_config
        self.sizes = {
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        }
        if not self._watchdog:
            self.admission.open(scheduler.max_num_seqs)
            self._watchdog = asyncio.create_task(self._watch())
        self._max_model_len = self._llm.model_config.max_model_len
        self._model_defaults = self._llm.model_config.get_diff_sampling_param()
        self._tokenizer = self._llm.get_tokenizer()
        check_task(self._config, await self._llm.get_supported_tasks(), self._llm.model_config)
        self._translator = Translator(self._config, self._llm)
        self._reader = Reader(
            self._config.task, self._tokenizer, self._llm.model_config, self._translator.parser
        )
        for adapter in self._translator.adapters.values():
            # Now, because a broken adapter is the tier's fault and not that of a row.
            await self._llm.add_lora(adapter)

    def _load(self) -> "AsyncLLM":
        self._set_environment()
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors.device import check_formats
        from actors.vllm_steps import StepLogger

        check_formats(self._config)
        check_parsers(self._config)
        steps = StepLogger(self.clock, self.occupancy, self.admission, self.speculation)
        llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(**self._arguments()),
            usage_context=UsageContext.LLM_CLASS,
            stat_loggers=[lambda *_: steps],
        )
        # vLLM adds its own to ours; counting for Prometheus costs a tenth of a small step.
        llm.logger_manager.stat_loggers = llm.logger_manager.stat_loggers[:1]
        return llm

    def _arguments(self) -> dict[str, Any]:
        from vllm.platforms import current_platform

        return {
            "model": self._config.model,
            "revision": self._config.revision,
            # Compiling pays on a GPU. On a CPU it took 35 s to gain an eighth of a small model's
            # rate: who runs for hours may ask for it.
            "enforce_eager": current_platform.is_cpu(),
            # Each step's statistics come through our own logger; the default ones would print.
            "disable_log_stats": True,
            **self.speculation.arguments({**self._planned, **engine_arguments(self._config)}),
        }

    def refuse(self, request: Request) -> RowProblem | None:
        if problem := refusal(self._config, request, self._defaults):
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
        admitted = await self.admission.enter(request)
        if not isinstance(admitted, Admitted):
            return admitted
        # Prepared when it goes in: a whole block at once would hold up the loop.
        with admitted:
            prepared = await self._prepare(request)
            if isinstance(prepared, RowProblem):
                return Answer(problem=prepared)
            answer = await self._generate(Generation(prepared))
            if answer.problem is None:
                admitted.answered(answer.usage.completion_tokens // prepared.choices)
            return answer

    async def forget_prefixes(self) -> None:
        """Empty the prefix cache, so that a row costs the second time what it cost the first."""
        await self._llm.reset_prefix_cache()

    def speculation_report(self) -> dict[str, Any]:
        return self.speculation.report()

    async def stop(self) -> None:
        self._tokenizing.shutdown(wait=False)
        if self._watchdog:
            self._watchdog.cancel()
        self.speculation.close()
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

    async def _prepare(self, request: Request) -> Ask | RowProblem:
        fields = {**self._model_defaults, **self._defaults, **request.sampling}
        problem = refusal(self._config, request, self._defaults)
        if problem := problem or self._translator.refuse(fields):
            return problem
        tokenize = self._translator.tokenize
        try:
            if _text_bytes(request) < _LONG_TEXT_BYTES:
                prompt = tokenize(request, fields)
            else:
                loop = asyncio.get_running_loop()
                prompt = await loop.run_in_executor(self._tokenizing, tokenize, request, fields)
        # A chat template is a program from the model's folder: it may raise anything.
        except Exception as error:
            return RowProblem("template", f"the chat template refused the messages ({error})")
        room = self._max_model_len - len(prompt.tokens)
        if room < self._translator.least_room:
            return _too_long(len(prompt.tokens), self._max_model_len)
        return self._translator.ask(request, fields, prompt, room)

    async def _generate(self, generation: Generation) -> Answer:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        for attempt in range(1, self._max_attempts + 1):
            # Whoever was there at two deaths runs alone, so that it takes nobody with it.
            alone = attempt > _DEATHS_BEFORE_ALONE
            async with self._turns.alone() if alone else self._turns.together():
                # Who comes while the engine is started again waits: that death is not its own.
                async with self._lock:
                    llm = self._llm
                try:
                    answer = await self._once(generation)
                    self._restarts = 0
                    return replace(answer, attempts=attempt)
                except (VLLMClientError, EngineGenerateError) as error:
                    problem = RowProblem("invalid_request", _reason(error))
                    return Answer(problem=problem, attempts=attempt)
                except EngineDeadError:
                    await self._restart(llm)
            if alone:
                break
        problem = RowProblem(
            "engine",
            f"the engine died {attempt} times under this row; its last words: {self._last_words}",
        )
        return Answer(problem=problem, attempts=attempt)

    async def _once(self, generation: Generation) -> Answer:
        from vllm.inputs.engine import tokens_input

        llm, name, ask = self._llm, str(next(self._ids)), generation.ask
        submit = llm.generate if ask.generates else llm.encode
        started = time.monotonic_ns()
        prompt = ask.tokens + generation.generated
        # Each choice is a sequence of its own to the engine, and has its share of the time.
        shares = [f"{name}.{i}" for i in range(ask.choices)]
        for share in shares:
            self.clock.admit(share, len(prompt), started)
        final = None
        try:
            # An input of the engine's own kind: a raw prompt would take a detour by a thread.
            async for output in submit(
                tokens_input(prompt), generation.rest(), name, **ask.options
            ):
                final = output
        finally:
            # Also when it failed: the time that it took was not free.
            computed = len(prompt) - (final.num_cached_tokens or 0) if final else 0
            ended = time.monotonic_ns()
            engine_ns = sum(self.clock.finish(share, computed, ended) for share in shares)
            if final is None:
                generation.keep(tokens_left(llm, name), engine_ns)
        return self._answer_of(generation, final, engine_ns + generation.engine_ns, started)

    def _answer_of(
        self, generation: Generation, final: Any, engine_ns: int, started: int
    ) -> Answer:
        ask, prompt_tokens = generation.ask, len(generation.ask.tokens)
        if generation.generated:
            (completion,) = final.outputs
            stopped = completion.finish_reason == "stop"
            completion.token_ids = generation.generated + list(completion.token_ids)
            completion.text = decode(
                self._tokenizer, ask.tokens, completion.token_ids, ask.params, stopped
            )
        completions = final.outputs if ask.generates else ()
        usage = Usage(
            prompt_tokens,
            min(final.num_cached_tokens or 0, prompt_tokens),
            sum(len(completion.token_ids) for completion in completions),
        )
        metrics = getattr(final, "metrics", None)
        draft_tokens, accepted_tokens = draft_counts(completions)
        return replace(
            self._reader.read(ask, final.outputs),
            usage=usage,
            engine_ns=engine_ns,
            draft_tokens=draft_tokens,
            accepted_tokens=accepted_tokens,
            ttft_s=metrics.first_token_latency if metrics else None,
            e2e_s=(time.monotonic_ns() - started) / 1e9,
        )

    async def _restart(self, dead: Any) -> None:
        """Start the engine again, once for all the rows that its death interrupted."""
        async with self._lock:
            if self._llm is not dead:
                return
            self._restarts += 1
            self.occupancy.deaths += 1
            self._last_words = last_words()
            self.admission.limit.died()
            if self._restarts > _MAX_RESTARTS:
                raise RunFailure(
                    f"the engine of {self.model} died {self._restarts} times without an answer "
                    f"between; its last words: {self._last_words}"
                )
            await asyncio.to_thread(dead.shutdown)
            await self.start()

    async def _watch(self) -> None:
        """Kill an engine that makes no step though it has work; its rows then run again."""
        while True:
            await asyncio.sleep(min(self._stall_s / 4, 10.0))
            if self.clock.waiting_for_step_ns(time.monotonic_ns()) > self._stall_s * 1e9:
                logger.warning("no step of %s in %s s: restarting it", self.model, self._stall_s)
                kill_core(self._llm)


def _reason(error: Exception) -> str:
    """What vLLM says, and what it had been told where it does not repeat that."""
    said, cause = str(error), str(error.__cause__ or "")
    return said if cause in said else f"{said} ({cause})"


def _text_bytes(request: Request) -> int:
    return sum(len(text_of(m.get("content")).encode()) for m in request.messages)


def _too_long(tokens: int, limit: int) -> RowProblem:
    return RowProblem(
        "context_length",
        f"the prompt has {tokens} tokens; the model holds {limit} with the answer. "
        "Shorten it or route it to a tier with a longer context",
    )
