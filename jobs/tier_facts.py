"""What can be told of a tier's work before it does any: its tokens, lengths, speed and price."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from actors.prompt_tokens import PromptTokens
from actors.vllm_refusals import stated_context, text_bytes
from jobs.past_answers import PastAnswers
from jobs.preflight import Plan
from jobs.tuning_plans import plans_for
from pipelines.api_tier import API
from pipelines.forecast import Range, Speed, TierFacts
from pipelines.replicas import seqs
from pipelines.requests import Request
from pipelines.tier import VLLM, Engine, Scripted, Tier

_BYTES_PER_TOKEN = (6.0, 4.0, 2.0)
"""Of whole inputs: most, about, and least. English prose has over 4, code and most other languages
fewer."""
_TEMPLATE_TOKENS = 4
"""What a chat template adds to a message, about."""
_ENOUGH_ANSWERS = 30
_STANDARD_ERRORS = 1.96
_SECONDS_PER_MINUTE = 60
_NAME_ONE = "name an earlier OUTPUT with --like"

Count = Callable[[Request], Range]


def tier_facts(plan: Plan, tier: Tier, past: PastAnswers) -> TierFacts:
    """Loads the tier's tokenizer, if it is here."""
    defaults = plan.config.sampling.given()
    unknown = []
    counted = _counter(tier.engine)
    if counted is None:
        unknown.append("its tokenizer is not here; prompt tokens are guessed from bytes")
    lengths = past.completion_tokens.get(tier.name, np.empty(0))
    if len(lengths) < _ENOUGH_ANSWERS:
        unknown.append(f"nothing tells how long its answers are; {_NAME_ONE}")
        lengths = np.empty(0)
    prompt_tokens = counted or _from_bytes
    speed = _speed(plan, tier, past)
    if speed.completion_tokens is None and speed.answers is None:
        unknown.append(f"nothing tells how fast it is; {_NAME_ONE}{_or_tune(tier)}")
    return TierFacts(
        rate=plan.prices.tiers[tier.name],
        prompt_tokens=prompt_tokens,
        completion_tokens=_lengths(tier, defaults, lengths, prompt_tokens),
        speed=speed,
        replicas=tier.replica_range.max,
        unknown=tuple(unknown),
    )


def _or_tune(tier: Tier) -> str:
    return ", or run `nightmill tune`" if isinstance(tier.engine, VLLM) else ""


def _counter(engine: Engine) -> Count | None:
    """Counts a prompt's tokens as the engine will; None where that cannot be done here."""
    if isinstance(engine, Scripted):
        return lambda request: Range.exactly(
            sum(len(str(turn.get("content")).split()) for turn in request.messages)
        )
    if not isinstance(engine, VLLM):
        return None
    tokenizer = _tokenizer(engine)
    if tokenizer is None:
        return None
    tokens = PromptTokens(tokenizer)

    def counted(request: Request) -> Range:
        given = request.sampling
        template = {"tools": given.get("tools"), **given.get("chat_template_kwargs", {})}
        try:
            return Range.exactly(len(tokens(request.messages, **template)))
        except Exception:
            # A template raises whatever it likes at messages that are not to its liking.
            return _from_bytes(request)

    return counted if tokenizer.chat_template else None


def _tokenizer(engine: VLLM) -> Any | None:
    """Importing it takes seconds, of which a run without such a tier needs none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(engine.model, revision=engine.revision or "main")
    except (OSError, ValueError):
        return None


def _from_bytes(request: Request) -> Range:
    size, extra = text_bytes(request), _TEMPLATE_TOKENS * len(request.messages)
    return Range(*(size / per_token + extra for per_token in _BYTES_PER_TOKEN))


def _lengths(tier: Tier, defaults: Mapping[str, Any], past: np.ndarray, prompt: Count) -> Count:
    """How long answers are: like those before, else from one token up to their limit."""
    engine = tier.engine
    if isinstance(engine, VLLM) and engine.task != "generate":
        return lambda _: Range.exactly(0)
    context = stated_context(engine) if isinstance(engine, VLLM) else None
    mean, margin = (float(past.mean()), _margin(past)) if len(past) else (0.0, 0.0)

    def length(request: Request) -> Range:
        room = math.inf if context is None else context - prompt(request).low
        limit = _limit({**defaults, **request.sampling}, room)
        if not len(past):
            return Range(min(1, limit), None, limit)
        return Range(*(min(tokens, limit) for tokens in (mean - margin, mean, mean + margin)))

    return length


def _limit(fields: Mapping[str, Any], room: float) -> float:
    """Tokens that an answer cannot exceed."""
    if "encoding_format" in fields:
        return 0
    most = min(fields.get("max_tokens") or math.inf, max(room, 0))
    return most * (fields.get("n") or 1)


def _margin(lengths: np.ndarray) -> float:
    return _STANDARD_ERRORS * float(lengths.std()) / math.sqrt(len(lengths))


def _speed(plan: Plan, tier: Tier, past: PastAnswers) -> Speed:
    """All replicas together."""
    replicas = tier.replica_range.max
    if isinstance(tier.engine, API):
        if tier.engine.mode == "batch":
            # When a batch is done its provider alone decides.
            return Speed()
        took = past.e2e_s.get(tier.name)
        return Speed(
            answers=replicas * seqs(tier) / took if took else None,
            most_requests=_a_second(tier.engine.requests_per_minute),
            most_tokens=_a_second(tier.engine.tokens_per_minute),
        )
    one = past.tokens_per_s.get(tier.name) or _as_tuned(plan, tier)
    return Speed(completion_tokens=one and one * replicas)


def _as_tuned(plan: Plan, tier: Tier) -> float | None:
    """Of what `tune` tried and took, the fastest: it tried full batches."""
    taken = [tried for stored in plans_for(plan, tier) for tried in stored.tried if tried.taken]
    return max((tried.tokens_per_s for tried in taken), default=None)


def _a_second(per_minute: int | None) -> float | None:
    return None if per_minute is None else per_minute / _SECONDS_PER_MINUTE
