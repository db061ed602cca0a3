"""The questions that a run is answering right now, so that a burst of one question is paid once."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.wrong_hits import Action, decide

Conflict = Callable[[str, str], str | None]

_CAPACITY = 8192
"""Questions remembered at least; older ones may go: their answers are in the cache by then."""
_TRIED = 4
"""Leaders that an arrival is compared with, nearest first."""
_AT_ONCE = 512
"""Arrivals whose similarities exist at the same time."""


@dataclass(frozen=True)
class Arrival:
    """A row that the cache does not answer.

    Attributes:
        key: its request key, hexadecimal.
        vector: its question's unit vector, float32.
        threshold, chosen: as for `decide`.
    """

    key: str
    scope: bytes
    text: str
    vector: np.ndarray
    threshold: float | None
    chosen: bool


@dataclass(frozen=True)
class Lead:
    """A row of this run whose answer is to serve another, or to be compared with it."""

    key: str
    similarity: float
    action: Action


class InFlight:
    """Rows that will be answered, by their questions' vectors; each later one may follow one.

    Args:
        conflict: names what forbids one answer for two questions, or returns None.
        at_least: the similarity where candidates start.
    """

    def __init__(self, conflict: Conflict, at_least: float, capacity: int = _CAPACITY) -> None:
        self._conflict, self._at_least, self._capacity = conflict, at_least, capacity
        self._scopes: dict[bytes, _Leaders] = {}
        self._order: list[tuple[bytes, str]] = []
        self._answers: dict[str, str] = {}

    def answered(self, answers: Mapping[str, str]) -> None:
        """Keep what rows were answered, by key, for as long as the rows are known."""
        self._answers |= answers

    def answers(self, keys: Sequence[str]) -> dict[str, str]:
        """Those of them that are known already."""
        return {key: self._answers[key] for key in keys if key in self._answers}

    def join(self, arrivals: Sequence[Arrival]) -> list[Lead | None]:
        """For each arrival the nearest row before it that one answer could serve as well.

        An arrival that is to be served by its lead is none itself. One that comes again, because
        Ray ran its task again, has none again.
        """
        by_scope: dict[bytes, list[int]] = defaultdict(list)
        for i, arrival in enumerate(arrivals):
            by_scope[arrival.scope].append(i)
        leads: list[Lead | None] = [None] * len(arrivals)
        for scope, members in by_scope.items():
            for start in range(0, len(members), _AT_ONCE):
                some = members[start : start + _AT_ONCE]
                found = self._join(scope, [arrivals[i] for i in some])
                for i, lead in zip(some, found, strict=True):
                    leads[i] = lead
        if len(self._order) > 2 * self._capacity:
            self._forget()
        return leads

    def _join(self, scope: bytes, arrivals: list[Arrival]) -> list[Lead | None]:
        leaders = self._scopes.setdefault(scope, _Leaders())
        # Whom an arrival may follow: who led before, then who came before it just now.
        known: list[Arrival | None] = [*leaders.arrivals]
        vectors = np.stack([arrival.vector for arrival in arrivals])
        similarities = vectors @ np.vstack([leaders.vectors(vectors.shape[1]), vectors]).T
        leads: list[Lead | None] = []
        for arrival, row in zip(arrivals, similarities, strict=True):
            is_new = arrival.key not in leaders
            lead = self._lead(arrival, row[: len(known)], known) if is_new else None
            leads_itself = is_new and (lead is None or lead.action != "serve")
            known.append(arrival if leads_itself else None)
            if leads_itself:
                leaders.add(arrival)
                self._order.append((scope, arrival.key))
            leads.append(lead)
        return leads

    def _lead(
        self, arrival: Arrival, similarities: np.ndarray, known: Sequence[Arrival | None]
    ) -> Lead | None:
        near = np.flatnonzero(similarities >= self._at_least)
        nearest = near[np.argsort(-similarities[near], kind="stable")]
        candidates = [(j, leader) for j in nearest if (leader := known[j])]
        for j, leader in candidates[:_TRIED]:
            if self._conflict(leader.text, arrival.text) is None:
                similarity = float(similarities[j])
                action = decide(similarity, arrival.threshold, arrival.chosen)
                return Lead(leader.key, similarity, action)
        return None

    def _forget(self) -> None:
        """Half at once: forgetting one by one would copy all vectors each time."""
        self._order = self._order[-self._capacity :]
        kept: dict[bytes, set[str]] = defaultdict(set)
        for scope, key in self._order:
            kept[scope].add(key)
        self._scopes = {scope: self._scopes[scope].only(keys) for scope, keys in kept.items()}
        known = {key for _, key in self._order}
        self._answers = {key: text for key, text in self._answers.items() if key in known}


@dataclass
class _Leaders:
    """The leaders of one scope."""

    arrivals: list[Arrival] = field(default_factory=list)
    _keys: set[str] = field(default_factory=set)
    _stacked: np.ndarray | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, arrival: Arrival) -> None:
        self.arrivals.append(arrival)
        self._keys.add(arrival.key)

    def vectors(self, dimensions: int) -> np.ndarray:
        """Those of all leaders: float32 of shape (leaders, dimensions)."""
        if self._stacked is None:
            self._stacked = np.empty((0, dimensions), np.float32)
        if fresh := [arrival.vector for arrival in self.arrivals[len(self._stacked) :]]:
            self._stacked = np.vstack([self._stacked, *fresh])
        return self._stacked

    def only(self, keys: set[str]) -> "_Leaders":
        kept = [arrival for arrival in self.arrivals if arrival.key in keys]
        return _Leaders(kept, {arrival.key for arrival in kept})
