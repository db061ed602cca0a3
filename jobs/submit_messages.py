"""What `submit` says of a job, and how it ends."""

import sys
from collections.abc import Callable

from jobs.submit import Submitted
from pipelines.errors import EXIT_BUDGET, EXIT_ERRORS, EXIT_FAILED, EXIT_OK, EXIT_USAGE
from pipelines.submission import Attempt, Step

Say = Callable[[str], None]

EXIT_DETACHED = 130
"""As a shell says of what Ctrl-C ended; the job itself has not."""
_SAME = "the same command"
_MEANINGS = {
    EXIT_OK: "every row is answered",
    EXIT_FAILED: "failed; its output says why, and what it committed stays",
    EXIT_USAGE: "could not start; its output says why, and nothing was spent",
    EXIT_ERRORS: "finished, some rows are in errors/",
    EXIT_BUDGET: "stopped at the budget, the rest is pending",
}


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
    """Ends well once the job has ended, however far it had come."""
    _ended(run_job.stop(), say)
    return EXIT_OK


def _said_of(step: Step) -> str:
    job = step.attempt.submission_id
    if step.action == "start":
        return f"job {job}: submitted"
    if step.action == "follow":
        return f"job {job}: this run is {step.attempt.status.lower()} already"
    return (
        f"job {job}: this run is over: {_MEANINGS[step.attempt.run_exit_code]}. For another one "
        "choose another --output"
    )


def _onward(job: str) -> str:
    return f"job {job} goes on: {_SAME} follows it, and with --stop ends it"


def _ended(attempt: Attempt, say: Say) -> int:
    code = attempt.run_exit_code
    if attempt.status == "STOPPED":
        said = "stopped; what it committed stays, submit again to go on"
    else:
        said = _MEANINGS[code]
    if attempt.exit_code not in (None, code):
        # A signal, or a command that the cluster does not have.
        said += f"; its driver ended with {attempt.exit_code}"
    say(f"job {attempt.submission_id}: {said}")
    return code


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
