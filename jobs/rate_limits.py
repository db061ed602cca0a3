"""The rate limit of an API account as all engines of a cluster share it, whoever started them."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from actors.rate_limits import RateLimits
from pipelines.api_tier import API
from pipelines.keys import canonical_json, digest
from pipelines.rate_limit import Lease

_NAMESPACE = "nightmill"


class RemoteLimits:
    """A `RateLimits` in an actor that is named after its account.

    The first who asks starts it, and it ends with that process. The next one then starts another,
    which grants as evenly: nothing is lost but what the last one had learned. Who share an account
    should state the same limits: those of the one who started it hold.
    """

    def __init__(self, config: API) -> None:
        self._name = f"rate-limits-{digest(canonical_json(config.account)).hex()}"
        self._limits = config.requests_per_minute, config.tokens_per_minute
        self._found: Any = None

    async def lease(self, tokens: Sequence[int], returned: int) -> Lease:
        try:
            lease: Lease = await self._actor.lease.remote(tokens, returned)
        except RayActorError:
            self._found = None
            lease = await self._actor.lease.remote(tokens, returned)
        return lease

    def learn(self, headers: Mapping[str, str]) -> None:
        self._actor.learn.remote(headers)

    def pause(self, seconds: float) -> None:
        self._actor.pause.remote(seconds)

    @property
    def _actor(self) -> Any:
        if self._found is None:
            actor = ray.remote(RateLimits).options(
                name=self._name, namespace=_NAMESPACE, get_if_exists=True, num_cpus=0
            )
            self._found = actor.remote(*self._limits)
        return self._found


def shared_limits(config: Any) -> RemoteLimits | None:
    """What an engine of this configuration asks; None if it calls no API."""
    return RemoteLimits(config) if isinstance(config, API) else None
