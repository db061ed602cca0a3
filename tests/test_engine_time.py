import random

from pipelines.engine_time import EngineClock, StepModel


def test_shares_sum_to_the_busy_time_exactly() -> None:
    rng = random.Random(0)
    clock, now, running, paid, busy = EngineClock(), 0, [], 0, 0
    for i in range(2000):
        later = now + rng.randrange(1, 10**7)
        busy += later - now if running else 0
        now = later
        if rng.random() < 0.4 or not running:
            running.append(str(i))
            clock.admit(str(i), rng.randrange(1, 400), now)
        elif rng.random() < 0.5:
            paid += clock.finish(running.pop(rng.randrange(len(running))), 50, now)
        else:
            clock.step(len(running) + rng.randrange(300), now)
    while running:
        paid += clock.finish(running.pop(), 50, now)
    assert clock.busy_ns == busy
    assert paid == busy


def simulate(outputs: dict[str, int], prompts: dict[str, int]) -> dict[str, int]:
    """Requests that start together and leave when they have their tokens; 1 ms a step."""
    clock, now = EngineClock(), 0
    for name in outputs:
        clock.admit(name, prompts[name], now)
    left, paid = dict(outputs), {}
    for step in range(max(outputs.values())):
        now += 1_000_000
        clock.step(len(left) if step else sum(prompts[n] for n in left) + len(left), now)
        for name in [n for n, tokens in outputs.items() if tokens == step + 1]:
            paid[name] = clock.finish(name, prompts[name], now)
            del left[name]
    return paid


def test_equal_requests_pay_the_same() -> None:
    paid = simulate({"a": 50, "b": 50}, {"a": 10, "b": 10})
    assert abs(paid["a"] - paid["b"]) <= 0.02 * paid["a"]


def test_a_longer_answer_pays_more() -> None:
    paid = simulate({"short": 10, "long": 100}, {"short": 10, "long": 10})
    assert paid["long"] > 5 * paid["short"]
    assert sum(paid.values()) == 100 * 1_000_000


def test_a_longer_prompt_pays_more() -> None:
    paid = simulate({"a": 50, "b": 50}, {"a": 10, "b": 1000})
    assert paid["b"] > 1.2 * paid["a"]


def test_the_fit_finds_what_a_step_is_made_of() -> None:
    rng, model = random.Random(1), StepModel()
    for _ in range(200):
        tokens, context = rng.randrange(1, 500), rng.randrange(1, 50_000)
        model.add(tokens, context, 4_000_000 + 20_000 * tokens + 100 * context)
    fixed, per_token, per_context = model.parts(100, 10_000)
    assert abs(fixed - 4 / 7) < 0.02
    assert abs(per_token - 2 / 7) < 0.02
    assert abs(per_context - 1 / 7) < 0.02


def test_idle_time_is_nobodys() -> None:
    clock = EngineClock()
    clock.admit("a", 5, 0)
    first = clock.finish("a", 10, 100)
    clock.admit("b", 5, 1_000_000)
    assert (first, clock.finish("b", 10, 1_000_050), clock.busy_ns) == (100, 50, 150)
