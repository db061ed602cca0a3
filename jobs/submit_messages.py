"""What `submit` says of a job, and how it ends."""

import sys
from collections.abc import Callable

from jobs.submit import Submitted
from pipelines.errors import EXIT_OK
from pipelines.submission import Attempt, Step

Say = Callable[[str], None]

EXIT_DETACHED = 130
"""As a shell says of what Ctrl-C ended; the job itself has not."""
_SAME = "the same command"


def follow_job(run_job: Submitted, say: Say, no_wait: bool) -> int:
    """Submit, and unless told otherwise wait; the exit code is the run's."""
    step = run_job.start()
    say(_said_of(step))
    if step.action == "tell":
        return step.attempt.run_exit_code
    job = step.attempt.submission_id
    if no_wait:
        say(_onward(job))
        return EXIT_OK
    try:
        return _ended(run_job.follow(job, _write), say)
    except KeyboardInterrupt:
        say(f"detached; {_onward(job)}")
        return EXIT_DETACHED


def stop_job(run_job: Submitted, say: Say) -> int:
    attempt = run_job.stop()
    say(
        f"job {attempt.submission_id} has ended: {attempt.status.lower()}. What it committed "
        "stays; submit again to go on"
    )
    return EXIT_OK


def _said_of(step: Step) -> str:
    job = step.attempt.submission_id
    if step.action == "start":
        return f"job {job}: submitted"
    if step.action == "follow":
        return f"job {job}: this run is {step.attempt.status.lower()} already; following it"
    return (
        f"job {job}: this run is done, with exit code {step.attempt.run_exit_code}; for another "
        "one choose another --output"
    )


def _onward(job: str) -> str:
    return f"job {job} goes on: {_SAME} follows it, and with --stop ends it"


def _ended(attempt: Attempt, say: Say) -> int:
    code = attempt.run_exit_code
    said = f"job {attempt.submission_id}: {attempt.status.lower()}, exit code {code}"
    if attempt.exit_code != code and attempt.status != "SUCCEEDED":
        said += f" (its driver's: {attempt.exit_code})"
    say(said)
    return code


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
