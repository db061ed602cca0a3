import numpy as np
import pytest

from actors.in_flight import Arrival, InFlight, Lead

SCOPE, OTHER = b"s" * 16, b"o" * 16


def vector(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)


def arrival(key: str, angle: float, threshold: float | None = 0.98, **more: object) -> Arrival:
    fields = {"scope": SCOPE, "text": key, "chosen": False, **more}
    return Arrival(key, vector=vector(angle), threshold=threshold, **fields)  # type: ignore[arg-type]


def never(*_: str) -> None:
    return None


def followed(leads: list[Lead | None]) -> list[str | None]:
    return [lead.key if lead else None for lead in leads]


def test_a_burst_is_led_by_its_first_row_within_a_call_and_between_calls() -> None:
    rows = InFlight(never, 0.98)
    assert followed(rows.join([arrival("a", 0.0), arrival("b", 0.1)])) == [None, "a"]
    assert followed(rows.join([arrival("c", 0.05), arrival("d", 1.0)])) == ["a", None]


def test_nobody_follows_a_follower() -> None:
    """It has no answer of its own, and the similarities of a chain do not add up."""
    rows = InFlight(never, 0.98)
    leads = rows.join([arrival("a", 0.0), arrival("b", 0.19), arrival("c", 0.38)])
    assert followed(leads) == [None, "a", None]


@pytest.mark.parametrize(
    "second", [arrival("b", 0.0, scope=OTHER), arrival("b", 0.3)], ids=["another scope", "too far"]
)
def test_strangers_have_no_lead(second: Arrival) -> None:
    assert InFlight(never, 0.98).join([arrival("a", 0.0), second]) == [None, None]


@pytest.mark.parametrize(
    ("second", "use"),
    [
        (arrival("b", 0.0, threshold=None), "trial"),
        (arrival("b", 0.1, threshold=0.999), "trial"),
        (arrival("b", 0.0, chosen=True), "audit"),
    ],
    ids=["closed group", "below the threshold", "chosen for an audit"],
)
def test_who_is_only_compared_with_its_lead_may_lead_others(second: Arrival, use: str) -> None:
    rows = InFlight(never, 0.98)
    lead = rows.join([arrival("a", 0.4), arrival("x", 0.0), second])[2]
    assert lead
    assert (lead.key, lead.action) == ("x", use)
    assert followed(rows.join([arrival("c", float(np.arcsin(second.vector[1])))]))[0] in ("x", "b")


def test_answers_are_kept_while_their_rows_are_known() -> None:
    rows = InFlight(never, 0.98, capacity=10)
    rows.join([arrival("r0", 0.0)])
    rows.answered({"r0": "yes"})
    assert rows.answers(["r0", "r1"]) == {"r0": "yes"}
    for i in range(1, 21):
        rows.join([arrival(f"r{i}", 0.25 * i)])
    assert rows.answers(["r0"]) == {}


def test_a_conflict_leaves_the_next_nearest() -> None:
    rows = InFlight(lambda cached, _: "numbers" if cached == "near" else None, 0.98)
    # Both lead, because either conflicts with the other.
    rows.join([arrival("near", 0.0)])
    rows.join([arrival("far", 0.15, threshold=None)])
    assert followed(rows.join([arrival("c", 0.02)])) == ["far"]


def test_a_row_that_comes_again_leads_again() -> None:
    rows = InFlight(never, 0.98)
    rows.join([arrival("x", 0.0), arrival("a", 1.0)])
    assert followed(rows.join([arrival("a", 1.0), arrival("x", 0.0)])) == [None, None]
    assert followed(rows.join([arrival("y", 1.0)])) == ["a"]


def test_the_oldest_are_forgotten_first() -> None:
    rows = InFlight(never, 0.98, capacity=10)
    for i in range(21):
        rows.join([arrival(f"r{i}", 0.25 * i)])
    assert followed(rows.join([arrival("new", 0.25 * 20)])) == ["r20"]
    assert followed(rows.join([arrival("old", 0.25 * 2)])) == [None]
