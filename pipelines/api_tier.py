"""The configuration of a tier that some URL answers: a provider, or a server of our own."""

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipelines.section import Section

ApiDialect = Literal["openai", "anthropic"]

_OURS = ("model", "messages", "prompt", "stream", "system", "tools", "metadata")
"""Members of a request's body that rows decide, or that would change what comes back."""


class Breaker(Section):
    """When to stop asking a service that is down, and when to give up on it."""

    failures: PositiveInt = Field(32, description="failures in a row that open it")
    open_s: PositiveFloat = Field(15.0, description="before one request tries again")
    outage_s: NonNegativeFloat | None = Field(
        None,
        description="open for so long, it lets rows fail at once instead of waiting; by default "
        "120, or 0 where a fallback tier answers them",
    )


class ProviderBatch(Section):
    """The limits of one provider batch, and how it is waited for."""

    max_rows: PositiveInt = Field(50_000, le=100_000)
    max_bytes: PositiveInt = 190_000_000
    poll_s: PositiveFloat = 30.0
    collect_s: PositiveFloat = Field(
        2.0, description="a batch that no row joined for so long is sent as it is"
    )
    completion_window: str = "24h"
    max_submissions: PositiveInt = Field(
        3, description="how often a row that its batch left unanswered is sent"
    )


class API(Section):
    """An OpenAI-compatible URL, or Anthropic's API.

    The key itself never stands here: only where to find it.
    """

    kind: Literal["api"]
    base_url: str = Field(description="as the official client takes it, e.g. https://host/v1")
    model: str
    dialect: ApiDialect = "openai"
    endpoint: Literal["chat", "completions"] = "chat"
    mode: Literal["direct", "batch"] = Field(
        "direct", description="batch: rows can wait, for the provider's batch discount"
    )
    api_key_env: str | None = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="the environment variable with it"
    )
    api_key_file: str | None = Field(None, description="a mounted file with the key and no more")
    concurrency: PositiveInt = Field(64, description="requests of one replica at the same time")
    requests_per_minute: PositiveInt | None = Field(None, description="of the whole cluster")
    tokens_per_minute: PositiveInt | None = Field(None, description="of the whole cluster")
    timeout_s: PositiveFloat = Field(600.0, description="of one try")
    deadline_s: PositiveFloat = Field(3600.0, description="of a row, over all its tries")
    max_retries: int = Field(
        8, ge=0, description="after failures; waiting for a rate limit is bounded by deadline_s"
    )
    breaker: Breaker = Breaker()
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the endpoint calls a row's max_tokens"
    )
    default_max_tokens: PositiveInt = Field(
        4096, description="Anthropic: for rows without max_tokens, which its API demands"
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="added to every request, e.g. service_tier, priority"
    )
    batch: ProviderBatch = ProviderBatch()

    @model_validator(mode="before")
    @classmethod
    def no_literal_key(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "api_key" in raw:
            raise ValueError(
                "api_key: a key must not stand in a configuration, which is written back beside "
                "the results; remove it and name its variable in api_key_env, or its file in "
                "api_key_file"
            )
        return raw

    @field_validator("base_url")
    @classmethod
    def plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give an http:// or https:// URL")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "holds a user, password or query, which would be written back with the "
                "configuration; give the bare URL, and the key by api_key_env or api_key_file"
            )
        return url.rstrip("/")

    @model_validator(mode="after")
    def fits_together(self) -> "API":
        if self.api_key_env and self.api_key_file:
            raise ValueError("give at most one of api_key_env and api_key_file")
        if self.dialect == "anthropic" and self.endpoint == "completions":
            raise ValueError("dialect: anthropic: has no endpoint: completions; use chat")
        if self.dialect == "anthropic" and self.mode == "batch":
            raise ValueError(
                "mode: batch: is made for OpenAI's batch files; use dialect: openai or mode: direct"
            )
        if ours := sorted(set(_OURS) & set(self.extra_body)):
            raise ValueError(
                f"extra_body: {', '.join(ours)}: rows and other keys decide that; remove it"
            )
        return self

    @property
    def key_source(self) -> str:
        """Where the key is found, in words that give nothing away."""
        if self.api_key_env:
            return f"the environment variable {self.api_key_env}"
        return f"the file {self.api_key_file}" if self.api_key_file else "no key"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that can change an answer."""
        named = {"base_url", "model", "dialect", "endpoint", "extra_body"}
        if self.dialect == "anthropic":
            named.add("default_max_tokens")
        return self.model_dump(mode="json", include=named)
