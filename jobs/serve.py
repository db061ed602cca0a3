"""`nightmill serve`: deploy the endpoint, and keep it until somebody ends it."""

import logging
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from jobs.cluster import connect
from jobs.online_plan import plan_endpoint
from pipelines.config import RunConfig
from pipelines.errors import RunFailure

_DOOR_S = 5.0


def deploy(config: RunConfig) -> str:
    """Start the endpoint, or bring a running one up to date replica by replica; its address.

    Raises:
        UsageProblem: naming the key; nothing was started.
        RunFailure: it does not come up.
    """
    plan = plan_endpoint(config, datetime.now(UTC).date())
    connect()
    from ray import serve as ray_serve
    from ray.serve.api import RunTarget

    from jobs.online_ingress import INGRESS, TIER, applications

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    host, port = config.serve.host, config.serve.port
    ray_serve.start(proxy_location="Disabled")
    try:
        found = applications(plan)
        behind = [RunTarget(app, name, None) for name, app in found.items() if name != INGRESS]
        ray_serve.run_many(behind)
        ray_serve.run(found[INGRESS], name=INGRESS, route_prefix="/")
    except RuntimeError as error:
        raise RunFailure(f"the endpoint does not come up: {_reason() or error}") from error
    for name in ray_serve.status().applications:
        if name.startswith(TIER) and name not in found:
            ray_serve.delete(name)
    return f"http://{host}:{port}"


def _reason() -> str:
    """The last words of what did not start; Serve's own error does not repeat them."""
    from ray import serve as ray_serve

    for name, application in ray_serve.status().applications.items():
        for deployment in application.deployments.values():
            if deployment.status == "DEPLOY_FAILED" and deployment.message:
                return f"{name}: {deployment.message.strip().splitlines()[-1]}"
    return ""


def end() -> None:
    """Take in nothing more, finish what was taken in, and stop."""
    from ray import serve as ray_serve

    from jobs.online_ingress import DOOR, INGRESS

    with suppress(Exception):
        # One that is being replaced lets nobody in anyhow.
        ray_serve.get_deployment_handle("door", DOOR).close.remote().result(timeout_s=_DOOR_S)
    # The tiers work on for as long as somebody who was let in may need them.
    ray_serve.delete(INGRESS)
    ray_serve.shutdown()


def serve_until_stopped(load: Callable[[], RunConfig], tell: Callable[[str], Any]) -> None:
    """Serve until SIGINT or SIGTERM; a SIGHUP reads the configuration again.

    Raises: as `deploy`; a configuration that is wrong at a SIGHUP is told and not taken.
    """
    stop, again = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, lambda *_: again.set())
    tell(f"serving on {deploy(load())}; Ctrl-C ends it")
    while not stop.wait(0.2):
        if again.is_set():
            again.clear()
            try:
                deploy(load())
                tell("the configuration was read again")
            except Exception as error:
                tell(f"goes on as before: {error}")
    tell("finishing what was taken in")
    end()
