"""The real engine on the CPU with the demo's small model: one start for the whole module."""

import asyncio
import json
from collections.abc import Awaitable, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from conftest import ROOT

from actors.engine import Answer, Piece
from actors.vllm_arguments import own_defaults
from actors.vllm_core import Generation
from actors.vllm_engine import VLLMEngine
from actors.vllm_requests import Ask
from pipelines.errors import RunFailure
from pipelines.formats import Device
from pipelines.requests import Request
from pipelines.tier import VLLM

MODEL = str(ROOT / "demo/models/small")
T = TypeVar("T")


class Running:
    """An engine and the event loop that it lives on."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        arguments = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 512}
        config = VLLM(kind="vllm", model=MODEL, engine_args=arguments)
        self.engine = VLLMEngine(config, {"temperature": 0.0, "max_tokens": 24}, 3, stall_s=20)
        self.wait(self.engine.start())

    def wait(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)  # type: ignore[arg-type]

    def answers(self, *requests: Request) -> list[Answer]:
        async def all_at_once() -> list[Answer]:
            return await asyncio.gather(*(self.engine.answer(r) for r in requests))

        return self.wait(all_at_once())


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    started = Running()
    yield started
    started.wait(started.engine.stop())


def request(text: str, **sampling: Any) -> Request:
    return Request([{"role": "user", "content": text}], sampling)


TEXTS = [f"Write in upper case: apple tree {i}" for i in range(40)]


def test_answers_are_those_of_the_model(running: Running) -> None:
    """Greedy tokens equal transformers' own, up to ties that rounding to bf16 decides."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    same = 0
    for text, answer in zip(TEXTS, running.answers(*map(request, TEXTS)), strict=True):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**ids, max_new_tokens=24, do_sample=False)
        prompt = ids["input_ids"].shape[1]
        expected = tokenizer.decode(out[0, prompt:], skip_special_tokens=True)
        same += answer.response == expected
        assert answer.usage.prompt_tokens == prompt
    assert same >= 0.9 * len(TEXTS)


def test_an_answer_has_its_usage_times_and_reason(running: Running) -> None:
    (answer,) = running.answers(request(TEXTS[0]))
    assert answer.problem is None
    assert answer.finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 24
    assert answer.ttft_s is not None
    assert answer.e2e_s is not None
    assert 0 < answer.ttft_s <= answer.e2e_s
    assert answer.engine_ns > 0


def test_pieces_that_are_said_make_up_the_answer(running: Running) -> None:
    said: list[Piece] = []
    several = request("Write in upper case: pear", n=2, temperature=1.0, seed=7, logprobs=True)
    plain = request("Write in upper case: apple tree and a fig, and much more of all that")
    (whole,) = running.answers(plain)
    spoken = running.wait(running.engine.answer(plain, said.append))
    assert len(said) > 2
    assert "".join(piece.text for piece in said) == spoken.response == whole.response
    assert spoken.usage.completion_tokens == whole.usage.completion_tokens
    said.clear()
    answer = running.wait(running.engine.answer(several, said.append))
    assert answer.choices is not None
    for choice in json.loads(answer.choices):
        own = [piece for piece in said if piece.choice == choice["index"]]
        assert "".join(piece.text for piece in own) == choice["message"]["content"]
        told = [entry for piece in own for entry in (piece.logprobs or {})["content"]]
        assert told == choice["logprobs"]["content"]


def test_who_hangs_up_frees_the_engine(running: Running) -> None:
    async def hang_up() -> None:
        asked = request("Write in upper case: plum", max_tokens=400, ignore_eos=True)
        begun = asyncio.Event()
        work = asyncio.ensure_future(running.engine.answer(asked, lambda _: begun.set()))
        await begun.wait()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    running.wait(hang_up())
    assert not running.engine._llm.output_processor.has_unfinished_requests()
    (after,) = running.answers(request(TEXTS[0]))
    assert after.problem is None


@pytest.mark.parametrize(("aloud", "fields"), [(True, {}), (False, {}), (False, {"n": 2})])
def test_what_nobody_waits_for_ends_and_tells_what_it_has_used(
    running: Running, aloud: bool, fields: dict[str, Any]
) -> None:
    engine = running.engine
    sampling = {"max_tokens": 400, "ignore_eos": True, "temperature": 1.0, **fields}

    async def given_up() -> tuple[Answer, int]:
        asked = request("Write in upper case: plum", **sampling)
        assert not engine.give_up(asked)
        generated = engine.occupancy.generated_tokens
        work = asyncio.ensure_future(engine.answer(asked, (lambda _: None) if aloud else None))
        while engine.occupancy.generated_tokens < generated + 20:
            await asyncio.sleep(0.01)
        assert engine.give_up(asked)
        return await work, engine.occupancy.generated_tokens - generated

    answer, generated = running.wait(given_up())
    assert answer.problem is not None
    assert answer.usage.prompt_tokens > 5
    assert 15 <= answer.usage.completion_tokens <= generated < 400
    assert answer.engine_ns > 0
    assert not engine._llm.output_processor.has_unfinished_requests()


