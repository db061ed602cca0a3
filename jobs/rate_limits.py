"""The rate limit of an API account as all engines of a cluster share it, whoever started them."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from actors.api_client import read_key
from actors.rate_limits import RateLimits
from pipelines.api_tier import API
from pipelines.keys import canonical_json, digest
from pipelines.rate_limit import Lease

_NAMESPACE = "nightmill"
_WAITS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


class RemoteLimits:
    """A `RateLimits` in an actor that is named after its account: its URL and key.

    The first who asks starts it, and it ends with that process. The next one then starts another,
    which grants as evenly: nothing is lost but what the last one had learned. Of the limits that
    those who share it state, the least hold; who states none asks only once it has learned one.
    """

    def __init__(self, config: API) -> None:
        self._config = config
        self._found: Any = None

    async def lease(self, tokens: Sequence[int], returned: int) -> Lease:
        for wait_s in _WAITS_S:
            try:
                lease: Lease = await self._actor.lease.remote(tokens, returned)
            except RayActorError:
                # It takes Ray a while to know that a name is free again.
                self._found = None
                await asyncio.sleep(wait_s)
            else:
                return lease
        lease = await self._actor.lease.remote(tokens, returned)
        return lease

    def learn(self, headers: Mapping[str, str]) -> None:
        self._actor.learn.remote(headers)

    def pause(self, seconds: float) -> None:
        self._actor.pause.remote(seconds)

    @property
    def _actor(self) -> Any:
        if self._found is None:
            account = canonical_json([self._config.base_url, read_key(self._config)])
            actor = ray.remote(RateLimits).options(
                name=f"rate-limits-{digest(account).hex()}",
                namespace=_NAMESPACE,
                get_if_exists=True,
                num_cpus=0,
            )
            self._found = actor.remote()
            limits = self._config.requests_per_minute, self._config.tokens_per_minute
            self._found.state.remote(*limits)
        return self._found


def shared_limits(config: Any) -> RemoteLimits | None:
    """What an engine of this configuration asks; None if it calls no API."""
    return RemoteLimits(config) if isinstance(config, API) else None
