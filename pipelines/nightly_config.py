"""The `nightly` section of a run's configuration: what comes due, and what follows it."""

from datetime import date
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from pipelines.section import Section


class ByDate(Section):
    """One run a day; `{date:%Y-%m-%d}` in the paths names it."""

    by: Literal["date"]
    start: date = Field(description="the first day to answer")
    timezone: str = Field("UTC", description="whose days, by its IANA name")
    ready_after_h: NonNegativeFloat = Field(0, description="hours from a day's end until it is due")
    late_after_h: NonNegativeFloat = Field(
        6, description="hours from then on in which an input that is not there is waited for"
    )

    @model_validator(mode="after")
    def timezone_exists(self) -> "ByDate":
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(
                f"timezone: no zone {self.timezone!r}; write an IANA name such as Europe/Berlin"
            ) from error
        return self


class ByFile(Section):
    """One run a file below `input.path`; `{file}` in `output.path` names it."""

    by: Literal["file"]
    settled_after_h: NonNegativeFloat = Field(
        0.1, description="hours without a change from which a file counts as whole"
    )


class Webhook(Section):
    """Where the summary is posted. The address is a secret, so it stands elsewhere."""

    url_env: str | None = Field(None, description="the environment variable that holds it")
    url_file: str | None = Field(None, description="the file that holds it")
    deadline_s: PositiveFloat = Field(30, description="for all tries together")

    @model_validator(mode="after")
    def one_place(self) -> "Webhook":
        if (self.url_env is None) == (self.url_file is None):
            raise ValueError("set either url_env or url_file")
        return self


class Nightly(Section):
    partitions: Annotated[ByDate | ByFile, Field(discriminator="by")]
    after_failure: Literal["stop", "go_on"] = Field(
        "stop", description="whether partitions after one that failed are still answered"
    )
    compact_cache: bool = True
    keep_days: PositiveInt | None = Field(
        None, description="days after which an output is removed, but for its summary.json"
    )
    webhook: Webhook | None = None
