"""Runs the batches of the online endpoint, each as a main job of its own."""

import logging
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from actors.batch_store import TenantFolder, tenant_folders
from jobs.batch_work import BatchWork
from pipelines.batch_api import ENDED, BatchRequest, BatchState, LineError, Status
from pipelines.config import RunConfig
from pipelines.errors import EXIT_BUDGET, EXIT_ERRORS, EXIT_OK
from pipelines.storage import Directory

logger = logging.getLogger(__name__)

_POLL_S = 1.0


class Account(Protocol):
    """The tenants' budgets, as a batch needs them."""

    def left_nusd(self, tenant: str) -> int | None: ...

    def hold(self, tenant: str, nusd: int, name: str) -> None: ...

    def charge(self, tenant: str, tokens: int, cost_nusd: int, once: str) -> None: ...


@dataclass
class _Running:
    folder: TenantFolder
    batch: BatchRequest
    work: BatchWork
    process: subprocess.Popen[bytes]
    seen: dict[str, int] = field(default_factory=dict)
    ends_as: Status | None = None


class BatchRunner:
    """Takes up what is open, oldest first, and sees it to its end.

    All it knows lies in the data directory: one that is started anew goes on with the batches that
    another left, and their jobs resume where they were. One at a time may work on a directory.

    Args:
        config: of the endpoint, or what batches shall be run by instead.
        account: None where there are no tenants.
        jobs: batches that run at once; never two of one tenant.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        data: Directory,
        config: RunConfig,
        account: Account | None = None,
        jobs: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._data, self._config, self._account = data, config, account
        self._jobs, self._clock = jobs, clock
        self._running: list[_Running] = []
        self._ended: set[str] = set()
        self._stopped = threading.Event()

    def run_until_stopped(self) -> None:
        """In a thread of its own; ends all jobs at its end, and their batches stay open."""
        while not self._stopped.wait(_POLL_S):
            try:
                self.step()
            # Storage that hiccups now is asked again in a second.
            except Exception:
                logger.exception("batches: will be tried again")
        for job in self._running:
            _ask_to_end(job.process)
        for job in self._running:
            job.process.wait()

    def stop(self) -> None:
        self._stopped.set()

    def step(self) -> None:
        """Look after what runs, and start what may start."""
        for job in list(self._running):
            self._look_after(job)
        for folder, batch in self._open():
            busy = [job.folder.tenant for job in self._running]
            if len(busy) >= self._jobs:
                return
            if folder.tenant in busy:
                continue
            try:
                self._start(folder, batch)
            # Those of others go on; this one is tried again in a second, until it expires.
            except Exception:
                logger.exception("batch %s does not start", batch.id)

    def _open(self) -> list[tuple[TenantFolder, BatchRequest]]:
        """Batches that have not ended, oldest first."""
        found = []
        for folder in tenant_folders(self._data):
            for name in folder.batch_ids():
                # What has ended is not read again every second.
                if name in self._ended or (batch := folder.batch(name)) is None:
                    continue
                if folder.state(batch).status in ENDED:
                    self._ended.add(name)
                else:
                    found.append((folder, batch))
        return sorted(found, key=lambda entry: (entry[1].created_at, entry[1].id))

    def _start(self, folder: TenantFolder, batch: BatchRequest) -> None:
        work = BatchWork(self._data, self._config, folder, batch)
        if ended := self._must_end(folder, batch):
            self._charge(folder, batch, work)
            self._set(folder, batch, folder.state(batch), ended)
            return
        if not folder.state(batch).total and not self._begin(folder, batch, work):
            return
        budget = work.budget_nusd()
        if self._account is not None and folder.tenant is not None and budget is not None:
            # Else online requests could spend it meanwhile, and the tenant's budget be passed.
            self._account.hold(folder.tenant, budget, batch.id)
        self._running.append(_Running(folder, batch, work, work.start()))

    def _begin(self, folder: TenantFolder, batch: BatchRequest, work: BatchWork) -> bool:
        """Get a batch ready for its first start; one that cannot run has failed."""
        left = self._left_nusd(folder)
        if left == 0:
            self._fail(
                folder, batch, LineError("insufficient_quota", "the tenant's budget is spent")
            )
            return False
        total, errors = work.write_input()
        if errors:
            self._fail(folder, batch, *errors)
            return False
        work.write_config(batch.budget_nusd, left)
        self._set(folder, batch, replace(folder.state(batch), total=total), "in_progress")
        return True

    def _look_after(self, job: _Running) -> None:
        folder, batch = job.folder, job.batch
        code = job.process.poll()
        if code is not None:
            self._running.remove(job)
            self._finish(job, code)
            return
        state = folder.state(batch)
        completed, failed = job.work.counted(job.seen)
        if (completed, failed) != (state.completed, state.failed):
            folder.set_state(batch, replace(state, completed=completed, failed=failed))
        if job.ends_as is None and (ends_as := self._must_end(folder, batch)):
            job.ends_as = ends_as
            _ask_to_end(job.process)

    def _must_end(self, folder: TenantFolder, batch: BatchRequest) -> Status | None:
        if folder.cancelling_at(batch) is not None:
            return "cancelled"
        return "expired" if self._clock() >= batch.expires_at else None

    def _finish(self, job: _Running, code: int) -> None:
        folder, batch, work = job.folder, job.batch, job.work
        _ask_to_end(job.process)
        self._charge(folder, batch, work)
        state = folder.state(batch)
        if code in (EXIT_OK, EXIT_ERRORS, EXIT_BUDGET):
            self._set(folder, batch, state, "finalizing")
            self._complete(folder, batch, work, stopped=code == EXIT_BUDGET)
        elif job.ends_as is not None:
            self._set(folder, batch, state, job.ends_as)
        else:
            said = work.words() or f"the job ended with {code}"
            self._fail(folder, batch, LineError("job_failed", said))

    def _complete(
        self, folder: TenantFolder, batch: BatchRequest, work: BatchWork, stopped: bool
    ) -> None:
        """Args: stopped: at the budget, with rows that nobody has answered."""
        summary = work.summary()
        output, errors = work.keep_results()
        state = replace(
            folder.state(batch),
            completed=summary.ok if summary else 0,
            failed=summary.errors if summary else 0,
            output_file_id=output.id if output else None,
            error_file_id=errors.id if errors else None,
        )
        if stopped:
            said = "stopped at the budget; the rest is not answered"
            state = replace(state, errors=(LineError("insufficient_quota", said),))
        self._set(folder, batch, state, "expired" if stopped else "completed")

    def _charge(self, folder: TenantFolder, batch: BatchRequest, work: BatchWork) -> None:
        if self._account is not None and folder.tenant is not None:
            tokens, nusd = work.used()
            self._account.charge(folder.tenant, tokens, nusd, batch.id)

    def _left_nusd(self, folder: TenantFolder) -> int | None:
        if self._account is None or folder.tenant is None:
            return None
        return self._account.left_nusd(folder.tenant)

    def _fail(self, folder: TenantFolder, batch: BatchRequest, *errors: LineError) -> None:
        self._set(folder, batch, replace(folder.state(batch), errors=errors), "failed")

    def _set(
        self, folder: TenantFolder, batch: BatchRequest, state: BatchState, status: Status
    ) -> None:
        times = {**state.times, status: int(self._clock())}
        folder.set_state(batch, replace(state, status=status, times=times))


def _ask_to_end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
