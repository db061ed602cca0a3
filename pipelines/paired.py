"""The paired check: does speculation pay in this run, at this load, now?

Now and then some steps run with speculation and as many without; a pair of such windows at the
same load gives one gain. When the gains show a loss beyond their noise, speculation stays off.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["undecided", "keep", "off"]

_MIN_PAIRS, _MAX_PAIRS = 4, 12
_STANDARD_ERRORS = 2.0
_WINDOW_STEPS, _SETTLING_STEPS = 32, 8
"""Of a window's steps the first count for neither side: the batch is still moved over."""
_STEPS_BEFORE, _STEPS_BETWEEN = 256, 512
"""Pairs are far apart, so that a winner loses little of its gain to being checked."""
_SAME_LOAD = 1.25


@dataclass(frozen=True)
class Pairs:
    """The gains of all pairs: tokens a second with speculation over those without."""

    gains: tuple[float, ...] = ()

    @property
    def gain(self) -> float:
        return statistics.geometric_mean(self.gains)

    @property
    def verdict(self) -> Verdict:
        """`off` if it loses by more than noise; many pairs that show no loss are a `keep`."""
        if len(self.gains) < _MIN_PAIRS:
            return "undecided"
        logs = [math.log(gain) for gain in self.gains]
        mean = statistics.fmean(logs)
        noise = _STANDARD_ERRORS * statistics.stdev(logs) / math.sqrt(len(logs))
        if mean + noise < 0:
            return "off"
        return "keep" if mean > noise or len(logs) >= _MAX_PAIRS else "undecided"


@dataclass
class _Window:
    """Steps in a row on the same side."""

    on: bool
    steps: int = 0
    tokens: int = 0
    running: int = 0
    began_ns: int = 0
    ended_ns: int = 0

    def add(self, running: int, tokens: int, now_ns: int) -> None:
        self.steps += 1
        if self.steps <= _SETTLING_STEPS:
            self.began_ns = now_ns
            return
        self.tokens += tokens
        self.running += running
        self.ended_ns = now_ns

    @property
    def full(self) -> bool:
        return self.steps == _SETTLING_STEPS + _WINDOW_STEPS

    @property
    def tokens_per_s(self) -> float:
        return max(self.tokens, 1) * 1e9 / max(self.ended_ns - self.began_ns, 1)


class PairedCheck:
    """Says after each step whether the next ones speculate.

    The first check comes when the engine has warmed up. One that keeps speculation is repeated
    after a pause that doubles, because rows may change; one that finds a loss ends it for good.
    """

    def __init__(self) -> None:
        self.on = True
        self.pairs = Pairs()
        self.lost = False
        self._pause = self._wait = _STEPS_BEFORE
        self._windows: list[_Window] = []
        self._first_side = True

    def step(self, running: int, tokens: int, now_ns: int) -> None:
        """Look at a step that ended, with so many requests and so many tokens generated."""
        if self.lost:
            return
        if self._wait:
            self._wait -= 1
            return
        if not self._windows:
            self.on = self._first_side
            self._windows.append(_Window(self.on))
        window = self._windows[-1]
        window.add(running, tokens, now_ns)
        if window.full:
            self._turn()

    def interrupt(self) -> None:
        """The batch left the sizes where speculation is wanted; half a pair says nothing."""
        if self._windows:
            self._rest()

    def _turn(self) -> None:
        if len(self._windows) == 1:
            self.on = not self.on
            self._windows.append(_Window(self.on))
            return
        first, second = self._windows
        self._rest()
        if max(first.running, second.running) <= _SAME_LOAD * min(first.running, second.running):
            on, off = (first, second) if first.on else (second, first)
            self.pairs = Pairs((*self.pairs.gains, on.tokens_per_s / off.tokens_per_s))
            self._decide()

    def _rest(self) -> None:
        """Speculate until the next pair, which begins on the other side: drift cancels out."""
        self._windows.clear()
        self.on, self._wait = True, _STEPS_BETWEEN
        self._first_side = not self._first_side

    def _decide(self) -> None:
        verdict = self.pairs.verdict
        self.lost = verdict == "off"
        self.on = not self.lost
        if verdict == "keep":
            self._pause *= 2
            self._wait = self._pause
            self.pairs = Pairs()
