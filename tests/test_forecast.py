"""What a run will cost, as ranges, from facts that are made up."""

import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from pipelines.forecast import (
    Asked,
    Range,
    Speed,
    TierFacts,
    Visit,
    forecast,
    paths_of,
)
from pipelines.prices import NUSD, HourRate, TokenRate
from pipelines.requests import Request
from pipelines.route_config import Route

USD = TokenRate(1_000_000 * NUSD, 500_000 * NUSD, 1_000_000 * NUSD)
"""A dollar for each token, half for a cached one."""
FIVE = Range.exactly(5)
DEAR = replace(
    USD, input=10_000_000 * NUSD, cached_input=10_000_000 * NUSD, output=10_000_000 * NUSD
)


def words(request: Request) -> Range:
    return Range.exactly(sum(len(turn["content"].split()) for turn in request.messages))


def facts(answer: Range = FIVE, rate: TokenRate | HourRate = USD, **speed: float) -> TierFacts:
    return TierFacts(rate, words, lambda _: answer, Speed(**speed))


def ask(text: str = "one two three") -> Request:
    return Request([{"role": "user", "content": text}], {})


def on(tier: str, request: Request | None = None, **fields: object) -> Asked:
    request = request or ask()
    return Asked(request, {tier: [Visit(tier, request)]}, **fields)  # type: ignore[arg-type]


def route(**fields: object) -> Route:
    checked: Route = TypeAdapter(Route).validate_python(fields)
    return checked


def test_a_sample_of_all_is_exact() -> None:
    sample = [on("a"), on("a", ask("one"))]
    found = forecast(sample, 2, {"a": facts(), "b": facts()})
    assert found.tiers.keys() == {"a"}, "a tier that nothing goes to is left out"
    told = found.tiers["a"]
    assert told.requests == Range.exactly(2)
    assert told.prompt_tokens == Range.exactly(4)
    assert told.completion_tokens == Range.exactly(10)
    assert told.cost_usd == Range(10 + 4 * 0.5, 14, 14), "at best the prompts are in the cache"
    assert found.cost_usd == told.cost_usd


def test_what_nobody_knows_is_neither_expected_nor_bounded() -> None:
    told = forecast([on("a")], 1, {"a": facts(Range(1, None, math.inf))}).cost_usd
    assert told == Range(1.5 + 1, None, math.inf)


def test_an_interval_holds_the_truth_in_nineteen_samples_of_twenty() -> None:
    rng = np.random.default_rng(0)
    texts = ["word " * int(n) for n in rng.lognormal(3, 1, 5000)]
    truth, held = sum(len(text.split()) + 5 for text in texts), 0
    for _ in range(200):
        drawn = rng.choice(len(texts), 400, replace=False)
        told = forecast([on("a", ask(texts[i])) for i in drawn], 5000, {"a": facts()}).cost_usd
        # The low end is that of prompts in the prefix cache.
        assert told.expected is not None
        held += told.expected - (told.high - told.expected) <= truth <= told.high
    assert 184 <= held <= 198


def test_hits_cost_nothing() -> None:
    found = forecast([on("a"), on("a", is_hit=True)], 100, {"a": facts()})
    assert found.hits.expected == found.tiers["a"].requests.expected == 50


def test_the_baseline_pays_for_every_row() -> None:
    sample = [on("a", rows=3), on("a", is_hit=True)]
    found = forecast(sample, 2, {"a": facts()}, baseline=DEAR)
    assert found.baseline_usd == Range.exactly(4 * 10 * (3 + 5))
    assert forecast(sample, 2, {"a": facts()}).baseline_usd is None


