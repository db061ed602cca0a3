"""Which waiting request goes to the engine next, and how many may be there at once.

Requests that begin alike go together, so that the engine computes their common prefix once;
within such a group long answers go first, so that the run does not end with one long row
alone. Only the oldest of the waiting are compared: a block is committed when its last row is
done, and a short row must not wait for every long one that is still to come.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pipelines.keys import digest
from pipelines.requests import Request, text_of

_PREFIX_CHARS = 256
"""Shared text shorter than this is not worth grouping: less than an engine's cache block."""
_HEADROOM = 1.125
"""Requests handed to the engine per request that it runs, so that a slot never waits for us."""
_KEPT_FREE = 1 / 8
"""Of an engine's slots, those that requests with a lower priority than the first leave free."""
_PREFIXES_KEPT = 1 << 14
_ASSUMED_TOKENS = 1 << 10
"""What an answer without any limit is expected to have, until answers have been seen."""


@dataclass(order=True)
class Ticket:
    """One waiting request. Of two the smaller goes first.

    Attributes:
        rank: the expected tokens negated, because Python's heaps give the smallest.
        number: in the order of arrival.
        admitted: what the host needs to let it in.
    """

    rank: int = field(init=False)
    expected_tokens: int = field(compare=False)
    number: int
    prefix: bytes = field(compare=False)
    request: Request = field(compare=False)
    admitted: Any = field(compare=False, default=None)

    def __post_init__(self) -> None:
        self.rank = -self.expected_tokens


def prefix_of(request: Request) -> bytes:
    """Names what a request shares with others; empty if that is too short to matter.

    Everything before the last message, where that is long: a system prompt, a document,
    examples. Otherwise the beginning of the text, as a filled-in template has it.
    """
    texts = [text_of(message.get("content")) for message in request.messages]
    lead = "\0".join(texts[:-1])
    if len(lead) >= _PREFIX_CHARS:
        return digest(lead.encode())
    whole = "\0".join(texts)
    return digest(whole[:_PREFIX_CHARS].encode()) if len(whole) >= 2 * _PREFIX_CHARS else b""


