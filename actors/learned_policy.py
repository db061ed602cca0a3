"""Routing by what was learned from a sample: embed, guard, score, compare with the threshold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.route_models import Scorer, load_scorer
from pipelines.cascade import ANSWER
from pipelines.familiarity import Familiarity
from pipelines.requests import text_of
from pipelines.route_features import features
from pipelines.route_plan import RoutePlan
from pipelines.routing import Candidate, Decision

Embed = Callable[[Sequence[str]], np.ndarray]
_GUARD, _SCORER = "guard_", "scorer_"


@dataclass(frozen=True)
class FittedRoute:
    """A scorer, and the guard against rows unlike those it has learned from, if there is one."""

    scorer: Scorer
    guard: Familiarity | None

    def scores(self, texts: Sequence[str], vectors: np.ndarray) -> np.ndarray:
        """What the strong tier is expected to gain: of shape (rows,); infinite where unknown."""
        inputs = np.hstack([vectors, features(texts)])
        scores = np.asarray(self.scorer.score(inputs), np.float64)
        if self.guard is not None:
            scores = np.where(self.guard.unfamiliar(vectors), np.inf, scores)
        return scores

    def arrays(self) -> dict[str, np.ndarray]:
        own = {_SCORER + name: array for name, array in self.scorer.arrays().items()}
        guard = self.guard.arrays() if self.guard else {}
        return own | {_GUARD + name: array for name, array in guard.items()}

    @staticmethod
    def load(arrays: Mapping[str, np.ndarray]) -> "FittedRoute":
        guard = _under(arrays, _GUARD)
        return FittedRoute(
            load_scorer(_under(arrays, _SCORER)), Familiarity.load(guard) if guard else None
        )


def prompt_of(candidate: Candidate) -> str:
    """The text that a row is judged by: all that a person or a system said."""
    return "\n".join(text_of(turn.get("content")) for turn in candidate.request.messages)


class LearnedPolicy:
    """The cheap tier up to the certified threshold.

    Args:
        embed: unit vectors of texts, float32 of shape (texts, dimensions).
    """

    columns: Sequence[str] = ()

    def __init__(self, plan: RoutePlan, cheap: str, strong: str, embed: Callable[[], Embed]):
        self._cheap, self._strong = cheap, strong
        self._threshold = plan.certificate.threshold
        if self._threshold is not None:
            self._learned, self._embed = FittedRoute.load(plan.arrays), embed()

    def decide(self, candidates: Sequence[Candidate]) -> list[Decision]:
        if self._threshold is None:
            return [Decision(self._strong, "nothing certified")] * len(candidates)
        texts = [prompt_of(candidate) for candidate in candidates]
        scores = self._learned.scores(texts, self._embed(texts))
        return [self._decision(float(score), self._threshold) for score in scores]

    def _decision(self, score: float, threshold: float) -> Decision:
        if np.isinf(score):
            return Decision(self._strong, "unlike the calibration sample")
        if score <= threshold:
            return Decision(self._cheap, "the cheap tier will do", score, step=0, turn=ANSWER)
        return Decision(self._strong, "the strong tier gains", score)


def _under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
