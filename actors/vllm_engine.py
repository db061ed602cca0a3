"""vLLM as an engine: continuous batching over `AsyncLLM`, one final output a request."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from actors.admission import Admission, Admitted
from actors.engine import Answer, Say
from actors.speculation import Speculation, draft_counts
from actors.turns import Turns
from actors.vllm_answers import Reader
from actors.vllm_arguments import check_task
from actors.vllm_core import Generation, decode, kill_core, tokens_left
from actors.vllm_loading import load
from actors.vllm_refusals import StatedContext, refusal, text_bytes, too_long
from actors.vllm_requests import Ask, Translator
from actors.vllm_restarts import Restarts
from actors.vllm_speech import Speech
from pipelines.cost import Usage
from pipelines.engine_time import EngineClock, Occupancy
from pipelines.errors import RowProblem
from pipelines.requests import Request
from pipelines.tier import VLLM

logger = logging.getLogger(__name__)

_DEATHS_BEFORE_ALONE = 2
_LONG_TEXT_BYTES = 8192


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
        self._generations: dict[int, Generation] = {}
        self._aborting: set[asyncio.Future[None]] = set()
        self._config = config
        self._planned = planned or {}
        self.speculation = Speculation({**self._planned, **config.engine_args})
        self._context = StatedContext(config)
        self._defaults = defaults
        self._max_attempts = max_attempts
        self._stall_s = stall_s
        self.admission = Admission(defaults.get("max_tokens"))
        self._watchdog: asyncio.Task[None] | None = None
        self._ids = count()
        self._restarts = Restarts(config.model, self.start, self._ask_something)
        self._lock = asyncio.Lock()
        self._turns = Turns()
        # For long prompts, which would delay the answers of others on the loop; a short one is
        # done in less time than handing it over takes.
        self._tokenizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenize")

    async def start(self) -> None:
        # In a thread: loading takes long, and the loop has others to talk to meanwhile.
        self._llm = await asyncio.to_thread(
            load,
            self._config,
            self._planned,
            self.clock,
            self.occupancy,
            self.admission,
            self.speculation,
        )
        await self.speculation.attach(self._llm)
        scheduler = self._llm.vllm_config.scheduler_config
        self.sizes = {
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        }
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
        if not self._watchdog:
            # Last: rows may already stand at the door.
            self.admission.open(scheduler.max_num_seqs)
            self._watchdog = asyncio.create_task(self._watch())

    def refuse(self, request: Request) -> RowProblem | None:
        return refusal(self._config, request, self._defaults) or self._context.refuse(request)

    async def answer(self, request: Request, say: Say | None = None) -> Answer:
        admitted = await self.admission.enter(request)
        if not isinstance(admitted, Admitted):
            return admitted
        # Prepared when it goes in: a whole block at once would hold up the loop.
        with admitted:
            prepared = await self._prepare(request)
            if isinstance(prepared, RowProblem):
                return Answer(problem=prepared)
            generation = Generation(prepared, self._speech(prepared, say))
            self._generations[id(request)] = generation
            try:
                answer = await self._generate(generation)
            finally:
                self._generations.pop(id(request), None)
            if answer.problem is None:
                admitted.answered(answer.usage.completion_tokens // prepared.choices)
            return answer

    def _speech(self, ask: Ask, say: Say | None) -> Speech | None:
        """None where the text must be whole before anybody knows what of it is the answer."""
        if say is None or not ask.generates or self._reader.parses(ask):
            return None
        return Speech(say, partial(self._reader.logprobs, ask))

    def give_up(self, request: Request) -> bool:
        generation = self._generations.get(id(request))
        if generation is None or not generation.name:
            return False
        generation.given_up = True
        aborting = asyncio.ensure_future(self._llm.abort(generation.name))
        # The loop alone would not keep it.
        self._aborting.add(aborting)
        aborting.add_done_callback(self._aborting.discard)
        return True

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

    async def _prepare(self, request: Request) -> Ask | RowProblem:
        fields = {**self._model_defaults, **self._defaults, **request.sampling}
        problem = refusal(self._config, request, self._defaults)
        tokenize = self._translator.tokenize
        try:
            if problem := problem or self._translator.refuse(fields):
                return problem
            if text_bytes(request) < _LONG_TEXT_BYTES:
                prompt = tokenize(request, fields)
            else:
                loop = asyncio.get_running_loop()
                prompt = await loop.run_in_executor(self._tokenizing, tokenize, request, fields)
        # A chat template is a program from the model's folder: it may raise anything.
        except Exception as error:
            return RowProblem("template", f"the chat template refused the messages ({error})")
        room = self._max_model_len - len(prompt.tokens)
        if room < self._translator.least_room:
            return too_long(len(prompt.tokens), self._max_model_len)
        return self._translator.ask(request, fields, prompt, room)

    async def _generate(self, generation: Generation) -> Answer:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        for attempt in range(1, self._max_attempts + 1):
            # Whoever was there at two deaths runs alone, so that it takes nobody with it.
            alone = attempt > _DEATHS_BEFORE_ALONE
            async with AsyncExitStack() as stack:
                if attempt > 1 and not alone:
                    await stack.enter_async_context(self.admission.again())
                turn = self._turns.alone() if alone else self._turns.together()
                await stack.enter_async_context(turn)
                # Who comes while the engine is started again waits: that death is not its own.
                async with self._lock:
                    llm = self._llm
                if generation.given_up:
                    return generation.left()
                try:
                    answer = await self._once(generation)
                    self._restarts.answered()
                    return replace(answer, attempts=attempt)
                except (VLLMClientError, EngineGenerateError) as error:
                    problem = RowProblem("invalid_request", _reason(error))
                    return Answer(problem=problem, attempts=attempt)
                except EngineDeadError:
                    await self._restart(llm, alone)
            if generation.speech and generation.speech.begun:
                problem = RowProblem("engine", "the engine died in the middle of this answer")
                return Answer(problem=problem, attempts=attempt)
            if alone:
                break
        problem = RowProblem(
            "engine",
            f"the engine died {attempt} times under this row; its last words: "
            f"{self._restarts.last_words}",
        )
        return Answer(problem=problem, attempts=attempt)

    async def _once(self, generation: Generation) -> Answer:
        from vllm.inputs.engine import tokens_input

        llm, name, ask = self._llm, str(next(self._ids)), generation.ask
        generation.name = name
        speech = generation.speech
        submit = llm.generate if ask.generates else llm.encode
        started = time.monotonic_ns()
        prompt = ask.tokens + generation.generated
        # An input of the engine's own kind: a raw prompt would take a detour by a thread.
        told = tokens_input(prompt, cache_salt=ask.cache_salt)
        # Each choice is a sequence of its own to the engine, and has its share of the time.
        shares = [f"{name}.{i}" for i in range(ask.choices)]
        for share in shares:
            self.clock.admit(share, len(prompt), started)
        final = None
        try:
            async for output in submit(told, generation.rest(), name, **ask.options):
                final = output if speech is None else speech.heard(output)
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

    async def _restart(self, dead: Any, alone: bool) -> None:
        """Start the engine again, once for all the rows that its death interrupted.

        Args:
            alone: one row was there; its death says nothing of how many can run.
        """
        async with self._lock:
            if self._llm is not dead:
                return
            self.occupancy.deaths += 1
            if not alone:
                self.admission.limit.died()
            await self._restarts.after_death(dead, alone)

    async def _ask_something(self) -> None:
        """Of a task that cannot be asked this nothing is learned.

        Raises: EngineDeadError.
        """
        ask = await self._prepare(
            Request([{"role": "user", "content": "Hello"}], {"max_tokens": 1})
        )
        if not isinstance(ask, RowProblem):
            await self._once(Generation(ask))

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
