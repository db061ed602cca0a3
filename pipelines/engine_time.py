"""How rows share an engine's time.

Requests run together, so no request has a duration of its own that could be paid for. Each
step's time goes to the requests that were in it: its fixed part (reading the weights) equally,
its token part by tokens computed, its context part by context length (reading the KV cache).
How large the three parts are is fitted to the steps that were seen. What a finished request
pays is its share of the busy time not yet paid for, so that all shares sum exactly to the time
that the engine was busy.
"""

from dataclasses import dataclass, field

import numpy as np

_MIN_STEPS = 16
"""Below this many steps the fit would follow noise; the parts then count the same."""


@dataclass
class StepModel:
    """Least squares of step time on (1, tokens, context tokens), kept as running sums."""

    moments: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    response: np.ndarray = field(default_factory=lambda: np.zeros(3))
    steps: int = 0

    def add(self, tokens: int, context: float, step_ns: int) -> None:
        x = np.array([1.0, tokens, context])
        self.moments += np.outer(x, x)
        self.response += x * step_ns
        self.steps += 1

    def parts(self, tokens: int, context: float) -> tuple[float, float, float]:
        """Shares of a step that are fixed, per token and per context token; they sum to 1."""
        raw = self._coefficients() * np.array([1.0, tokens, context])
        total = raw.sum()
        if total <= 0:
            return 1.0, 0.0, 0.0
        return tuple(raw / total)

    def _coefficients(self) -> np.ndarray:
        if self.steps < _MIN_STEPS:
            mean = self.moments[0] / max(self.steps, 1)
            return 1.0 / np.maximum(mean, 1.0)
        # A ridge keeps it solvable when the steps were all alike, as in a steady decode.
        scale = np.sqrt(np.maximum(np.diag(self.moments), 1.0))
        normal = self.moments / np.outer(scale, scale) + 1e-6 * np.eye(3)
        return np.maximum(np.linalg.solve(normal, self.response / scale) / scale, 0.0)


@dataclass
class _Running:
    """What the clock's sums were when a request came, and its first step's rate per token."""

    prompt_tokens: int
    steps: int
    fixed: float
    per_token: float
    per_context: float
    per_context_step: float
    prefill_rate: float = 0.0


@dataclass
class Occupancy:
    """How full an engine was, and what it had to do again.

    `running_ns` and `waiting_ns` are requests times nanoseconds: over the busy time they give
    the mean number that ran in a step and that waited before it. `generated_tokens` counts all
    that were generated, also those of rows whose engine then died.
    """

    running_ns: int = 0
    waiting_ns: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    deaths: int = 0

    def as_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def observe(self, running: int, waiting: int, step_ns: int) -> None:
        """A step took so long; so many run and wait after it."""
        self.running_ns += running * step_ns
        self.waiting_ns += waiting * step_ns


class EngineClock:
    """Divides one replica's busy time among its requests, in constant time per event.

    Pure: the caller brings the time in nanoseconds. Busy is every moment with at least one
    request admitted.
    """

    def __init__(self) -> None:
        self.model = StepModel()
        self.busy_ns = 0
        self._paid_ns = 0
        self._running: dict[str, _Running] = {}
        self._new: list[_Running] = []
        self._first_ns = 0
        self._last_ns = 0
        self._last_step_ns = 0
        # What a request accrued that was in every step so far: the steps themselves, its equal
        # share of their fixed parts, and its share of the rest per token and context token.
        self._steps = 0
        self._fixed = 0.0
        self._per_token = 0.0
        self._per_context = 0.0
        # The same weighted by the step's number: a request's context grows by one a step.
        self._per_context_step = 0.0
        # Accrued by all that run now, and the context that they hold.
        self._accrued = 0.0
        self._context = 0

    @property
    def active_ns(self) -> int:
        """From the first admission to the last finish, idle time between them included."""
        return self._last_ns - self._first_ns

    def waiting_for_step_ns(self, now_ns: int) -> int:
        """Since when nothing has come of the requests that run; 0 if none does."""
        return now_ns - self._last_step_ns if self._running else 0

    def admit(self, request: str, prompt_tokens: int, now_ns: int) -> None:
        self._advance(now_ns)
        if not self._running:
            self._last_step_ns = now_ns
        if not self._first_ns:
            self._first_ns = now_ns
        self._context += prompt_tokens
        running = _Running(
            prompt_tokens,
            self._steps,
            self._fixed,
            self._per_token,
            self._per_context,
            self._per_context_step,
        )
        self._running[request] = running
        self._new.append(running)

    def step(self, tokens: int, now_ns: int) -> int:
        """Record the end of an engine step that computed `tokens` for the running requests.

        Returns:
            How long it took, in nanoseconds.
        """
        self._advance(now_ns)
        step_ns = now_ns - self._last_step_ns
        self._last_step_ns = now_ns
        if not self._running or tokens <= 0 or step_ns <= 0:
            return 0
        context = max(self._context, 1)
        self.model.add(tokens, context, step_ns)
        fixed, per_token, per_context = self.model.parts(tokens, context)
        self._fixed += step_ns * fixed / len(self._running)
        self._per_token += step_ns * per_token / tokens
        for running in self._new:
            running.prefill_rate = step_ns * per_token / tokens
        self._new.clear()
        self._per_context += step_ns * per_context / context
        self._per_context_step += self._steps * step_ns * per_context / context
        self._steps += 1
        self._context += len(self._running)
        self._accrued += step_ns
        return step_ns

    def finish(self, request: str, computed_prompt_tokens: int, now_ns: int) -> int:
        """The nanoseconds that a finished request pays; whoever leaves last pays the rest.

        Args:
            computed_prompt_tokens: those that were not read from the prefix cache.
        """
        self._advance(now_ns)
        unpaid = self.busy_ns - self._paid_ns
        own = self._running.pop(request)
        steps = self._steps - own.steps
        self._context -= own.prompt_tokens + steps
        accrued = min(self._accrued_by(own, computed_prompt_tokens), self._accrued)
        share = unpaid
        if self._running:
            share = int(unpaid * accrued / self._accrued) if self._accrued > 0 else 0
        self._accrued = self._accrued - accrued if self._running else 0.0
        self._paid_ns += share
        return share

    def _advance(self, now_ns: int) -> None:
        if self._running:
            self.busy_ns += max(now_ns - self._last_ns, 0)
        self._last_ns = max(now_ns, self._last_ns)

    def _accrued_by(self, own: _Running, computed_prompt_tokens: int) -> float:
        """The prompt at its first step's rate, then one token a step, and all held context."""
        rate = self._per_context - own.per_context
        growth = self._per_context_step - own.per_context_step - own.steps * rate
        return (
            (self._fixed - own.fixed)
            + (self._per_token - own.per_token)
            + own.prefill_rate * computed_prompt_tokens
            + rate * own.prompt_tokens
            + growth
        )
