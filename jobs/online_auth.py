"""Who asks: the dependency of every route that needs a key."""

from collections.abc import Awaitable, Callable

from fastapi import Request

from actors.tenancy import Tenants
from jobs.online_errors import ApiError

Authenticate = Callable[[Request], Awaitable[None]]


def authenticate_with(tenants: Tenants | None) -> Authenticate:
    """Sets `request.state.tenant` and `.admin`, or refuses with 401.

    Without tenants everybody is nobody in particular, and may do everything; but not as the page of
    another site, whose browser sends plain text unasked and only hides the answer.
    """

    async def authenticate(request: Request) -> None:
        if tenants is None:
            _refuse_other_sites(request)
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


def _refuse_other_sites(request: Request) -> None:
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise ApiError(
            403,
            "pages of other sites may not ask here; give the endpoint tenants and ask with a key, "
            "or, behind a proxy, let it pass on the Host header",
            "invalid_request_error",
            code="foreign_origin",
        )
