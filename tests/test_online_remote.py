"""What a replica of the ingress makes of others that are gone, over real Ray."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.online_request import Reservation, Unreachable
from actors.online_tier import TierGone
from jobs.online_tiers import RemoteTier
from jobs.shared_operations import RemoteOperations
from pipelines.errors import RunFailure
from pipelines.requests import Request

pytestmark = pytest.mark.usefixtures("ray_here")
ASKED = Request([{"role": "user", "content": "x"}], {})


@ray.remote(num_cpus=0)
class Failing:
    def __init__(self, dies: bool) -> None:
        self._dies = dies

    async def turn(self, request: str, name: str) -> None:
        self._fail()

    async def admit(self, tenant: str | None, most: Reservation) -> None:
        self._fail()

    def _fail(self) -> None:
        if self._dies:
            ray.actor.exit_actor()
        raise RunFailure("no engine")


def remote(dies: bool) -> Any:
    actor: Any = Failing.remote(dies)  # type: ignore[attr-defined]
    return SimpleNamespace(turn=actor.turn, admit=actor.admit, options=lambda **_: None)


@pytest.mark.parametrize("dies", [False, True])
def test_a_tier_whose_replica_fails_is_gone(dies: bool) -> None:
    with pytest.raises(TierGone):
        asyncio.run(RemoteTier(remote(dies)).turn(ASKED, "r1", None))


def test_who_cannot_be_asked_for_a_budget_is_unreachable() -> None:
    with pytest.raises(Unreachable):
        asyncio.run(RemoteOperations(remote(True)).admit("acme", Reservation("r1", 20, 600)))
