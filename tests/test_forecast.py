"""What a run will cost, as ranges, from facts that are made up."""

import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from pipelines.cascade import Given, Next
from pipelines.forecast import Forecast, Range, Sampled, Speed, TierFacts, forecast
from pipelines.prices import NUSD, HourRate, TokenRate
from pipelines.requests import Request
from pipelines.route_config import Route
from pipelines.shadow import ladder_of
from pipelines.walks import Visit, Walk, walks, walks_before_calibration

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


def on(tier: str, request: Request | None = None, **fields: object) -> Sampled:
    request = request or ask()
    return Sampled(request, [Walk(tier, [Visit(tier, request)])], **fields)  # type: ignore[arg-type]


def of(
    sample: list[Sampled], requests: int, tiers: dict[str, TierFacts], **more: object
) -> Forecast:
    """Of an input in which nothing repeats but what the sample says."""
    rows = requests + sum(one.rows - 1 for one in sample)
    return forecast(sample, requests, rows, tiers, **more)  # type: ignore[arg-type]


def route(**fields: object) -> Route:
    checked: Route = TypeAdapter(Route).validate_python(fields)
    return checked


def test_a_sample_of_all_is_exact() -> None:
    sample = [on("a"), on("a", ask("one"))]
    found = of(sample, 2, {"a": facts(), "b": facts()})
    assert found.tiers.keys() == {"a"}, "a tier that nothing goes to is left out"
    told = found.tiers["a"]
    assert told.requests == Range.exactly(2)
    assert told.prompt_tokens == Range.exactly(4)
    assert told.completion_tokens == Range.exactly(10)
    assert told.cost_usd == Range(10 + 4 * 0.5, 14, 14), "at best the prompts are in the cache"
    assert found.cost_usd == told.cost_usd


def test_what_nobody_knows_is_neither_expected_nor_bounded() -> None:
    told = of([on("a")], 1, {"a": facts(Range(1, None, math.inf))}).cost_usd
    assert told == Range(1.5 + 1, None, math.inf)


def test_an_interval_holds_the_truth_in_nineteen_samples_of_twenty() -> None:
    rng = np.random.default_rng(0)
    texts = ["word " * int(n) for n in rng.lognormal(3, 1, 5000)]
    truth, held = sum(len(text.split()) + 5 for text in texts), 0
    for _ in range(200):
        drawn = rng.choice(len(texts), 400, replace=False)
        told = of([on("a", ask(texts[i])) for i in drawn], 5000, {"a": facts()}).cost_usd
        # The low end is that of prompts in the prefix cache.
        assert told.expected is not None
        held += told.expected - (told.high - told.expected) <= truth <= told.high
    assert 184 <= held <= 198


def test_hits_cost_nothing() -> None:
    found = of([on("a"), on("a", is_hit=True)], 100, {"a": facts()})
    assert found.hits.expected == found.tiers["a"].requests.expected == 50


def test_the_baseline_pays_for_every_row() -> None:
    sample = [on("a", rows=3), on("a", is_hit=True)]
    found = of(sample, 2, {"a": facts()}, baseline=DEAR)
    assert found.baseline_usd == Range.exactly(4 * 10 * (3 + 5))
    assert of(sample, 2, {"a": facts()}).baseline_usd is None


def test_a_gatekeeper_s_grade_is_paid_with_either_answer() -> None:
    chosen = route(policy="gatekeeper", tier="g", cheap="c", strong="s", guide="Grade.")
    request = ask()
    ways = walks(chosen, chosen, request, "g", 0)
    tiers = {"g": facts(), "c": facts(), "s": facts(rate=DEAR)}
    unknown = of([Sampled(request, ways)], 1, tiers)
    assert unknown.tiers["g"].requests == Range.exactly(1)
    assert unknown.tiers["c"].requests == unknown.tiers["s"].requests == Range(0, None, 1)
    known = of([Sampled(request, ways)], 1, tiers, shares={"c": 3, "s": 1})
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
    ways = walks(CASCADE, CASCADE, request, "c", 0)
    tiers = {"c": facts(), "v": facts(), "s": facts(rate=DEAR)}
    found = of([Sampled(request, ways)], 1, tiers, shares={"s": 1}).tiers
    assert found["c"].requests == Range.exactly(1)
    assert found["v"].requests == Range(0, 1, 1)
    assert found["s"].requests == Range(0, 1, 1)
    asked = ways[0].visits[1].asked
    assert found["v"].prompt_tokens.high == words(asked).high + 5, "it reads the answer"


