"""The part of a configuration that only `nightmill serve` reads."""

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from pipelines.operations import Operations


class Serve(Operations):
    """Where the endpoint listens, and what it takes in at most."""

    host: str = Field("127.0.0.1", description="0.0.0.0 lets other machines ask too")
    port: int = Field(8000, ge=1, le=65535)
    replicas: PositiveInt = Field(1, description="processes that take requests")
    deadline_s: PositiveFloat = Field(
        600.0, description="of a request; one that states a shorter one gets that"
    )
    max_body_bytes: PositiveInt = Field(4 << 20, description="of one request")
    max_tokens: PositiveInt = Field(
        32_768, description="a request may ask for, and what one that states none may get at most"
    )
    max_texts: PositiveInt = Field(256, description="prompts, inputs or choices of one request")
    max_queued: PositiveInt = Field(
        256, description="requests that wait for a tier at most; the next ones get 429"
    )
    retry_after_s: NonNegativeFloat = Field(1.0, description="what those are told to wait")
    idle_s: PositiveFloat = Field(300.0, description="before a replica that idles may end")
    drain_s: PositiveFloat = Field(
        60.0, description="that requests have to end when their replica is replaced or stopped"
    )
