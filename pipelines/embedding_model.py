"""Which model turns texts into vectors."""

from pydantic import Field, NonNegativeFloat

from pipelines.section import Section


class EmbeddingModel(Section):
    embedder: str = Field(
        description="a sentence-transformers model: a folder, an installed package that carries "
        "one, or a hub name"
    )
    revision: str | None = Field(None, description="the hub model's commit, 40 hex digits")
    num_gpus: NonNegativeFloat = Field(0.0, description="of each actor that embeds")