def test_a_row_that_stands_on_no_ladder_has_one_walk() -> None:
    assert [walk.end for walk in walks(CASCADE, CASCADE, ask(), "s", None)] == ["s"]


def test_checks_in_the_shadow_are_those_that_the_run_will_draw() -> None:
    chosen = route(
        policy="classifier", cheap="c", strong="s", shadow_share=0.25,
        embedding={"embedder": "m"}, floor={"loss_points": 1}, quality={"by": "strong"},
    )  # fmt: skip
    ladder = ladder_of(chosen, chosen)
    assert ladder is not None
    names = [f"row {i}" for i in range(400)]
    given = [Given(0, "answer", ask(), response="x", row_id=name, tier="c") for name in names]
    checked = sum(isinstance(ladder.after(one), Next) for one in given)
    sample = [Sampled(ask(), walks(chosen, chosen, ask(), "c", 0, name)) for name in names]
    sample.append(Sampled(ask(), walks(chosen, chosen, ask(), "s", None, "row 0")))
    found = of(sample, 401, {"c": facts(), "s": facts(rate=DEAR)})
    assert 60 < checked < 140
    assert found.tiers["s"].requests == Range.exactly(checked + 1)


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
    told = of([on("a"), on("a")], 2, {"a": facts(**speed)}).tiers["a"].hours
    if hours is None:
        assert told is None
    else:
        assert told is not None
        assert (told.low, told.high) == pytest.approx((hours.low, hours.high))
        assert (told.expected is None) == (hours.expected is None)


def test_hours_of_replicas_cost_what_their_tokens_take() -> None:
    hourly = replace(facts(rate=HourRate(36 * NUSD), completion_tokens=1.0), replicas=2)
    assert of([on("a")], 1, {"a": hourly}).cost_usd.expected == pytest.approx(5 * 2 * 0.01)
    slow = facts(rate=HourRate(36 * NUSD))
    assert of([on("a")], 1, {"a": slow}).cost_usd == Range(0, None, math.inf)


def test_nothing_left_costs_nothing() -> None:
    found = of([], 0, {"a": facts()})
    assert (found.tiers, found.cost_usd) == ({}, Range.exactly(0))


def test_what_a_tier_refuses_is_not_paid() -> None:
    short = replace(facts(), refuses=lambda request: words(request).low > 2)
    found = of([on("a"), on("a", ask("one"))], 2, {"a": short}, baseline=DEAR)
    assert found.tiers["a"].requests == found.refused == Range.exactly(1)
    assert found.baseline_usd is not None
    assert found.baseline_usd.high == pytest.approx(10 * (1 + 5))


def test_what_costs_nothing_costs_nothing_however_long_it_is() -> None:
    free = facts(Range(1, None, math.inf), TokenRate(0, 0, 0))
    assert of([on("a")], 1, {"a": free}).cost_usd == Range.exactly(0)
    hourly = facts(Range(1, None, math.inf), HourRate(0))
    assert of([on("a")], 1, {"a": hourly}).cost_usd == Range.exactly(0)


def test_of_a_tier_that_is_climbed_twice_the_first_visit_may_be_the_last() -> None:
    twice = route(
        policy="cascade", steps=[{"tier": "c", "accept": [{"by": "regex", "pattern": "x"}]}],
        otherwise="c",
    )  # fmt: skip
    request = ask()
    ways = walks(twice, twice, request, "c", 0)
    found = of([Sampled(request, ways)], 1, {"c": facts()}, shares={"c": 1})
    assert found.tiers["c"].requests == Range(1, None, 2)


CERTIFIED = {"cheap": "c", "strong": "s", "quality": {"by": "strong"}, "shadow_share": 0}


