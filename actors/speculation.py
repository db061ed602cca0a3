"""How many tokens an engine may speculate, changed while it runs.

vLLM drafts as many tokens a step as a table says for the step's batch size. The table is fixed
when the engine starts; this is the limit over it that our side sets. It is one byte in a mapped
file: the engine's scheduler lives in another process and looks at it every step, for which a
message would cost more than it decides.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.paired import PairedCheck
from pipelines.tuning import Schedule, tokens_at

LIMIT_FILE = "NIGHTMILL_SPECULATION_LIMIT"
"""The environment variable that tells the scheduler where the byte is. In vLLM's configuration
the path would change the name of its compile cache with every start."""
UNLIMITED = 255


class SpeculationLimit:
    """The most tokens that a step may speculate; 0 switches drafting off, with all its cost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._byte = np.memmap(path, np.uint8, "r+", shape=(1,))

    @classmethod
    def create(cls) -> "SpeculationLimit":
        handle, name = tempfile.mkstemp(prefix="nightmill-", suffix=".limit")
        with os.fdopen(handle, "wb") as file:
            file.write(bytes([UNLIMITED]))
        return cls(Path(name))

    @property
    def tokens(self) -> int:
        return int(self._byte[0])

    @tokens.setter
    def tokens(self, tokens: int) -> None:
        self._byte[0] = tokens

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def limited(arguments: dict[str, Any], limit: SpeculationLimit) -> dict[str, Any]:
    """Engine arguments whose speculation table stands under the limit; for the next engine that
    this process starts."""
    os.environ[LIMIT_FILE] = str(limit.path)
    return {
        **arguments,
        "scheduler_cls": "actors.vllm_speculation.limited_scheduler",
        "worker_extension_cls": "actors.vllm_speculation.IdleDrafter",
    }


class Speculation:
    """One engine's speculation: counted, and where a table drives it, checked that it pays.

    Args:
        arguments: the engine's, `speculative_config` among them.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        config = arguments.get("speculative_config") or {}
        self.enabled = bool(config)
        self.limit: SpeculationLimit | None = None
        self._schedule: Schedule = config.get("num_speculative_tokens_per_batch_size") or []
        if self._schedule:
            self.limit = SpeculationLimit.create()
        self._check = PairedCheck()
        self._held = False
        self._drafts = self._draft_tokens = self._accepted_tokens = 0

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The engine's arguments with what counting and the limit need."""
        if not self.enabled:
            return arguments
        counting = {**arguments, "per_request_spec_decode_metrics": "summary"}
        return limited(counting, self.limit) if self.limit else counting

    async def attach(self, llm: Any) -> None:
        """To be called when the engine has started."""
        if self.limit:
            await llm.collective_rpc("let_drafter_idle")

    def hold(self, tokens: int = UNLIMITED) -> None:
        """Speculate at most so many tokens from now on, without checking whether it pays."""
        assert self.limit, "no table, nothing to hold"
        self._held = True
        self.limit.tokens = tokens

    def count(self, drafts: int, draft_tokens: int, accepted_tokens: int) -> None:
        """What one step verified."""
        self._drafts += drafts
        self._draft_tokens += draft_tokens
        self._accepted_tokens += accepted_tokens

    def step(self, running: int, tokens: int, now_ns: int) -> None:
        """Look at a step that ended; at times this switches speculation off, or on again."""
        if self.limit is None or self._held or not running:
            return
        if tokens_at(self._schedule, running):
            self._check.step(running, tokens, now_ns)
        else:
            self._check.interrupt()
        self.limit.tokens = UNLIMITED if self._check.on else 0

    def report(self) -> dict[str, Any]:
        """What a summary says of it; nothing where the engine does not speculate."""
        if not self.enabled:
            return {}
        return {
            "drafts": self._drafts,
            "draft_tokens": self._draft_tokens,
            "accepted_tokens": self._accepted_tokens,
            "speculation_lost": round(self._check.pairs.gain, 3) if self._check.lost else None,
        }

    def close(self) -> None:
        if self.limit:
            self.limit.remove()


def draft_counts(completions: Sequence[Any]) -> tuple[int | None, int | None]:
    """(draft tokens, accepted tokens) of one request's choices, by vLLM's own count of them."""
    counted = [c.spec_decode_metrics for c in completions if c.spec_decode_metrics is not None]
    if not counted:
        return None, None
    accepted = sum(tokens * steps for m in counted for tokens, steps in enumerate(m.histogram))
    return sum(m.num_draft_tokens for m in counted), accepted
