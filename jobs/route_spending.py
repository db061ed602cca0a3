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

_CALIBRATION = f"{STATE}/calibration.json"
_SPENDING = f"{STATE}/spending.json"


def note_calibration(directory: Directory, cost_nusd: int) -> None:
    """Put on the bill of this OUTPUT's run what learning its route has cost."""
    directory.write(_CALIBRATION, json.dumps({"cost_nusd": cost_nusd}).encode())


def calibration_lines(directory: Directory) -> list[dict[str, Any]]:
    """What this run paid to learn its route: a line of the bill, if it did."""
    if not directory.exists(_CALIBRATION):
        return []
    spent = json.loads(directory.read(_CALIBRATION))["cost_nusd"]
    return [overhead_line("calibration", cost=spent)]


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
