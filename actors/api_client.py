"""The connection to an API: its key, the provider's official client, and one try."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.api_faults import Fault, failure_fault, status_fault
from pipelines.api_tier import API
from pipelines.errors import UsageProblem

if TYPE_CHECKING:
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
    """An account at a provider.

    The official client authenticates, finds the URL and holds the connections. It would also
    build every request's headers anew, which takes four times as long as sending it: they are
    the same each time and are built once.

    Attributes:
        client: the official client; it never tries again by itself.
    """

    client: "AsyncOpenAI | AsyncAnthropic"

    def __init__(self, config: API, path: str) -> None:
        import httpx2

        self._config, self._key = config, read_key(config)
        limits = httpx2.Limits(max_connections=config.concurrency, keepalive_expiry=_KEEP_S)
        # A key must not follow a redirect to another host.
        settings: dict[str, Any] = {"limits": limits, "follow_redirects": False}
        if config.dialect == "anthropic":
            from anthropic import AsyncAnthropic, DefaultAioHttpClient

            self._http = DefaultAioHttpClient(**settings)
            self.client = AsyncAnthropic(**self._client_settings())
        else:
            from openai import AsyncOpenAI
            from openai import DefaultAioHttpClient as OpenAIHttpClient

            self._http = OpenAIHttpClient(**settings)
            self.client = AsyncOpenAI(**self._client_settings())
        self._url = httpx2.URL(str(self.client.base_url).rstrip("/") + path)
        self._headers = self._constant_headers()
        self._timeout = httpx2.Timeout(
            config.timeout_s, connect=min(config.timeout_s, _CONNECT_S), pool=None
        )
        self._timeouts, self._failures = httpx2.TimeoutException, httpx2.RequestError

    async def post(self, content: bytes, seconds: float) -> Reply:
        """One try, over after so many seconds whatever trickles in. Raises nothing of its own."""
        request = self._http.build_request(
            "POST", self._url, headers=self._headers, content=content, timeout=self._timeout
        )
        try:
            async with asyncio.timeout(seconds):
                response = await self._http.send(request)
        except (TimeoutError, self._timeouts) as error:
            return Reply(fault=failure_fault("timeout", type(error).__name__))
        except self._failures as error:
            return Reply(fault=failure_fault("connection", type(error).__name__))
        raw = [(name.lower(), value) for name, value in response.headers.raw]
        told = {n.decode(): v.decode("latin-1") for n, v in raw if b"ratelimit" in n}
        if response.status_code == 200:
            return Reply(response.content, limits=told)
        headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in raw}
        now = datetime.now(UTC)
        fault = status_fault(response.status_code, headers, response.content, now)
        return Reply(fault=fault, limits=told)

    def without_key(self, text: str) -> str:
        """What a provider said, fit to be shown."""
        return text.replace(self._key, "***") if self._key else text

    async def close(self) -> None:
        await self.client.close()

    def _client_settings(self) -> dict[str, Any]:
        return {
            "api_key": self._key or _NO_KEY,
            "base_url": self._config.base_url,
            "max_retries": 0,
            "http_client": self._http,
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
