"""A request online: as it was taken in, as it ended, and who is asked and told about it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.pricing import Price
from pipelines.refusal import Refusal
from pipelines.served import Finished

Row = dict[str, Any]


@dataclass(frozen=True)
class Reservation:
    """The most that a request can use.

    Attributes:
        name: unlike that of any other request.
        tokens: of its prompt and its completion.
    """

    name: str
    tokens: int
    nusd: int


class Gate(Protocol):
    """Limits of tenants."""

    async def admit(self, tenant: str | None, most: Reservation) -> Refusal | None:
        """Reserve that much; who is refused reserves nothing."""
        ...

    async def settle(
        self, tenant: str | None, most: Reservation, tokens: int, cost_nusd: int
    ) -> None:
        """Replace a reservation by what was used; the same once more changes nothing."""
        ...


class Observer(Protocol):
    """Is told what ended and what was refused."""

    def finished(self, seen: Finished, traceparent: str | None = None) -> None: ...

    def refused(self, reason: str, tenant: str | None) -> None: ...


@dataclass(frozen=True)
class Seen:
    """A request that has ended, as an observer is told."""

    request_id: str
    tenant: str | None
    endpoint: str
    stream: bool
    row: Mapping[str, Any]
    price: Price
    ttft_s: float | None
    e2e_s: float
    cancelled: bool = False

    @property
    def cost_nusd(self) -> int:
        return self.price.cost_nusd

    @property
    def baseline_nusd(self) -> int | None:
        return self.price.baseline_nusd


@dataclass
class Asked:
    """A request that was taken in, and what is known of it so far."""

    request_id: str
    tenant: str | None
    endpoint: str
    stream: bool
    row: Row
    traceparent: str | None = None
    priority: int = 0
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    price: Price | None = None

    def spoke(self) -> None:
        """The client gets its first token."""
        self.first = self.first or time.monotonic()


class Unreachable(Exception):
    """A part of the endpoint is not there now; asking again may help."""


class Refused(Exception):
    """A request that its tenant's limits do not let in."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