class WaitingRoom:
    """The waiting requests in the order in which they are to run.

    Args:
        window: how many of the oldest are compared with each other.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._later: deque[Ticket] = deque()
        self._groups: dict[bytes, list[Ticket]] = {}
        self._compared = 0
        self._current = b""

    def __len__(self) -> int:
        return self._compared + len(self._later)

    def add(self, ticket: Ticket) -> None:
        self._later.append(ticket)

    def pop(self) -> Ticket:
        """The next request; there must be one, and a window to compare it in."""
        while self._later and self._compared < self.window:
            ticket = self._later.popleft()
            heapq.heappush(self._groups.setdefault(ticket.prefix, []), ticket)
            self._compared += 1
        if self._current not in self._groups:
            # The group that came first: whoever waits longest is never overtaken for good.
            self._current = next(iter(self._groups))
        group = self._groups[self._current]
        ticket = heapq.heappop(group)
        self._taken(group, self._current)
        return ticket

    def discard(self, ticket: Ticket) -> None:
        """Take out who does not wait any more; one that is not here may be."""
        group = self._groups.get(ticket.prefix, [])
        if ticket in group:
            group.remove(ticket)
            heapq.heapify(group)
            self._taken(group, ticket.prefix)
        elif ticket in self._later:
            self._later.remove(ticket)

    def _taken(self, group: list[Ticket], prefix: bytes) -> None:
        self._compared -= 1
        if not group:
            del self._groups[prefix]

    def pop_half(self) -> list[Ticket]:
        """Every second waiting request, so that both halves are alike."""
        if not self.window:
            # Nothing is compared before the engine has told its size.
            both, self._later = list(self._later), deque()
        else:
            both = [self.pop() for _ in range(len(self))]
        for ticket in both[::2]:
            self.add(ticket)
        return both[1::2]


class WaitingRooms:
    """One room for each priority. Who is in a later one waits until all before it are empty.

    Attributes:
        window: of each room.
    """

    def __init__(self) -> None:
        self.window = 0
        self._rooms: dict[int, WaitingRoom] = {}

    def __len__(self) -> int:
        return sum(map(len, self._rooms.values()))

    @property
    def priority(self) -> int:
        """Of the next request; there must be one."""
        return min(self._rooms)

    def add(self, ticket: Ticket) -> None:
        room = self._rooms.setdefault(ticket.request.priority, WaitingRoom(self.window))
        room.add(ticket)

    def pop(self) -> Ticket:
        priority = self.priority
        ticket = self._opened(priority).pop()
        self._close_if_empty(priority)
        return ticket

    def discard(self, ticket: Ticket) -> None:
        """Take out who does not wait any more; one that is not here may be."""
        priority = ticket.request.priority
        if priority in self._rooms:
            self._rooms[priority].discard(ticket)
            self._close_if_empty(priority)

    def _close_if_empty(self, priority: int) -> None:
        if not len(self._rooms[priority]):
            del self._rooms[priority]

    def pop_half(self) -> list[Ticket]:
        """Half of each room."""
        halves = [self._opened(priority).pop_half() for priority in self._rooms]
        return [ticket for half in halves for ticket in half]

    def _opened(self, priority: int) -> WaitingRoom:
        room = self._rooms[priority]
        room.window = self.window
        return room


class LengthEstimates:
    """How long answers turn out, from those that the run has seen of the same prefix."""

    def __init__(self) -> None:
        self._all = _Lengths()
        self._seen: dict[bytes, _Lengths] = {}

    def seen(self, prefix: bytes, max_tokens: int | None, completion_tokens: int) -> None:
        self._all.add(max_tokens, completion_tokens)
        if prefix:
            group = self._seen.pop(prefix, None) or _Lengths()
            group.add(max_tokens, completion_tokens)
            # Put last again: the first is the one that was not seen for the longest time.
            self._seen[prefix] = group
            if len(self._seen) > _PREFIXES_KEPT:
                del self._seen[next(iter(self._seen))]

    def expected(self, prefix: bytes, max_tokens: int | None, min_tokens: int) -> int:
        """Tokens that an answer will probably have: the used share of its limit, or the mean."""
        lengths = self._seen.get(prefix, self._all)
        return max(lengths.expected(max_tokens), min_tokens)


@dataclass
class _Lengths:
    """Sums over the answers of one prefix; `limits` and `used` over those with a limit."""

    answers: int = 0
    tokens: int = 0
    limits: int = 0
    used: int = 0

    def add(self, max_tokens: int | None, completion_tokens: int) -> None:
        self.answers += 1
        self.tokens += completion_tokens
        if max_tokens is not None:
            self.limits += max_tokens
            self.used += completion_tokens

    def expected(self, max_tokens: int | None) -> int:
        if max_tokens is None:
            return self.tokens // self.answers if self.answers else _ASSUMED_TOKENS
        return max_tokens * self.used // self.limits if self.limits else max_tokens


class AdmissionLimit:
    """How many requests the engine holds at once.

    What it was built for, until it shows that it cannot: a death halves the limit, and running
    out of KV space lowers it to what fitted. It grows back with the answers, but not again to
    where the engine died twice: that was no accident but its memory.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self._open = max_num_seqs > 0
        self._ceiling = float(max_num_seqs)
        self._size = float(max_num_seqs)
        self._died_at: float | None = None

    @property
    def num_seqs(self) -> int:
        return max(int(self._size), 1)

    @property
    def handed(self) -> int:
        """Requests to hand to the engine: those that it runs and a few that stand ready."""
        return int(self.num_seqs * _HEADROOM) + 1 if self._open else 0

    def places(self, priority: int) -> int:
        """How many may be inside for one more of this priority to go in.

        A later one never stands ready in front of the engine, where it could not be overtaken,
        and leaves slots free: who comes with the first priority starts at once.
        """
        if not priority:
            return self.handed
        return max(int(self.num_seqs * (1 - _KEPT_FREE)), 1) if self._open else 0

    def answered(self) -> None:
        self._size = min(self._size + 1 / self._size, self._ceiling)

    def preempted(self, running: int) -> None:
        """The engine threw a request out to make room for the `running` others."""
        self._size = float(max(min(self._size, running), 1))

    def died(self) -> None:
        if self._died_at is not None and self._size > self._died_at / 2:
            self._ceiling = max(self._size / 2, 1.0)
        self._died_at = self._size
        self._size = max(self._size / 2, 1.0)
