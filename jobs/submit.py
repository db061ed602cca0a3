"""`nightmill submit`: a run as a Ray job, which goes on when nobody looks."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

from aiohttp import ClientError

from jobs.job_client import attempt_of, is_on_this_machine, job_client, jobs_of, token_file_warning
from jobs.preflight import check_config, check_decisions
from jobs.upload import check_upload, excludes
from pipelines.config import RunConfig
from pipelines.errors import RunFailure, UsageProblem
from pipelines.submission import (
    Attempt,
    Step,
    absolute_places,
    attempts_of,
    entry_point,
    next_step,
    own_excludes,
    places,
    run_name,
)

Say = Callable[[str], None]
Write = Callable[[str], None]

_LOOK_EVERY_S = 0.5
_TRIES = 5
"""How often in a row the logs may break off; a head that restarts takes its jobs with it."""
_GIB = 1 << 30


@dataclass(frozen=True)
class Submission:
    """What is to run where: a configuration as the user gave it, and as it resolves.

    overrides: by key, as given on the command line.
    address: of the job API; None for what the environment says, or this machine.
    """

    path: str
    config: RunConfig
    overrides: dict[str, Any]
    address: str | None = None


class Submitted:
    """A run on a cluster."""

    def __init__(self, submission: Submission, say: Say) -> None:
        """
        Raises:
            UsageProblem: the run cannot start, or the cluster cannot be reached; nothing was sent.
        """
        self._given, self._say = submission, say
        today = datetime.now(UTC).date()
        check_decisions(submission.config, today)
        self._client = job_client(submission.address)
        if warning := token_file_warning():
            say(warning)
        self._is_here = is_on_this_machine(self._client)
        self._absolute = absolute_places(submission.config, os.getcwd())
        if self._is_here:
            # Models and data are where this command sees them.
            check_config(submission.config, today)
        elif self._absolute:
            raise UsageProblem(_stays_here(submission.config, list(self._absolute)))
        self._name = run_name(_placed(submission.config, self._absolute))

    def start(self) -> Step:
        """Start the run's job, or find the one that there is."""
        step = next_step(self._name, self._attempts())
        if step.action == "start":
            try:
                self._send(step.attempt.submission_id)
            except RuntimeError as error:
                # Somebody else may have been as fast.
                found = next_step(self._name, self._attempts())
                if found.action == "start":
                    raise RunFailure(f"the cluster did not take the job: {error}") from error
                return found
        return step

    def stop(self) -> Attempt:
        """Stop the run's live job; what it committed stays.

        Raises:
            UsageProblem: there is none.
        """
        step = next_step(self._name, self._attempts())
        if step.action != "follow":
            raise UsageProblem(
                f"{self._given.path}: no job of this run is live; give the same --input, --output "
                "and --set as when it was submitted"
            )
        self._client.stop_job(step.attempt.submission_id)
        return self._wait(step.attempt.submission_id)

    def follow(self, submission_id: str, write: Write) -> Attempt:
        """Write the job's output as it comes, until the job has ended.

        Raises:
            RunFailure: the cluster was lost.
        """
        log, failures = _Log(self._client, submission_id, write), 0
        while True:
            before = log.written
            try:
                asyncio.run(log.follow())
                return self._wait(submission_id)
            except (OSError, RuntimeError, ClientError) as error:
                failures = 1 if log.written > before else failures + 1
                if failures == _TRIES:
                    raise RunFailure(
                        f"lost sight of job {submission_id} ({error}). If its cluster lives, so "
                        "does the job; the same command follows it again"
                    ) from error
            time.sleep(_LOOK_EVERY_S)

    def _wait(self, submission_id: str) -> Attempt:
        while (attempt := attempt_of(self._client.get_job_info(submission_id))).is_live:
            time.sleep(_LOOK_EVERY_S)
        return attempt

    def _attempts(self) -> list[Attempt]:
        return attempts_of(self._name, jobs_of(self._client))

    def _send(self, submission_id: str) -> None:
        given, asked, here = self._given, self._given.config.submit, Path.cwd()
        patterns = excludes(own_excludes(given.config, str(here)), asked.excludes)
        config_path = _sent_path(given.path, here)
        needed = [path for path in (config_path, given.config.prices) if _is_sent(path)]
        check_upload(here, patterns, needed, asked.max_upload_mib)
        # A cluster here may know no `python`; one elsewhere has an image of its own.
        python = sys.executable if self._is_here else "python"
        self._client.submit_job(
            entrypoint=entry_point(python, config_path, {**given.overrides, **self._absolute}),
            submission_id=submission_id,
            runtime_env={
                "working_dir": str(here),
                "excludes": patterns,
                "env_vars": _forwarded(asked.env_vars),
            },
            metadata={"config": given.path, **places(_placed(given.config, self._absolute))},
            entrypoint_num_cpus=asked.num_cpus or None,
            entrypoint_num_gpus=asked.num_gpus or None,
            entrypoint_memory=int(asked.memory_gib * _GIB) or None,
            entrypoint_label_selector=asked.labels or None,
        )


class _Log:
    """A job's output, which begins anew with every connection."""

    def __init__(self, client: Any, submission_id: str, write: Write) -> None:
        self._client, self._submission_id, self._write = client, submission_id, write
        self.written = 0

    async def follow(self) -> None:
        """Write what is new, until the job ends."""
        skipped = self.written
        async for text in self._client.tail_job_logs(self._submission_id):
            new = text[skipped:]
            skipped -= len(text) - len(new)
            if new:
                self._write(new)
                self.written += len(new)


def _placed(config: RunConfig, absolute: Mapping[str, str]) -> RunConfig:
    """With its places where they are, so that two folders' `out` are two."""
    raw = config.model_dump(mode="json")
    for key, path in absolute.items():
        section, name = key.split(".")
        raw[section][name] = path
    return RunConfig.model_validate(raw)


def _stays_here(config: RunConfig, keys: Sequence[str]) -> str:
    listed = ", ".join(f"{key}: {places(config)[key]}" for key in keys)
    return (
        f"{listed}: relative, and the cluster runs on another machine, in a copy of this folder "
        "that ends with it. To fix: give s3:// or gs:// urls, or absolute paths that every node "
        "shares"
    )


def _sent_path(path: str, folder: Path) -> str:
    """A configuration's path on the cluster; a url is read there as it is here."""
    return path if "://" in path else os.path.relpath(path, folder)


def _is_sent(path: str | None) -> TypeGuard[str]:
    return path is not None and "://" not in path and not os.path.isabs(path)


def _forwarded(names: Sequence[str]) -> dict[str, str]:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UsageProblem(
            f"submit.env_vars: {', '.join(missing)}: not set here; set them, or take the names out"
        )
    return {name: os.environ[name] for name in names}
