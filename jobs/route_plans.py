"""The plans that `calibrate` stored, as a run finds the one that its route needs."""

from pipelines.calibrated_config import Calibrated
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.route_plan import RoutePlan, is_stored, load_plan, plan_key
from pipelines.storage import Directory


def route_plans(config: RunConfig, route: Calibrated) -> Directory:
    return Directory(route.plans, config.storage)


def has_plan(config: RunConfig) -> bool:
    """Whether the run's route is calibrated."""
    route = config.route
    return isinstance(route, Calibrated) and is_stored(
        route_plans(config, route), plan_key(config, route)
    )


def route_plan(config: RunConfig) -> RoutePlan | None:
    """The plan of a run's route; None where the route learns nothing.

    Raises:
        UsageProblem: there is none yet.
    """
    route = config.route
    if not isinstance(route, Calibrated):
        return None
    plan = load_plan(route_plans(config, route), plan_key(config, route))
    if plan is None:
        raise UsageProblem(
            f"route: no calibration of this route, models and sampling in {route.plans}; run "
            "`nightmill calibrate` with this configuration first, or set route.calibrate: in_run"
        )
    return plan
