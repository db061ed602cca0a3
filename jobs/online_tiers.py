"""A tier of the endpoint as a Serve deployment, and as the process that takes requests sees it."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from actors.engine import Piece, Say, build_engine
from actors.online_tier import OnlineTier, Overloaded, TierGone
from jobs.rate_limits import shared_limits
from pipelines.errors import RunFailure
from pipelines.prices import HourRate, TokenRate
from pipelines.replicas import fitted
from pipelines.requests import Request
from pipelines.tier import Tier


class TierReplica:
    """One replica of a tier; its model is loaded when it is ready."""

    async def __init__(  # type: ignore[misc]
        self,
        name: str,
        tier: Tier,
        rate: TokenRate | HourRate,
        defaults: dict[str, Any],
        cpu_engines: int,
    ) -> None:
        tier = fitted(tier, cpu_engines, len(os.sched_getaffinity(0)))
        engine = build_engine(tier, defaults, limits=shared_limits(tier.engine), run=name)
        self._tier = OnlineTier(name, tier, engine, rate, defaults)
        await self._tier.start()

    async def turn(self, request: str, name: str) -> dict[str, Any]:
        return await self._tier.turn(Request.from_json(request), name, None)

    async def turn_aloud(self, request: str, name: str) -> AsyncIterator[Piece | dict[str, Any]]:
        """The pieces as they come, and the turn itself at the end."""
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        asked = Request.from_json(request)
        work = asyncio.ensure_future(self._tier.turn(asked, name, pieces.put_nowait))
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield await work
        finally:
            work.cancel()

    async def give_up(self, name: str) -> bool:
        return await self._tier.give_up(name)

    def check_health(self) -> None:
        """Serve replaces a replica that fails here."""
        if self._tier.failure is not None:
            raise self._tier.failure

    async def __del__(self) -> None:
        await self._tier.stop()


class RemoteTier:
    """A tier's deployment, as the service sees it."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._aloud = handle.options(stream=True)

    async def turn(self, request: Request, name: str, say: Say | None) -> dict[str, Any]:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        try:
            if say is None:
                return await self._quietly(request, name)
            return await self._said(request, name, say)
        except BackPressureError as error:
            raise Overloaded from error
        except (RayActorError, RunFailure) as error:
            raise TierGone from error

    async def give_up(self, name: str) -> bool:
        from ray.serve.exceptions import DeploymentUnavailableError

        # Only Serve knows which replica has it; the others do not know the name.
        told = self._handle.broadcast("give_up", name)
        try:
            return True in await told.results_async(return_exceptions=True)
        except DeploymentUnavailableError:
            return False

    async def _quietly(self, request: Request, name: str) -> dict[str, Any]:
        response = self._handle.turn.remote(request.to_json(), name)
        try:
            told: dict[str, Any] = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return told

    async def _said(self, request: Request, name: str, say: Say) -> dict[str, Any]:
        response = self._aloud.turn_aloud.remote(request.to_json(), name)
        told: dict[str, Any] = {}
        try:
            async for item in response:
                if isinstance(item, Piece):
                    say(item)
                else:
                    told = item
        except asyncio.CancelledError:
            response.cancel()
            raise
        return told
