"""What a run pays for its route: what learning it cost, and what threshold its budget buys."""

import json
from dataclasses import asdict, replace
from typing import Any

from pipelines.calibrated_config import Calibrated
from pipelines.certify import Certificate
from pipelines.commit import STATE
from pipelines.config import RunConfig
from pipelines.ledger import overhead_line
from pipelines.prices import NUSD
from pipelines.route_plan import RoutePlan
from pipelines.storage import Directory
from pipelines.within_budget import best_within

SAMPLES = "calibration"
"""A folder for each question that calibrating has put to tiers, with the run that answered it."""
_SPENDING = f"{STATE}/spending.json"


def calibration_lines(directory: Directory) -> list[dict[str, Any]]:
    """What calibrating, of route and cache, has cost in this OUTPUT, whichever command did it: a
    line of the bill, if it cost anything."""
    summaries = [f"{SAMPLES}/{name}/answers/summary.json" for name in directory.names(SAMPLES)]
    told = [json.loads(directory.read(name)) for name in summaries if directory.exists(name)]
    spent = sum(summary["bill_nusd"] for summary in told)
    return [overhead_line("calibration", cost=spent)] if spent else []


def spent_on(plan: RoutePlan, config: RunConfig, directory: Directory, rows: int) -> RoutePlan:
    """The plan with the threshold that this run's budget buys.

    A run that has begun keeps its threshold, whatever budget its later starts are given: rows
    that are answered could not be answered otherwise any more.

    Raises:
        UsageProblem: the budget is too small for any.
    """
    route = config.route
    if not isinstance(route, Calibrated) or route.objective != "max_quality":
        return plan
    if directory.exists(_SPENDING):
        chosen = Certificate(**json.loads(directory.read(_SPENDING)))
    else:
        assert plan.frontier is not None
        assert config.budget_usd is not None
        learning = sum(line["cost_nusd"] for line in calibration_lines(directory))
        left = config.budget_usd - learning / NUSD
        chosen = best_within(plan.frontier, rows, left)
    return replace(plan, certificate=chosen)


def note_spending(directory: Directory, config: RunConfig, plan: RoutePlan | None) -> None:
    """Keep the threshold for later starts."""
    route = config.route
    if plan and isinstance(route, Calibrated) and route.objective == "max_quality":
        directory.write(_SPENDING, json.dumps(asdict(plan.certificate)).encode())
