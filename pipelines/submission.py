"""A run as a Ray job: its name, its command, and what to do beside the jobs that there are."""

import json
import os.path
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.calibrated_config import Calibrated
from pipelines.config import RunConfig
from pipelines.errors import EXIT_ERRORS, EXIT_FAILED, EXIT_OK
from pipelines.keys import canonical_json, digest

_NAME_HEX = 16
_NOT_ITS_IDENTITY = {"submit", "budget_usd"}
"""A run with more money, or sent another way, is the same run."""

JobStatus = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
_LIVE = ("PENDING", "RUNNING")


@dataclass(frozen=True)
class Attempt:
    """A job on the cluster.

    exit_code: the driver's; None while it runs, or if nobody saw it end.
    """

    submission_id: str
    status: JobStatus
    exit_code: int | None = None

    @property
    def is_live(self) -> bool:
        return self.status in _LIVE

    @property
    def run_exit_code(self) -> int:
        """As `run` ends; a driver that was stopped or killed has failed."""
        if self.status == "SUCCEEDED":
            return EXIT_OK
        code = self.exit_code
        return code if code is not None and code in range(1, 5) else EXIT_FAILED

    @property
    def is_done(self) -> bool:
        """Whether submitting again could only find what is there: no row is left to answer."""
        return not self.is_live and self.run_exit_code in (EXIT_OK, EXIT_ERRORS)


@dataclass(frozen=True)
class Step:
    """What a submit does: start a job under a new id, follow a live one, or tell of one's end."""

    action: Literal["start", "follow", "tell"]
    attempt: Attempt


def run_name(config: RunConfig) -> str:
    """The same for the same run: its configuration, with the paths of its input and output."""
    said = config.model_dump(mode="json", exclude=_NOT_ITS_IDENTITY)
    return f"nightmill-{digest(canonical_json(said)).hex()[:_NAME_HEX]}"


def attempts_of(name: str, jobs: Iterable[Attempt]) -> list[Attempt]:
    """A run's jobs, the first one first."""
    numbered = {n: job for job in jobs if (n := _number(name, job.submission_id))}
    return [numbered[n] for n in sorted(numbered)]


def next_step(name: str, attempts: Sequence[Attempt]) -> Step:
    """
    Args:
        attempts: of the run of this name, the first one first.
    """
    for attempt in attempts:
        if attempt.is_live:
            return Step("follow", attempt)
    if not attempts:
        return Step("start", Attempt(name, "PENDING"))
    latest = attempts[-1]
    if latest.is_done:
        return Step("tell", latest)
    number = (_number(name, latest.submission_id) or 0) + 1
    return Step("start", Attempt(f"{name}-{number}", "PENDING"))


def _number(name: str, submission_id: str) -> int | None:
    """Which attempt an id stands for, from 1; None if it is of another run."""
    match = re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", submission_id)
    return int(match[1] or 1) if match else None


def places(config: RunConfig) -> dict[str, str]:
    """The paths, by key, that a job must find where they are: it works in a copy of the folder."""
    found = {"input.path": config.input.path, "output.path": config.output.path}
    if config.response_cache is not None:
        found["response_cache.path"] = config.response_cache.path
    if isinstance(config.route, Calibrated):
        found["route.plans"] = config.route.plans
    found["tuning.path"] = config.tuning.path
    return found


def is_relative(path: str) -> bool:
    """Whether a path says where only together with a working directory."""
    return "://" not in path and not path.startswith(("/", "~"))


def absolute_places(config: RunConfig, folder: str) -> dict[str, str]:
    """The relative ones of `places`, from a folder on."""
    return {
        key: os.path.normpath(os.path.join(folder, path))
        for key, path in places(config).items()
        if is_relative(path)
    }


def own_excludes(config: RunConfig, folder: str) -> list[str]:
    """Patterns for the places that lie in the folder: a job reads and writes the original."""
    inside = []
    for path in places(config).values():
        if "://" in path or path.startswith("~"):
            continue
        relative = os.path.relpath(os.path.join(folder, path), folder)
        if relative != "." and not relative.startswith(".."):
            inside.append(f"/{relative}")
    return inside


def entry_point(python: str, config_path: str, overrides: Mapping[str, object]) -> str:
    """The job's command line: the same run, with these keys set."""
    settings: list[str] = []
    for key, value in overrides.items():
        # JSON is YAML in which every text is quoted.
        settings += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join([python, "-m", "jobs.cli", "run", config_path, *settings])
