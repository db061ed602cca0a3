"""Ray's job API, with errors that say what to do."""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from pipelines.errors import UsageProblem
from pipelines.submission import Attempt

LOCAL = "http://127.0.0.1:8265"
"""Where `ray start --head` puts its job API."""
_ADDRESS, _CLUSTER = "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"


def job_client(address: str | None) -> Any:
    """A `JobSubmissionClient` that has reached its cluster.

    Args:
        address: of the job API; by default what RAY_API_SERVER_ADDRESS or RAY_ADDRESS say, or
            this machine.

    Raises:
        UsageProblem: nobody answers there, or the token is refused.
    """
    if address is None and not (os.environ.get(_ADDRESS) or os.environ.get(_CLUSTER)):
        address = LOCAL
    if address is not None and "://" not in address:
        raise UsageProblem(f"--address {address}: write it with its scheme: http://{address}")
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    # It tells of every step of an upload.
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    shown = address or os.environ.get(_ADDRESS) or os.environ[_CLUSTER]
    try:
        with _addressed(address):
            return _connected(address)
    except AuthenticationError as error:
        raise UsageProblem(f"{shown}: {_token_problem(str(error))}") from error
    # A RuntimeError is an answer that is not Ray's.
    except (ConnectionError, RequestException, RuntimeError, ValueError) as error:
        raise UsageProblem(
            f"{shown}: no Ray cluster answers there ({error}). To fix: start one here with `ray "
            "start --head`, or give --address, the http address of a cluster's dashboard"
        ) from error


def _connected(address: str | None) -> Any:
    """With the token in the place for it, if the cluster wants one: so does `ray start`."""
    from ray._private.authentication import authentication_token_setup as token
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        if "RAY_AUTH_MODE" in os.environ or not token.maybe_enable_token_auth_if_token_available():
            raise
        return JobSubmissionClient(address)


@contextmanager
def _addressed(address: str | None) -> Iterator[None]:
    """Ray lets its variables win over what it is told; here the command line wins."""
    before = os.environ.get(_ADDRESS)
    if address is not None:
        os.environ[_ADDRESS] = address
    try:
        yield
    finally:
        if before is not None:
            os.environ[_ADDRESS] = before
        elif address is not None:
            del os.environ[_ADDRESS]


def _token_problem(said: str) -> str:
    token = "the cluster's token, in RAY_AUTH_TOKEN or in a file that RAY_AUTH_TOKEN_PATH names"
    if "Invalid authentication token" in said:
        return f"the cluster refuses this token. To fix: give {token}"
    return f"the cluster wants a token. To fix: set RAY_AUTH_MODE=token and give {token}"


def token_file_warning() -> str | None:
    """What is wrong with the permissions of the file that holds the token, if anything is."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return None  # No token is used, or none from a file.
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not path.is_file() or not stat.S_IMODE(path.stat().st_mode) & 0o077:
        return None
    return f"{path}: others can read this token, and with it command the cluster; chmod 600 {path}"


def is_on_this_machine(client: Any) -> bool:
    """Whether the cluster's head runs here, whatever its address: a tunnel begins here too.

    Ray's processes name their session, whose name is made of date, time and process id.
    """
    session = client._do_request("GET", "/api/version").json().get("session_name")
    if not session:
        return False
    for process in psutil.process_iter(["cmdline"]):
        if any(session in argument for argument in process.info["cmdline"] or ()):
            return True
    return False


def jobs_of(client: Any) -> list[Attempt]:
    """Every job that was submitted to the cluster since it started."""
    return [attempt_of(details) for details in client.list_jobs() if details.submission_id]


def attempt_of(details: Any) -> Attempt:
    return Attempt(details.submission_id, details.status.value, details.driver_exit_code)
