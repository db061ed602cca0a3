"""The part of an endpoint's configuration that its operators care for."""

from pydantic import Field, PositiveInt

from pipelines.section import Section


class Operations(Section):
    """Who may ask, what is kept, and where it is told."""

    tenants: str | None = Field(
        None, description="the file of API keys; without it everybody who reaches the port may ask"
    )
    data_dir: str = Field(
        "nightmill-data", description="files, batches, spending and the log of requests"
    )
    log_text: bool = Field(False, description="log prompts and answers too")
    otlp_endpoint: str | None = Field(
        None, description="an OpenTelemetry collector over HTTP, such as http://localhost:4318"
    )
    max_file_bytes: PositiveInt = Field(200_000_000, description="of one upload to /v1/files")
    batch_jobs: PositiveInt = Field(1, description="batches that run at once")
    batch_config: str | None = Field(
        None, description="another configuration that batches run by: its tiers, route and cache"
    )