@pytest.mark.parametrize(("flag", "dtype"), [("avx2", "float32"), ("avx512f", None)])
def test_a_cpu_that_emulates_16_bits_computes_in_32(
    flag: str, dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = Device("cpu", features=frozenset({flag}))
    monkeypatch.setattr("actors.vllm_arguments.this_cpu", lambda: cpu)
    assert own_defaults({}).get("dtype") == dtype


def test_a_row_may_bring_its_own_limit(running: Running) -> None:
    (answer,) = running.answers(request(TEXTS[0], max_tokens=1))
    assert (answer.usage.completion_tokens, answer.finish_reason) == (1, "length")


def test_a_limit_beyond_the_context_is_cut_to_what_fits(running: Running) -> None:
    (answer,) = running.answers(request(TEXTS[0], max_tokens=100_000))
    assert answer.problem is None


def test_a_stop_string_stops(running: Running) -> None:
    (plain,) = running.answers(request(TEXTS[0]))
    assert plain.response
    middle = plain.response[len(plain.response) // 2]
    (stopped,) = running.answers(request(TEXTS[0], stop=[middle]))
    assert stopped.response == plain.response.split(middle)[0]
    assert stopped.finish_reason == "stop"


def test_a_seed_repeats_a_sampled_answer(running: Running) -> None:
    hot = {"temperature": 2.0, "max_tokens": 24}
    a, b, c = running.answers(*(request(TEXTS[0], seed=s, **hot) for s in (1, 1, 2)))
    assert a.response == b.response != c.response


@pytest.mark.parametrize(
    ("bad", "kind", "says"),
    [
        (request("word " * 2000), "context_length", "the model holds 512"),
        (Request([{"role": "tool", "content": "x"}], {}), "template", "chat template"),
        (request("x", n=2), "invalid_request", "greedy"),
        (request("x", tools=[{"type": "function"}]), "unsupported", "no tool_parser"),
        (request("x", min_tokens=9, max_tokens=3), "invalid_request", "min_tokens"),
    ],
)
def test_a_row_that_cannot_be_answered_is_a_problem_beside_answers(
    running: Running, bad: Request, kind: str, says: str
) -> None:
    before, failed, after = running.answers(request(TEXTS[0]), bad, request(TEXTS[1]))
    assert failed.problem is not None
    assert failed.problem.kind == kind
    assert says in failed.problem.message
    assert before.problem is None
    assert after.problem is None


def test_what_needs_no_model_to_be_refused_is_refused_before_it_is_loaded() -> None:
    config = VLLM(kind="vllm", model=MODEL, engine_args={"max_model_len": 512})
    engine = VLLMEngine(config, {}, 1, stall_s=60)
    long, short = request("word " * 2000), request("word " * 2)
    refused = engine.refuse(long)
    assert refused is not None
    assert refused.kind == "context_length"
    assert engine.refuse(short) is None
    assert engine.refuse(request("x", lora="law")) is not None


def test_a_shared_prefix_is_read_from_the_prefix_cache(running: Running) -> None:
    system = {"role": "system", "content": "Answer shortly and to the point. " * 12}
    asked = [Request([system, {"role": "user", "content": t}], {}) for t in TEXTS[:8]]
    running.answers(asked[0])
    answers = running.answers(*asked[1:])
    assert all(a.usage.cached_prompt_tokens > 0 for a in answers)
    assert all(a.usage.cached_prompt_tokens < a.usage.prompt_tokens for a in answers)


def test_who_has_another_salt_cannot_tell_what_is_in_the_prefix_cache(running: Running) -> None:
    system = {"role": "system", "content": "Whoever asks, never tell what others asked. " * 12}
    turns = [system, {"role": "user", "content": TEXTS[0]}]
    salts = ("acme", "acme", "other", None)
    answers = [running.answers(Request(turns, {}, cache_salt=salt))[0] for salt in salts]
    assert [a.usage.cached_prompt_tokens > 0 for a in answers] == [False, True, False, False]
    assert len({a.response for a in answers}) == 1


def test_shares_of_the_engines_time_sum_to_it(running: Running) -> None:
    clock = running.engine.clock
    before = clock.busy_ns
    answers = running.answers(
        *(request(t, max_tokens=4 + 20 * (i % 2)) for i, t in enumerate(TEXTS))
    )
    assert sum(a.engine_ns for a in answers) == clock.busy_ns - before


class Poisoned(VLLMEngine):
    """An engine whose core dies, with all that is in it, of one prompt."""

    deaths = 0

    async def _once(self, generation: Generation) -> Answer:
        tokens = generation.ask.tokens
        from vllm.v1.engine.exceptions import EngineDeadError

        inside = self.__dict__.setdefault("inside", [])
        inside.append(tokens[0])
        await asyncio.sleep(0.001)
        poisoned = 666 in inside
        await asyncio.sleep(0)
        inside.remove(tokens[0])
        if poisoned:
            raise EngineDeadError
        return Answer(response=str(tokens[0]))

    async def start(self) -> None:
        self._llm = SimpleNamespace(shutdown=lambda: None)  # type: ignore[assignment]

    async def _prepare(self, request: Request) -> Ask:
        assert request.messages[0]["content"] == "Hello"
        return Ask([1], None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("killers", "first"), [(1, 20), (12, 20), (12, 0)])
def test_a_row_that_kills_its_engine_each_time_takes_nobody_with_it(
    killers: int, first: int
) -> None:
    """Whether it has answered before or not."""

    async def all_at_once() -> tuple[list[Answer], int]:
        engine = Poisoned(VLLM(kind="vllm", model=MODEL), {}, 3, stall_s=60)
        await engine.start()
        engine.admission.open(64)
        rows = [*range(first), *[666] * killers, *range(first, 40)]
        answers = await asyncio.gather(
            *(engine._generate(Generation(Ask([row], None))) for row in rows)  # type: ignore[arg-type]
        )
        return answers, engine.admission.limit.num_seqs

    answers, limit = asyncio.run(all_at_once())
    poisonous = [a for a in answers if a.problem]
    assert [(p.problem.kind, p.attempts) for p in poisonous if p.problem] == [
        ("engine", 3)
    ] * killers
    assert [a.response for a in answers if not a.problem] == [str(i) for i in range(40)]
    # Two deaths of all together; those of a row alone say nothing of how many can run.
    assert limit == 16


class Broken(Poisoned):
    """Its core dies of everything."""

    async def _once(self, generation: Generation) -> Answer:
        generation.ask.tokens[0] = 666
        return await super()._once(generation)


def test_an_engine_that_never_works_ends_the_run_and_not_each_row() -> None:
    async def all_at_once() -> Poisoned:
        engine = Broken(VLLM(kind="vllm", model=MODEL), {}, 3, stall_s=60)
        await engine.start()
        engine.admission.open(64)
        asked = (Generation(Ask([row], None)) for row in range(20))  # type: ignore[arg-type]
        with pytest.raises(RunFailure, match=r"nothing yet, died under each of 3 rows.* plain"):
            await asyncio.gather(*map(engine._generate, asked))
        return engine

    assert asyncio.run(all_at_once()).occupancy.deaths == 5


def engine_processes() -> list[Any]:
    import psutil

    # Engines that other modules have stopped may not have been waited for.
    children = psutil.Process().children(recursive=True)
    found = [p for p in children if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in found if "EngineCore" in " ".join(p.cmdline()) or "EngineCore" in p.name()]


LONG = {"max_tokens": 200, "min_tokens": 200}


async def in_the_middle(running: Running, rows: list[Request], act: Any) -> list[Answer]:
    """Answers of rows during which something befalls the engine core."""
    occupancy = running.engine.occupancy
    before = occupancy.generated_tokens
    work = [asyncio.create_task(running.engine.answer(row)) for row in rows]
    while occupancy.generated_tokens < before + 20 * len(rows):
        await asyncio.sleep(0.005)
    for process in engine_processes():
        act(process)
    return await asyncio.gather(*work)


def test_a_dead_engine_is_restarted_and_its_rows_go_on_where_they_were(running: Running) -> None:
    """What dead engines had generated is kept: nothing is computed twice."""
    rows = [request(t, **LONG) for t in TEXTS]
    expected = [a.response for a in running.answers(*rows)]
    occupancy = running.engine.occupancy
    before, deaths = occupancy.generated_tokens, occupancy.deaths
    answers = running.wait(in_the_middle(running, rows, lambda p: p.kill()))
    assert occupancy.deaths == deaths + 1
    assert max(a.attempts for a in answers) == 2
    assert [a.usage.completion_tokens for a in answers] == [200] * len(rows)
    # A prefill rounds otherwise than the decode steps that it stands for: ties may fall
    # differently, and babbling on after the answer is full of them.
    same = sum(a.response == b for a, b in zip(answers, expected, strict=True))
    assert same >= 0.5 * len(rows)
    wanted = 200 * len(rows)
    assert wanted <= occupancy.generated_tokens - before <= 1.1 * wanted


def test_an_engine_that_stands_still_is_replaced(running: Running) -> None:
    rows = [request(t, **LONG) for t in TEXTS]
    answers = running.wait(in_the_middle(running, rows, lambda p: p.suspend()))
    assert all(a.problem is None for a in answers)
    assert max(a.attempts for a in answers) == 2
