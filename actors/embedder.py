"""Texts to unit vectors, by a sentence-transformers model."""

import os
from collections.abc import Sequence

import numpy as np

from pipelines.embedders import embedder_source
from pipelines.embedding_model import EmbeddingModel

_BATCH = {"cpu": 32, "cuda": 256}
"""Texts at once. Larger batches have more padding, which only a GPU computes for nothing."""


class Embedder:
    """Hosts one model. Texts of similar length are computed together."""

    def __init__(self, config: EmbeddingModel) -> None:
        # Importing them takes seconds.
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        if not config.num_gpus:
            # Ray gives an actor that reserves no core one thread.
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        device = "cuda" if config.num_gpus else "cpu"
        source = embedder_source(config)
        self._batch = _BATCH[device]
        self._model = SentenceTransformer(source, revision=config.revision, device=device)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors in the order of the texts: float32 of shape (texts, dimensions)."""
        vectors: np.ndarray = self._model.encode(
            list(texts),
            batch_size=self._batch,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return vectors.astype(np.float32, copy=False)
