"""A run whose route may have to learn first."""

from jobs.route_calibration import calibrate_route
from jobs.route_plans import has_plan
from pipelines.calibrated_config import Calibrated
from pipelines.config import RunConfig


def ensure_calibrated(config: RunConfig, divert_stderr: bool = False) -> None:
    """Calibrate now, where the route asks for it in the run and has no plan yet."""
    route = config.route
    in_run = isinstance(route, Calibrated) and route.calibrate == "in_run"
    if in_run and not has_plan(config):
        calibrate_route(config, lambda _: None, divert_stderr)
