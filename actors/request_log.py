"""The log of requests: a line of JSON for each, in one file a day."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.errors import UsageProblem
from pipelines.served import Refused, Served

logger = logging.getLogger(__name__)


class RequestLog:
    """Appends to `FOLDER/YYYY-MM-DD.jsonl`, by UTC. Several processes may write to one folder.

    A line is one write to a file that is open for appending, so lines stay whole. Text of prompts
    and answers is in it only `with_text`.
    """

    def __init__(
        self,
        folder: Path,
        with_text: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Raises: UsageProblem if the folder cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageProblem(
                f"{folder}: requests cannot be logged there ({error}); serve.data_dir must be a "
                "folder that can be written"
            ) from error
        self._folder, self._with_text, self._clock = folder, with_text, clock
        self._day = ""
        self._file = -1

    def served(self, done: Served, row: Mapping[str, Any]) -> None:
        # The key is how `cache purge --entry` names an answer; it tells nothing of the text.
        key = row.get("request_key")
        line = {"event": "request", **asdict(done), "tpot_s": done.tpot_s, "request_key": key}
        if self._with_text:
            line |= {"request": row.get("_request"), "response": row.get("response")}
        self._write(line)

    def refused(self, event: Refused) -> None:
        self._write({"event": "refused", **asdict(event)})

    def _write(self, line: dict[str, Any]) -> None:
        now = self._clock()
        stamped = {"time": now.isoformat(timespec="milliseconds"), **line}
        text = json.dumps({k: v for k, v in stamped.items() if v is not None}, ensure_ascii=False)
        try:
            os.write(self._opened(f"{now:%Y-%m-%d}"), text.encode() + b"\n")
        except OSError as error:
            logger.error("request log: %s", error)

    def _opened(self, day: str) -> int:
        if day != self._day:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            file = os.open(self._folder / f"{day}.jsonl", flags, 0o600)
            if self._file >= 0:
                os.close(self._file)
            self._day, self._file = day, file
        return self._file
