"""What can be told of a tier's work before it does any: its tokens, lengths, speed and price."""

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from actors.hardware import hardware
from actors.vllm_prompts import Prompts
from actors.vllm_refusals import refusal, stated_context, text_bytes
from jobs.past_answers import PastAnswers
from jobs.preflight import Plan
from jobs.tuning_plans import plans_for
from pipelines.api_tier import API
from pipelines.forecast import STANDARD_ERRORS, Range, Speed, TierFacts
from pipelines.requests import Request
from pipelines.route_config import Cascade, Route
from pipelines.tier import VLLM, Engine, Scripted, Tier

_BYTES_PER_TOKEN = (6.0, 4.0, 2.0)
"""Of whole inputs: most, about, and least. English prose has over 4, code and most other languages
fewer."""
_TEMPLATE_TOKENS = 4
"""What a chat template adds to a message, about."""
_ENOUGH_ANSWERS = 30
_SECONDS_PER_MINUTE = 60
_NAME_ONE = "name an earlier OUTPUT with --like"

Tokens = Callable[[Request], Range]


def tier_facts(plan: Plan, tier: Tier, past: PastAnswers, requests: float) -> TierFacts:
    """Loads the tier's tokenizer, if it is here.

    Args:
        requests: that it will get, about: the fewer, the less their mean length is that of others.
    """
    engine, unknown = tier.engine, []
    defaults = plan.config.sampling.given()
    prompt_tokens = _counted(engine, defaults)
    if prompt_tokens is None:
        unknown.append("its tokenizer is not here; prompt tokens are guessed from bytes")
        prompt_tokens = _guessed(defaults)
    generates = not isinstance(engine, VLLM) or engine.task == "generate"
    lengths = past.completion_tokens[tier.name]
    may_be_refused = _may_be_refused(plan.route, tier)
    if generates and len(lengths) < _ENOUGH_ANSWERS:
        bound = "" if "max_tokens" in defaults else "bound them by sampling.max_tokens, or "
        unknown.append(f"nothing tells how long its answers are; {bound}{_NAME_ONE}")
    elif generates and may_be_refused:
        unknown.append("nothing tells how long its answers are that were not taken")
    context = _context(engine)
    limit = _limits(engine, defaults, context, prompt_tokens)
    speed = _speed(plan, tier, past)
    if speed.completion_tokens is None and speed.answers is None:
        unknown.append(f"nothing tells how fast it is{_speed_remedy(engine)}")
    return TierFacts(
        rate=plan.prices.tiers[tier.name],
        prompt_tokens=prompt_tokens,
        completion_tokens=_lengths(lengths, limit, requests, may_be_refused)
        if generates
        else lambda _: Range.exactly(0),
        speed=speed,
        refuses=_refuses(engine, defaults, context, prompt_tokens),
        replicas=tier.replica_range.max,
        unknown=tuple(unknown),
    )


def _may_be_refused(route: Route, tier: Tier) -> bool:
    """Whether answers of this tier may end in no row, and so be unlike those that are known."""
    return isinstance(route, Cascade) and tier.name != route.otherwise


def _context(engine: Engine) -> float:
    """Tokens that a prompt and its answer may have together; infinite where that is not known."""
    if not isinstance(engine, VLLM):
        return math.inf
    stated = stated_context(engine)
    if stated is not None:
        return stated
    from transformers import AutoConfig

    found = _from_files(AutoConfig, engine.model, engine)
    told = getattr(found and found.get_text_config(), "max_position_embeddings", None)
    return told or math.inf


def _refuses(
    engine: Engine, defaults: Mapping[str, Any], context: float, prompt_tokens: Tokens
) -> Callable[[Request], bool]:
    if not isinstance(engine, VLLM):
        return lambda _: False
    least_room = 1 if engine.task == "generate" else 0

    def refuses(request: Request) -> bool:
        if refusal(engine, request, defaults) is not None:
            return True
        return prompt_tokens(request).low + least_room > context

    return refuses


def _counted(engine: Engine, defaults: Mapping[str, Any]) -> Tokens | None:
    """Counts a prompt's tokens as the engine will; None where that cannot be done here."""
    if isinstance(engine, Scripted):
        return lambda request: Range.exactly(
            sum(len(str(turn.get("content")).split()) for turn in request.messages)
        )
    if not isinstance(engine, VLLM):
        return None
    tokenizer = _tokenizer(engine)
    if tokenizer is None or (engine.task == "generate" and not tokenizer.chat_template):
        return None
    prompts = Prompts(tokenizer, engine.task, use_sep_token=bool(tokenizer.sep_token))
    guessed = _guessed(defaults)

    def counted(request: Request) -> Range:
        try:
            prompt = prompts.read(request, {**defaults, **request.sampling})
        except Exception:
            # A template raises whatever it likes at messages that are not to its liking.
            return guessed(request)
        return Range.exactly(len(prompt.tokens))

    return _once(counted)


