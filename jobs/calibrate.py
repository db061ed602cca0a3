"""`nightmill calibrate`: whatever a configuration has that learns from its input."""

from dataclasses import dataclass

from rich.console import Console

from jobs.cache_calibration import Calibration, Say, print_calibration
from jobs.cache_calibration import calibrate as calibrate_cache
from jobs.route_calibration import calibrate_route
from jobs.route_findings import RouteCalibration, print_route_calibration
from pipelines.calibrated_config import Calibrated
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem


@dataclass(frozen=True)
class Findings:
    """What was learned of the route, and of the response cache; None where there is nothing to."""

    route: RouteCalibration | None
    response_cache: Calibration | None


def calibrate(config: RunConfig, rows: int, say: Say) -> Findings:
    """Learn the route first: the cache's evidence is about answers that it chooses.

    Args:
        rows: of the input to look for similar questions in.

    Raises:
        UsageProblem: nothing in the configuration learns.
    """
    cache = config.cache_in_use
    is_semantic = cache is not None and cache.semantic is not None
    learns = isinstance(config.route, Calibrated)
    if not learns and not is_semantic:
        raise UsageProblem(
            "nothing to calibrate: route learns nothing (domain_mean, classifier, "
            "certified_cascade and certified_gatekeeper do) "
            "and response_cache.semantic is not configured"
        )
    return Findings(
        calibrate_route(config, say, divert_stderr=True) if learns else None,
        calibrate_cache(config, rows, say, divert_stderr=True) if is_semantic else None,
    )


def print_calibrated(found: Findings, console: Console) -> None:
    if found.route is not None:
        print_route_calibration(found.route, console)
    if found.response_cache is not None:
        print_calibration(found.response_cache, console)
