"""Is the floor still kept? What checks of cheap answers in the shadow say, while a run goes on.

Some rows that stay cheap are answered by the strong tier too. If routing kept its floor, the mean
gain of those answers could not be above what the floor allows a cheap row to lose. The capital of
a gambler who bets on more grows only if it is: by Ville's inequality it ever reaches 1 / error
with a probability of at most that error, however often one looks (Waudby-Smith and Ramdas, JRSS B
2024).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipelines.certify import Floor

_STAKES = np.array([0.05, 0.1, 0.2, 0.4])
"""Of the capital, divided equally among them: one is about right for each size of loss."""


@dataclass(frozen=True)
class Standing:
    """What is known so far.

    Attributes:
        checked, worse: shadow checks, and how many of them the cheap answer lost, or may have.
        share_cheap: of the rows that were routed.
        loss: of quality by routing, as the checks have it; of 1.
        in_danger: the floor is broken at the floor's own confidence; it stays so.
    """

    checked: int
    worse: int
    share_cheap: float
    loss: float
    in_danger: bool


@dataclass
class RouteGuard:
    """Counts what was routed, and bets."""

    floor: Floor
    _capital: np.ndarray = field(default_factory=lambda: np.ones(len(_STAKES)))
    _rows: int = 0
    _cheap: int = 0
    _checked: int = 0
    _worse: int = 0
    _gain: float = 0.0
    _in_danger: bool = False
    _known: set[str] = field(default_factory=set)

    def routed(self, rows: int, cheap: int) -> None:
        """So many rows were routed, so many of them to the cheap tier."""
        self._rows += rows
        self._cheap += cheap

    def checked(self, gains: Mapping[str, float]) -> None:
        """The strong answer's quality less the cheap one's, from -1 to 1, by row, in turn.

        A row counts once: after a kill its block may come again.
        """
        for row_id, gain in gains.items():
            if row_id in self._known:
                continue
            self._known.add(row_id)
            # What a cheap row may lose on average, by all that was routed before this one.
            allowed = min(self.floor.loss / max(self._share(), 1e-9), 1.0)
            self._capital *= 1 + _STAKES * (gain - allowed)
            self._checked += 1
            self._worse += gain > 0
            self._gain += gain
            if self._capital.mean() >= 1 / self.floor.error:
                self._in_danger = True

    def standing(self) -> Standing:
        loss = self._share() * self._gain / self._checked if self._checked else 0.0
        return Standing(self._checked, self._worse, self._share(), loss, self._in_danger)

    def _share(self) -> float:
        return self._cheap / self._rows if self._rows else 1.0
