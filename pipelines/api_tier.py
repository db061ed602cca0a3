"""A tier behind an HTTP API: a provider, another vLLM, or an endpoint of one's own."""

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipelines.section import Section


class API(Section):
    """An OpenAI-compatible URL, or Anthropic's own API.

    A key is named, never written: `resolved.yaml`, logs and rows hold no secret.
    """

    kind: Literal["api"]
    base_url: str = Field(pattern=r"^https?://[^\s@]+$", description="up to and with /v1")
    model: str
    dialect: Literal["openai", "anthropic"] = "openai"
    endpoint: Literal["chat", "completions"] = "chat"
    api_key_env: str | None = Field(
        None, pattern=r"^[A-Za-z_]\w*$", description="the environment variable with the key"
    )
    api_key_file: str | None = Field(None, description="a file, such as a mounted secret")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the server calls a row's max_tokens"
    )
    vllm_fields: bool = Field(
        False, description="the server takes vLLM's own sampling fields, as top_k or min_p"
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="sent along with every request"
    )
    max_concurrency: PositiveInt = Field(64, description="requests of one replica at once")
    requests_per_minute: PositiveInt | None = Field(
        None, description="of the whole cluster; learned from the server's headers if it says"
    )
    tokens_per_minute: PositiveInt | None = Field(
        None, description="of the whole cluster, prompt and answer together"
    )
    timeout_s: PositiveFloat = Field(600.0, description="of one try, from sending to last byte")
    deadline_s: PositiveFloat = Field(3600.0, description="of a row over all its tries")
    max_tries: PositiveInt = 10
    breaker_failures: PositiveInt = Field(
        20, description="in a row, after which the server is left alone for a while"
    )
    breaker_open_s: PositiveFloat = 30.0

    @model_validator(mode="after")
    def one_key(self) -> "API":
        if self.api_key_env and self.api_key_file:
            raise ValueError("give api_key_env or api_key_file, not both")
        if self.dialect == "anthropic" and (self.endpoint != "chat" or self.vllm_fields):
            raise ValueError(
                "dialect: anthropic: has neither endpoint: completions nor vllm_fields; remove them"
            )
        return self

    @property
    def account(self) -> str:
        """Whose rate limits are one: the server and the key's name."""
        return f"{self.base_url} {self.api_key_env or self.api_key_file or ''}"

    def identity(self) -> dict[str, Any]:
        """What of this can change an answer."""
        answering = {"kind", "base_url", "model", "dialect", "endpoint", "extra_body"}
        return self.model_dump(mode="json", include=answering)