def _once(counted: Tokens) -> Tokens:
    """Each request is looked at from several sides; a long one takes a while to count."""
    known: dict[int, tuple[Request, Range]] = {}

    def once(request: Request) -> Range:
        # With the request, so that no other one gets its number.
        if id(request) not in known:
            known[id(request)] = request, counted(request)
        return known[id(request)][1]

    return once


def _tokenizer(engine: VLLM) -> Any | None:
    """Importing it takes seconds, of which a run without such a tier needs none."""
    from transformers import AutoTokenizer

    return _from_files(AutoTokenizer, engine.engine_args.get("tokenizer", engine.model), engine)


def _from_files(kind: Any, named: str, engine: VLLM) -> Any | None:
    """What `transformers` reads of a model without the network; None where it is not here."""
    # Left unsaid it would be asked for at a terminal.
    trusted = bool(engine.engine_args.get("trust_remote_code", False))
    try:
        return kind.from_pretrained(
            named,
            revision=engine.revision or "main",
            local_files_only=True,
            trust_remote_code=trusted,
        )
    except (OSError, ValueError, ImportError):
        return None


def _guessed(defaults: Mapping[str, Any]) -> Tokens:
    def guessed(request: Request) -> Range:
        tools = {**defaults, **request.sampling}.get("tools")
        calls = [turn["tool_calls"] for turn in request.messages if "tool_calls" in turn]
        size = text_bytes(request) + sum(len(json.dumps(each)) for each in (tools, calls) if each)
        extra = _TEMPLATE_TOKENS * len(request.messages)
        return Range(*(size / per_token + extra for per_token in _BYTES_PER_TOKEN))

    return guessed


def _limits(
    engine: Engine, defaults: Mapping[str, Any], context: float, prompt_tokens: Tokens
) -> Callable[[Request], float]:
    """Tokens that an answer cannot exceed."""
    unlimited = math.inf
    if isinstance(engine, API) and engine.dialect == "anthropic":
        unlimited = engine.default_max_tokens

    def limit(request: Request) -> float:
        fields = {**defaults, **request.sampling}
        if "encoding_format" in fields:
            return 0
        room = max(context - prompt_tokens(request).low, 0)
        return min(fields.get("max_tokens") or unlimited, room) * (fields.get("n") or 1)

    return limit


def _lengths(
    past: np.ndarray, limit: Callable[[Request], float], requests: float, may_be_refused: bool
) -> Tokens:
    """Like those before, as far as the limit lets them; else from one token up to it.

    Args:
        may_be_refused: answers that were not taken may be longer than those before.
    """

    @lru_cache(maxsize=1024)
    def alike(most: float) -> Range:
        cut = np.minimum(past, most)
        apart = STANDARD_ERRORS * cut.std() * math.sqrt(1 / len(cut) + 1 / max(requests, 1))
        mean = float(cut.mean())
        return Range(
            max(mean - apart, 0), mean, most if may_be_refused else min(mean + apart, most)
        )

    def length(request: Request) -> Range:
        most = limit(request)
        if len(past) >= _ENOUGH_ANSWERS:
            return alike(most)
        least = min(1, most)
        return Range(least, most if least == most else None, most)

    return length


def _speed(plan: Plan, tier: Tier, past: PastAnswers) -> Speed:
    """All replicas together."""
    engine, replicas = tier.engine, tier.replica_range.max
    answers = past.requests_per_s.get(tier.name)
    if isinstance(engine, API):
        if engine.mode == "batch":
            # When a batch is done its provider alone decides.
            return Speed()
        return Speed(
            answers=answers and answers * replicas,
            most_requests=_a_second(engine.requests_per_minute),
            most_tokens=_a_second(engine.tokens_per_minute),
        )
    one = past.tokens_per_s.get(tier.name) or _as_tuned(plan, tier)
    if one is None:
        return Speed(answers=answers and answers * replicas)
    return Speed(completion_tokens=one * replicas)


def _as_tuned(plan: Plan, tier: Tier) -> float | None:
    """Of what `tune` tried here and took, the fastest: it tried full batches. What it measured on
    other machines says nothing of this one."""
    here = [stored for stored in plans_for(plan, tier) if stored.subject.hardware == hardware()]
    taken = [tried.tokens_per_s for stored in here for tried in stored.tried if tried.taken]
    return max(taken, default=None)


def _speed_remedy(engine: Engine) -> str:
    if isinstance(engine, VLLM) and engine.task == "generate":
        return f"; {_NAME_ONE}, or run `nightmill tune` here"
    if isinstance(engine, API) and engine.mode == "batch":
        return ": its provider decides that"
    return f"; {_NAME_ONE}"


def _a_second(per_minute: int | None) -> float | None:
    return None if per_minute is None else per_minute / _SECONDS_PER_MINUTE
