"""A run whose route may have to learn first."""

import json

from jobs.batch import OnStart, run
from jobs.preflight import check_writable
from jobs.route_calibration import calibrate_route
from jobs.route_plans import has_plan
from jobs.run_state import CALIBRATION
from jobs.summary import Summary
from jobs.watching import Watch
from pipelines.config import RunConfig
from pipelines.prices import nano_dollars
from pipelines.route_config import Calibrated


def run_calibrated(
    config: RunConfig,
    watch: Watch | None = None,
    on_start: OnStart | None = None,
    divert_stderr: bool = False,
    retry: bool = False,
) -> Summary:
    """`run`, after a calibration where the route asks for one and there is none yet.

    What that cost is on the run's bill.
    """
    route = config.route
    in_run = isinstance(route, Calibrated) and route.calibrate == "in_run"
    if in_run and not has_plan(config):
        found = calibrate_route(config, lambda _: None, divert_stderr)
        spent = {"cost_nusd": nano_dollars(found.bill_usd), "rows": found.rows}
        check_writable(config).write(CALIBRATION, json.dumps(spent).encode())
    return run(config, watch, on_start, divert_stderr, retry)
