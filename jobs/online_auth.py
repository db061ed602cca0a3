"""Who asks: the dependency of every route that needs a key."""

from collections.abc import Awaitable, Callable

from fastapi import Request

from actors.tenancy import Tenants
from jobs.online_errors import ApiError

Authenticate = Callable[[Request], Awaitable[None]]


def authenticate_with(tenants: Tenants | None) -> Authenticate:
    """Sets `request.state.tenant` and `.admin`, or refuses with 401.

    Without tenants everybody is nobody in particular, and may do everything.
    """

    async def authenticate(request: Request) -> None:
        if tenants is None:
            request.state.tenant, request.state.admin = None, True
            return
        found = tenants.authenticate(request.headers.get("authorization"))
        if found is None:
            raise ApiError(
                401,
                "no valid API key; send it as `Authorization: Bearer nm-...`",
                "invalid_request_error",
                code="invalid_api_key",
            )
        request.state.tenant, request.state.admin = found.tenant, found.admin

    return authenticate
