"""What an OUTPUT directory remembers of its run: whose it is, who works on it, what was spent."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jobs.preflight import Plan
from jobs.route_spending import note_spending
from pipelines.commit import STATE
from pipelines.config_file import dump_config
from pipelines.errors import Busy, UsageProblem
from pipelines.keys import canonical_json, digest
from pipelines.ledger import Replica
from pipelines.storage import Directory

_RUN = f"{STATE}/run.json"
_LOCK = f"{STATE}/lock.json"
_ATTEMPTS = f"{STATE}/attempts"
_STALE_S, _REFRESH_S = 120.0, 15.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunIdentity:
    """Which run an OUTPUT directory holds, and the how-manieth start this is."""

    run_id: str
    attempt_id: str
    resumed: bool


def run_here(directory: Directory, plan: Plan, retry: bool = False) -> str | None:
    """The id of the run that OUTPUT holds; None if it holds none.

    Raises:
        UsageProblem: it is one of another input or, unless its failed rows are to be tried
            another way, of another configuration.
    """
    if not directory.exists(_RUN):
        return None
    stored = json.loads(directory.read(_RUN))
    is_other = stored["policy"] != plan.policy.hex() and not retry
    if stored["inputs"] != _inputs(plan) or is_other:
        raise UsageProblem(
            f"output.path: {directory.url}: holds run {stored['run_id']} of another input, "
            "routing, model or sampling; choose another output or remove it"
        )
    return str(stored["run_id"])


def open_run(directory: Directory, plan: Plan, retry: bool = False) -> RunIdentity:
    """Begin a run in an empty OUTPUT, or go on with the same one.

    Raises:
        UsageProblem: see `run_here`.
    """
    run_id = run_here(directory, plan, retry)
    if run_id is None:
        run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"
        stored = {"run_id": run_id, "inputs": _inputs(plan), "policy": plan.policy.hex()}
        directory.write(_RUN, json.dumps(stored).encode())
        note_spending(directory, plan.config, plan.route_plan)
    directory.write("resolved.yaml", dump_config(plan.config).encode())
    earlier = len(directory.names(_ATTEMPTS))
    return RunIdentity(run_id, f"{run_id}.{earlier}", earlier > 0)


def save_replicas(directory: Directory, attempt_id: str, replicas: dict[str, Replica]) -> None:
    """Remember what this start has used so far, in case it is killed."""
    data = [replica.as_dict() for replica in replicas.values()]
    directory.write(f"{_ATTEMPTS}/{attempt_id}.json", json.dumps(data).encode())


def load_replicas(directory: Directory) -> dict[str, list[Replica]]:
    """Every start's replicas, by attempt id."""
    return {
        name.removesuffix(".json"): [
            Replica(**entry) for entry in json.loads(directory.read(f"{_ATTEMPTS}/{name}"))
        ]
        for name in directory.names(_ATTEMPTS)
    }


class Lock:
    """Keeps a second driver away from an OUTPUT directory, and says that it still lives."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raises: Busy if another driver works here."""
        while not self._directory.create(_LOCK, _owner()):
            owner = json.loads(self._directory.read(_LOCK) or b"{}")
            if not owner or _is_alive(owner):
                raise Busy(
                    f"output.path: {self._directory.url}: process {owner.get('pid')} on "
                    f"{owner.get('host')} is working here; wait for it or choose another output. "
                    f"If it is surely gone, remove {_LOCK} there"
                )
            self._directory.remove(_LOCK)
        released = threading.Event()
        thread = threading.Thread(target=self._refresh, args=(released,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            released.set()
            thread.join()
            self._directory.remove(_LOCK)

    def _refresh(self, released: threading.Event) -> None:
        while not released.wait(_REFRESH_S):
            try:
                self._directory.write(_LOCK, _owner())
            # Storage that hiccups now is written to again in a few seconds.
            except Exception as error:
                logger.warning("%s: the lock could not be refreshed: %s", _LOCK, error)


def _owner() -> bytes:
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    return json.dumps(owner).encode()


def _is_alive(owner: dict[str, Any]) -> bool:
    if owner["host"] == socket.gethostname():
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return bool(owner["pid"] != os.getpid())
    return bool(time.time() - owner["time"] < _STALE_S)


def _inputs(plan: Plan) -> str:
    """A digest of the input as it is now and as it is read: what committed blocks rely on."""
    blocks = [[b.name, b.first_row, b.num_rows, b.start, b.length] for b in plan.blocks]
    reading = [plan.config.input.model_dump(mode="json"), plan.config.dedup]
    return digest(canonical_json([plan.versions, blocks, plan.schema.to_string(), reading])).hex()
