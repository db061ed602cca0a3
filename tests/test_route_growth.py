"""How far `nightmill calibrate` lets a sample grow; all real but the engine."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import tier, write_jsonl

from actors.route_fit import Certified, Fit, Judged, Promise, certified
from jobs import route_calibration
from jobs.route_calibration import calibrate_route
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from tests.standin import standin

pytestmark = pytest.mark.usefixtures("ray_here")
CHEAP_PRICE = {"kind": "serverless", "usd_per_mtok": {"input": 0.05, "output": 0.15}}


def configured(folder: Path, rows: int, sample_rows: int, cheap: list[Any]) -> RunConfig:
    """Each prompt stands twice in the input."""
    prompts = [{"id": str(i), "prompt": f"question {i // 2}", "right": "yes"} for i in range(rows)]
    return RunConfig.model_validate(
        {
            "input": {"path": str(write_jsonl(folder / "prompts.jsonl", prompts))},
            "output": {"path": str(folder / "out")},
            "tiers": [
                {**tier("cheap", replies=cheap), "billing": CHEAP_PRICE},
                tier("strong", replies=[{"response": "yes"}]),
            ],
            "route": {
                "policy": "certified_cascade",
                "cheap": "cheap",
                "strong": "strong",
                "quality": {"by": "labels", "column": "right"},
                "sample_rows": sample_rows,
                "plans": str(folder / "plans"),
            },
            "baseline": "strong",
        }
    )


def answers(folder: Path) -> list[str]:
    """The names of what both tiers were asked."""
    return [
        row["row_id"]
        for part in (folder / "out" / "calibration").glob("*/answers/rows/*.parquet")
        for row in pq.read_table(part).to_pylist()
    ]


def test_a_sample_grows_while_more_rows_can_pay_and_asks_each_question_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows without any loss prove a floor of one point only when there are enough of them."""
    said, tested = list[str](), list[bool]()

    def seen(fit: Fit, held: Judged, promise: Promise) -> Certified:
        tested.append(bool(held.held.all()))
        return certified(fit, held, promise)

    monkeypatch.setattr(route_calibration, "certified", seen)
    config = configured(tmp_path, 20_000, 1200, [{"response": "yes", "confidence": 0.9}])
    found = calibrate_route(config, said.append)
    assert [int(line.split()[0].replace(",", "")) for line in said if "answered" in line] == [
        300,
        600,
        1200,
    ]
    assert (found.rows, found.enough) == (1200, None)
    # A proof by rows that the threshold was chosen by would be none.
    assert tested
    assert all(tested)
    assert found.certificate.threshold == pytest.approx(-0.9)
    assert found.certificate.sample == 600
    asked = answers(tmp_path)
    assert len(asked) == len(set(asked)) < 2 * 1200
    # Again it is the same sample, which is not paid again.
    again = calibrate_route(config, said.append)
    assert (again.rows, again.certificate) == (found.rows, found.certificate)
    assert again.bill_usd == found.bill_usd


def test_a_pair_that_cannot_pay_is_left_at_the_first_look(tmp_path: Path) -> None:
    found = calibrate_route(
        configured(tmp_path, 5000, 2000, [{"response": "no", "confidence": 0.9}]), lambda _: None
    )
    assert (found.rows, found.enough) == (300, "this pair of tiers cannot pay")
    assert found.certificate.threshold is None
    assert found.advice.verdict == "cannot pay"


def test_rows_that_would_not_pay_for_themselves_are_not_sampled(tmp_path: Path) -> None:
    """Few are left that a better certificate could save on."""
    found = calibrate_route(
        configured(tmp_path, 620, 600, [{"response": "yes", "confidence": 0.9}]), lambda _: None
    )
    assert (found.rows, found.enough) == (300, "more rows would not pay for themselves")


def test_a_sample_that_a_tier_could_not_be_reached_for_is_refused(tmp_path: Path) -> None:
    """Its fallback does not speak for it. The same command asks it again, and nobody else."""
    raw = configured(tmp_path, 400, 200, [{"response": "yes"}]).model_dump()
    with standin(share=1.0, faults=["503"]) as (server, url):
        api = {"kind": "api", "base_url": f"{url}/v1", "model": "m", "max_retries": 0}
        raw["tiers"][1] |= {"engine": {**api, "breaker": {"outage_s": 0}}, "fallback": "spare"}
        raw["tiers"].append(tier("spare", replies=[{"response": "yes"}]))
        config = RunConfig.model_validate(raw)
        with pytest.raises(UsageProblem, match=r"reached for only 0 rows.*again once they answer"):
            calibrate_route(config, lambda _: None)
        assert not server.answered
        server.script.share = 0.0
        found = calibrate_route(config, lambda _: None)
        told = server.stats()
    assert found.rows == 200
    assert (told["distinct"], told["paid_twice"]) == (len(answers(tmp_path)) / 2, 0)
