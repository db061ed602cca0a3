"""A second opinion on a cache hit: a cross-encoder reads both questions at once."""

from collections.abc import Callable, Sequence


class Verifier:
    """Asks a local cross-encoder whether two questions mean the same.

    `model` is a folder or a name that sentence-transformers loads; with one output its score
    (0 to 1) is compared to `threshold`, with several the last label's share is.
    """

    def __init__(
        self,
        model: str,
        warn: Callable[[str], None],
        threshold: float = 0.9,
        device: str | None = None,
        batch_size: int = 64,
    ) -> None:
        # Importing it costs seconds in every process that only reads a configuration.
        import torch
        from sentence_transformers import CrossEncoder

        self._encoder = CrossEncoder(model, device=device)
        one = self._encoder.num_labels == 1
        self._shares = torch.nn.Sigmoid() if one else torch.nn.Softmax(dim=-1)
        self._threshold = threshold
        self._batch_size = batch_size
        self._warn = warn
        self._warned = False

    def agree(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether one answer serves both questions of each pair, in their order.

        Both directions of a pair must reach the threshold. It fails closed: if the model fails,
        nobody agrees, and the first failure warns.
        """
        if not pairs:
            return []
        try:
            scores = self._scores([*pairs, *((second, first) for first, second in pairs)])
        except Exception as error:  # A verifier that fails is a miss, whatever it fails with.
            self._warn_once(error)
            return [False] * len(pairs)
        both = zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)
        # A score that is no number compares as false.
        return [there >= self._threshold and back >= self._threshold for there, back in both]

    def _scores(self, pairs: list[tuple[str, str]]) -> list[float]:
        scores = self._encoder.predict(
            pairs,
            batch_size=self._batch_size,
            activation_fn=self._shares,
            show_progress_bar=False,
        )
        return [float(score if score.ndim == 0 else score[-1]) for score in scores]

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            kind = type(error).__name__
            self._warn(f"The verifier of cache hits fails, so it confirms none: {kind}: {error}")
