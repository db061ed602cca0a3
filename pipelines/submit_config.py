"""The configuration of `submit`: what a Ray job of a run takes along and reserves."""

from pydantic import Field, NonNegativeFloat, PositiveInt

from pipelines.section import Section


class Submit(Section):
    """How a run becomes a Ray job. Nothing in here changes an answer."""

    excludes: tuple[str, ...] = Field(
        (), description="patterns, as in .gitignore, of what is not sent to the cluster"
    )
    max_upload_mib: PositiveInt = Field(
        100, description="refuse to send a larger working directory"
    )
    env_vars: tuple[str, ...] = Field(
        (), description="names of variables to hand to the job; their values are taken from yours"
    )
    num_cpus: NonNegativeFloat = Field(0, description="reserved for the driver")
    num_gpus: NonNegativeFloat = Field(0, description="reserved for the driver")
    memory_gib: NonNegativeFloat = Field(0, description="reserved for the driver")
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Ray labels of the node for the driver; the head if nothing is reserved",
    )
