"""What every part of a configuration has in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors: a typo must not be a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)