@pytest.mark.parametrize(
    ("fields", "least", "most"),
    [
        ({"policy": "classifier", "embedding": {"embedder": "m"}}, "c", "s"),
        ({"policy": "certified_cascade"}, "c", "cs"),
        ({"policy": "certified_cascade", "verifier": {"tier": "v"}}, "c", "cvs"),
        ({"policy": "certified_gatekeeper", "tier": "v"}, "cv", "vs"),
    ],
)
def test_what_a_route_costs_that_has_learned_nothing_yet(
    fields: dict[str, object], least: str, most: str
) -> None:
    request = ask()
    ways = walks_before_calibration(route(**CERTIFIED, **fields), request, sampled=0.5)
    tiers = {"c": facts(), "v": facts(), "s": facts(rate=DEAR)}
    told = of([Sampled(request, ways)], 1, tiers)
    for name in "cvs":
        lows = [walk for walk in ways if any(v.tier == name and v.is_certain for v in walk.visits)]
        assert (len(lows) == len(ways)) == (name in least and name in most)
    assert told.tiers["s"].requests == Range(0, None, 1.5), "the sample may be put to it as well"
    dearest = {tier for walk in ways for tier in (visit.tier for visit in walk.visits)}
    assert dearest == set(least) | set(most)


def test_a_judge_checks_nothing_in_the_shadow() -> None:
    judged = {**CERTIFIED, "quality": {"by": "judge", "tier": "v"}, "shadow_share": None}
    chosen = route(policy="certified_cascade", **judged)
    ways = walks(CASCADE, chosen, ask(), "c", 0)
    unbounded = facts(Range(1, None, math.inf))
    found = of([Sampled(ask(), ways)], 1, {"c": unbounded, "v": unbounded, "s": unbounded})
    assert math.isinf(found.cost_usd.high)
    assert ways[0].visits[-1].tier == "v"


def test_a_verifier_reads_the_answer_that_is_judged_and_no_other() -> None:
    both = route(
        policy="cascade", otherwise="s",
        steps=[{"tier": "c", "accept": [
            {"by": "agreement", "tier": "b"}, {"by": "verifier", "tier": "v"},
        ]}],
    )  # fmt: skip
    request = ask()
    long, short = facts(Range.exactly(100)), facts(Range.exactly(5))
    ways = walks(both, both, request, "c", 0)
    tiers = {"c": long, "b": short, "v": short, "s": short}
    found = of([Sampled(request, ways)], 1, tiers).tiers["v"].prompt_tokens
    assert found.high == words(ways[0].visits[2].asked).high + 100


def test_what_is_asked_most_often_counts_as_it_is() -> None:
    """A prompt that half of all rows ask, dear as no other, beside a fifth of the others."""
    heavy = on("a", ask("word " * 95), rows=400, is_drawn=False)
    sample = [heavy, *(on("a") for _ in range(80))]
    found = forecast(sample, 401, 800, {"a": facts()}, baseline=USD)
    assert found.baseline_usd is not None
    assert found.baseline_usd.expected == pytest.approx(400 * 100 + 400 * 8)
    assert found.cost_usd.expected == pytest.approx(100 + 400 * 8)


def test_a_baseline_s_interval_holds_the_truth_where_repeats_are_uneven() -> None:
    rng, held = np.random.default_rng(1), 0
    times = np.maximum(rng.zipf(2.0, 4000), 1)
    texts = ["word " * int(n) for n in rng.integers(1, 40, 4000)]
    truth = sum(int(n) * (len(text.split()) + 5) for n, text in zip(times, texts, strict=True))
    often = set(np.argsort(-times)[:100].tolist())
    others = np.array([i for i in range(4000) if i not in often])
    for _ in range(100):
        drawn = [*often, *rng.choice(others, 300, replace=False).tolist()]
        sample = [
            on("a", ask(texts[i]), rows=int(times[i]), is_drawn=i not in often) for i in drawn
        ]
        told = forecast(sample, 4000, int(times.sum()), {"a": facts()}, baseline=USD).baseline_usd
        assert told is not None
        assert told.expected is not None
        held += told.expected - (told.high - told.expected) <= truth <= told.high
    assert held >= 88
