"""One batch of the online endpoint as a main job: its input, configuration, process, results."""

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from actors.batch_store import TenantFolder, copy_lines
from jobs.summary import Summary, load_summary
from pipelines.batch_api import BatchRequest, LineError, StoredFile, checked_lines
from pipelines.config import Output, RunConfig
from pipelines.config_file import dump_config, load_config
from pipelines.openai_batch import ERROR_FILE, OUTPUT_FILE
from pipelines.prices import NUSD
from pipelines.prices import nano_dollars as nusd
from pipelines.routing import columns_of
from pipelines.schema import nano_dollars
from pipelines.storage import Directory

_ROOT = Path(__file__).parent.parent
_TENANT = "tenant"
"""The column that keeps tenants apart, where the configuration names none."""


class BatchWork:
    """Where a batch's job reads and writes.

    Input and configuration are written once: a job that is started again resumes by what it was
    started with, whatever the endpoint's configuration has become.
    """

    def __init__(
        self, data: Directory, config: RunConfig, folder: TenantFolder, batch: BatchRequest
    ) -> None:
        self._data, self._config = data, config
        self._folder, self._batch = folder, batch
        self._place = folder.work_folder(batch)
        url = f"{data.url.rstrip('/')}/{self._place}"
        self._url = url
        self.run = Directory(f"{url}/run", config.storage)
        # On this machine, whatever the data lies on.
        logs = Path(tempfile.gettempdir(), f"nightmill-batches-{os.getuid()}")
        self._log = logs / f"{batch.id}.log"

    def write_input(self) -> tuple[int, list[LineError]]:
        """The job's rows, and what is wrong with the batch's lines."""
        file = self._folder.file(self._batch.input_file_id)
        if file is None:
            return 0, [LineError("input_file_not_found", "the input file was deleted")]
        errors: list[LineError] = []
        named = columns_of(self._config.route)
        column = self._tenant_column
        columns = {column: self._folder.tenant} if column else {}
        self._data.make(self._place)
        target = self._data.path(f"{self._place}/input.jsonl")
        with self._folder.open_file(file) as source, self._data.fs.open(target, "wb") as lines:
            checked = checked_lines(source, self._batch.endpoint, named, columns, errors)
            return copy_lines(checked, lines), errors

    def write_config(self, *budgets_nusd: int | None) -> None:
        config = self.job_config(*budgets_nusd)
        self._data.write(f"{self._place}/config.yaml", dump_config(config).encode())

    def budget_nusd(self) -> int | None:
        """What the job was started with."""
        config = load_config(self._data.path(f"{self._place}/config.yaml"))
        return None if config.budget_usd is None else nusd(config.budget_usd)

    def job_config(self, *budgets_nusd: int | None) -> RunConfig:
        """The endpoint's configuration over this input, within all budgets that are given."""
        given = self._config.input
        read = {
            "path": f"{self._url}/input.jsonl",
            "format": "openai_batch",
            "columns": given.columns.model_copy(update={"tenant": self._tenant_column}),
            "order": "stream",
        }
        budgets = [budget / NUSD for budget in budgets_nusd if budget is not None]
        if self._config.budget_usd is not None:
            budgets.append(self._config.budget_usd)
        changes = {
            "input": given.model_copy(update=read),
            "output": Output(path=f"{self._url}/run", openai_batch=True),
            "budget_usd": min(budgets) if budgets else None,
        }
        return self._config.model_copy(update=changes)

    @property
    def _tenant_column(self) -> str | None:
        """None where there are no tenants: a run's rows without any have the same keys."""
        named = self._config.input.columns.tenant
        return named or (None if self._folder.tenant is None else _TENANT)

    def start(self) -> subprocess.Popen[bytes]:
        """The job's process; it ends when its standard input does."""
        self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [
                    sys.executable, "-m", "jobs.batch_job",
                    self._data.path(f"{self._place}/config.yaml"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )  # fmt: skip

    def words(self) -> str:
        """The last that the job has said."""
        with suppress(OSError):
            return self._log.read_text(errors="replace").strip()[-2000:]
        return ""

    def summary(self) -> Summary | None:
        return load_summary(self.run)

    def counted(self, seen: dict[str, int]) -> tuple[int, int]:
        """Rows committed so far, answered and failed.

        Args:
            seen: what earlier calls have counted, by part; gets what this one does.
        """
        for name in (*self.run.parts("rows"), *self.run.parts("errors")):
            if name not in seen:
                seen[name] = self.run.num_rows(name)
        rows = sum(n for name, n in seen.items() if name.startswith("rows/"))
        failed = sum(n for name, n in seen.items() if name.startswith("errors/"))
        return max(rows - failed, 0), failed

    def used(self) -> tuple[int, int]:
        """Tokens and nano-dollars of the job; of one without a summary, those of its rows."""
        if summary := self.summary():
            return summary.prompt_tokens + summary.completion_tokens, summary.bill_nusd
        tokens = cost = 0
        for name in self.run.parts("rows"):
            table = self.run.read_table(name, ["prompt_tokens", "completion_tokens", "cost_usd"])
            cost += int(nano_dollars(table["cost_usd"]).sum())
            for column in ("prompt_tokens", "completion_tokens"):
                tokens += sum(filter(None, table[column].to_pylist()))
        return tokens, cost

    def keep_results(self) -> tuple[StoredFile | None, StoredFile | None]:
        """Output and errors of the job as files of the tenant; none for what is empty."""
        return self._keep(OUTPUT_FILE), self._keep(ERROR_FILE)

    def _keep(self, name: str) -> StoredFile | None:
        if not self.run.exists(name) or not self.run.fs.size(self.run.path(name)):
            return None
        with self.run.fs.open(self.run.path(name), "rb") as content:
            return self._folder.add_file(content, name, "batch_output")
