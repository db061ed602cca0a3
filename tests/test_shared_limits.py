"""One rate limit for all engines of a cluster, also of different runs."""

import asyncio
import time

import pytest
import ray

from jobs.rate_limits import RemoteLimits
from pipelines.api_tier import API

pytestmark = pytest.mark.usefixtures("ray_here")
PER_S = 10


@ray.remote(num_cpus=0)
class Engine:
    """Asks for one request after the other."""

    def __init__(self, url: str) -> None:
        config = {"kind": "api", "base_url": url, "model": "m", "requests_per_minute": 60 * PER_S}
        self._limits = RemoteLimits(API.model_validate(config))

    async def granted(self, seconds: float) -> int:
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            lease = await self._limits.lease([1], 0)
            count += lease.granted
            await asyncio.sleep(min(lease.again_s, 0.1))
        return count


def test_engines_of_different_runs_share_the_limit_of_their_account() -> None:
    engines = [Engine.remote("http://shared/v1") for _ in range(2)]  # type: ignore[attr-defined]
    ray.get([engine.granted.remote(0.1) for engine in engines])
    together = sum(ray.get([engine.granted.remote(3.0) for engine in engines]))
    assert 2 * PER_S <= together <= 4 * PER_S
    # Another account has a limit of its own.
    other = Engine.remote("http://other/v1")  # type: ignore[attr-defined]
    both = ray.get([engine.granted.remote(2.0) for engine in (engines[0], other)])
    assert min(both) >= PER_S
    # Whichever of them had started the limit's actor, the other one goes on without it.
    for gone in engines:
        fresh = Engine.remote("http://shared/v1")  # type: ignore[attr-defined]
        ray.get(fresh.granted.remote(0.1))
        ray.kill(gone)
        assert PER_S <= ray.get(fresh.granted.remote(2.0)) <= 3 * PER_S