def test_a_gatekeeper_s_grade_is_paid_with_either_answer() -> None:
    chosen = route(policy="gatekeeper", tier="g", cheap="c", strong="s", guide="Grade.")
    request = ask()
    paths = paths_of(chosen, chosen, request, "g", 0)
    tiers = {"g": facts(), "c": facts(), "s": facts(rate=DEAR)}
    unknown = forecast([Asked(request, paths)], 1, tiers)
    assert unknown.tiers["g"].requests == Range.exactly(1)
    assert unknown.tiers["c"].requests == unknown.tiers["s"].requests == Range(0, None, 1)
    known = forecast([Asked(request, paths)], 1, tiers, {"c": 3, "s": 1})
    assert known.tiers["s"].requests == Range(0, 0.25, 1)
    grade, cheap, strong = known.tiers["g"].cost_usd, 3 + 5, 10 * (3 + 5)
    assert known.cost_usd.expected == pytest.approx(grade.high + 0.75 * cheap + 0.25 * strong)
    assert known.cost_usd.high == grade.high + strong


CASCADE = route(
    policy="cascade",
    steps=[
        {"tier": "c", "accept": [{"by": "regex", "pattern": "x"}, {"by": "verifier", "tier": "v"}]}
    ],
    otherwise="s",
)


def test_who_is_not_accepted_may_have_failed_before_a_verifier_was_asked() -> None:
    request = ask()
    paths = paths_of(CASCADE, CASCADE, request, "c", 0)
    tiers = {"c": facts(), "v": facts(), "s": facts(rate=DEAR)}
    found = forecast([Asked(request, paths)], 1, tiers, {"s": 1}).tiers
    assert found["c"].requests == Range.exactly(1)
    assert found["v"].requests == Range(0, 1, 1)
    assert found["s"].requests == Range(0, 1, 1)
    asked = paths["c"][1].asked
    assert found["v"].prompt_tokens.high == words(asked).high + 5, "it reads the answer"


def test_a_row_that_stands_on_no_ladder_has_one_path() -> None:
    assert paths_of(CASCADE, CASCADE, ask(), "s", None).keys() == {"s"}


def test_checks_in_the_shadow_are_paid() -> None:
    chosen = route(
        policy="classifier", cheap="c", strong="s", shadow_share=0.25,
        embedding={"embedder": "m"}, floor={"loss_points": 1}, quality={"by": "strong"},
    )  # fmt: skip
    request = ask()
    kept = paths_of(chosen, chosen, request, "c", 0)
    sent = paths_of(chosen, chosen, request, "s", None)
    tiers = {"c": facts(), "s": facts(rate=DEAR)}
    found = forecast([Asked(request, kept), Asked(request, sent)], 2, tiers)
    assert found.tiers["s"].requests == Range.exactly(1.25)


@pytest.mark.parametrize(
    ("speed", "hours"),
    [
        ({"completion_tokens": 0.5}, Range.exactly(20 / 3600)),
        ({"answers": 0.1, "most_requests": 0.2}, Range.exactly(20 / 3600)),
        ({"answers": 0.1, "most_requests": 0.05}, Range.exactly(40 / 3600)),
        ({"most_tokens": 0.1}, Range(160 / 3600, None, math.inf)),
        ({}, None),
    ],
)
def test_hours_are_those_of_what_holds_a_tier_up(
    speed: dict[str, float], hours: Range | None
) -> None:
    told = forecast([on("a"), on("a")], 2, {"a": facts(**speed)}).tiers["a"].hours
    if hours is None:
        assert told is None
    else:
        assert told is not None
        assert (told.low, told.high) == pytest.approx((hours.low, hours.high))
        assert (told.expected is None) == (hours.expected is None)


def test_hours_of_replicas_cost_what_their_tokens_take() -> None:
    hourly = replace(facts(rate=HourRate(36 * NUSD), completion_tokens=1.0), replicas=2)
    assert forecast([on("a")], 1, {"a": hourly}).cost_usd.expected == pytest.approx(5 * 2 * 0.01)
    slow = facts(rate=HourRate(36 * NUSD))
    assert forecast([on("a")], 1, {"a": slow}).cost_usd == Range(0, None, math.inf)


def test_nothing_left_costs_nothing() -> None:
    found = forecast([], 0, {"a": facts()})
    assert (found.tiers, found.cost_usd) == ({}, Range.exactly(0))
