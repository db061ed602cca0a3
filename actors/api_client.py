"""The connection to an API: its key, the provider's official client, and one try."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pipelines.api_faults import Fault, failure_fault, status_fault
from pipelines.api_tier import API
from pipelines.errors import UsageProblem

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI

_CONNECT_S = 30.0
_KEEP_S = 60.0
_NO_KEY = "none"
"""The clients look for a key of their own where they are given none."""


def read_key(config: API) -> str | None:
    """The key, from where the configuration says; None where it names no place.

    Raises:
        UsageProblem: there is none; never shows what was found instead.
    """
    if config.api_key_env:
        key = os.environ.get(config.api_key_env, "").strip()
        if not key:
            raise UsageProblem(
                f"api_key_env: {config.api_key_env}: is not set; export the key under this name "
                "where the run starts and on the cluster's nodes, or mount it and give "
                "api_key_file"
            )
        return key
    if config.api_key_file is None:
        return None
    try:
        key = Path(config.api_key_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise UsageProblem(
            f"api_key_file: {config.api_key_file}: cannot be read ({type(error).__name__}); "
            "mount the key there, or give api_key_env"
        ) from None
    if not key or len(key.split()) > 1:
        raise UsageProblem(
            f"api_key_file: {config.api_key_file}: must hold the key and no more; correct it"
        )
    return key


@dataclass(frozen=True)
class Reply:
    """What a try brought.

    Attributes:
        body: of status 200.
        fault: of any other status.
        limits: its headers about rate limits, named in lower case.
    """

    body: bytes = b""
    fault: Fault | None = None
    limits: Mapping[str, str] = field(default_factory=dict)


class Connection:
    """An account at a provider. Made within a running event loop.

    The official client finds the URL, authenticates, and does all but the rows: its layers take
    longer over a row than aiohttp under them does, and what they make of each, the URL and the
    headers, is the same every time. Rows go to aiohttp with what the client made once.

    Attributes:
        client: the official client; it never tries again by itself.
    """

    client: "AsyncOpenAI | AsyncAnthropic"

    def __init__(self, config: API, path: str) -> None:
        import aiohttp

        self._config, self._key = config, read_key(config)
        # A key must not follow a redirect to another host, neither here nor in `post`.
        if config.dialect == "anthropic":
            from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient

            self.client = AsyncAnthropic(
                **self._client_settings(),
                http_client=DefaultAsyncHttpxClient(follow_redirects=False),
            )
        else:
            from openai import AsyncOpenAI
            from openai import DefaultAsyncHttpxClient as OpenAIHttpxClient

            self.client = AsyncOpenAI(
                **self._client_settings(), http_client=OpenAIHttpxClient(follow_redirects=False)
            )
        self._url = str(self.client.base_url).rstrip("/") + path
        self._failures = aiohttp.ClientError
        self._session = self._open_session()

    async def post(self, content: bytes, seconds: float) -> Reply:
        """One try, over after so many seconds whatever trickles in. Raises nothing of its own."""
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.post(self._url, data=content, allow_redirects=False) as response,
            ):
                body = await response.read()
        except TimeoutError as error:
            return Reply(fault=failure_fault("timeout", type(error).__name__))
        except (self._failures, OSError) as error:
            return Reply(fault=failure_fault("connection", type(error).__name__))
        headers = {name.lower(): value for name, value in response.headers.items()}
        told = {name: value for name, value in headers.items() if "ratelimit" in name}
        if response.status == 200:
            return Reply(body, limits=told)
        fault = status_fault(response.status, headers, body, datetime.now(UTC))
        return Reply(fault=fault, limits=told)

    def without_key(self, text: str) -> str:
        """What a provider said, fit to be shown."""
        return text.replace(self._key, "***") if self._key else text

    async def close(self) -> None:
        await self._session.close()
        await self.client.close()

    def _open_session(self) -> "ClientSession":
        import aiohttp
        from httpx2 import create_ssl_context

        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=_KEEP_S,
            # The certificates that the official client trusts.
            ssl=create_ssl_context(),
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers=self._constant_headers(),
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=_proxy(self._url),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=min(self._config.timeout_s, _CONNECT_S)
            ),
        )

    def _client_settings(self) -> dict[str, Any]:
        return {
            "api_key": self._key or _NO_KEY,
            "base_url": self._config.base_url,
            "max_retries": 0,
        }

    def _constant_headers(self) -> list[tuple[str, str]]:
        headers = dict(self.client.default_headers)
        if self._key:
            headers |= self.client.auth_headers
        # Telemetry, and markers for what is left out.
        return [
            (name, value)
            for name, value in headers.items()
            if isinstance(value, str) and not name.lower().startswith("x-stainless")
        ]


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL: asked once, it is slow to find."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)
