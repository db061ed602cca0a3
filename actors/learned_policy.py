"""Routing by what was learned from a sample: embed, guard, score, compare with the threshold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.embedder import Embedder
from actors.route_models import Scorer, load_scorer
from pipelines.calibrated_config import Calibrated, Learned
from pipelines.cascade import ANSWER
from pipelines.familiarity import Familiarity
from pipelines.requests import text_of
from pipelines.route_config import Route
from pipelines.route_features import features
from pipelines.route_plan import RoutePlan
from pipelines.routing import Candidate, Decision, Policy, build_policy

Embed = Callable[[Sequence[str]], np.ndarray]
_GUARD, _SCORER = "guard_", "scorer_"
_UNLIKE = "unlike the calibration sample"


@dataclass(frozen=True)
class FittedRoute:
    """What scores rows, and the guard against those unlike the sample, as far as there are any."""

    scorer: Scorer | None
    guard: Familiarity | None

    def scores(self, texts: Sequence[str], vectors: np.ndarray) -> np.ndarray:
        """What the strong tier is expected to gain: of shape (rows,); infinite where unknown."""
        assert self.scorer is not None
        inputs = np.hstack([vectors, features(texts)])
        return self.guarded(np.asarray(self.scorer.score(inputs), np.float64), vectors)

    def guarded(self, scores: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """The scores, infinite for rows unlike the sample."""
        if self.guard is None:
            return scores
        return np.where(self.guard.unfamiliar(vectors), np.inf, scores)

    def arrays(self) -> dict[str, np.ndarray]:
        scorer = self.scorer.arrays() if self.scorer else {}
        own = {_SCORER + name: array for name, array in scorer.items()}
        guard = self.guard.arrays() if self.guard else {}
        return own | {_GUARD + name: array for name, array in guard.items()}

    @staticmethod
    def load(arrays: Mapping[str, np.ndarray]) -> "FittedRoute":
        scorer, guard = _under(arrays, _SCORER), _under(arrays, _GUARD)
        return FittedRoute(
            load_scorer(scorer) if scorer else None, Familiarity.load(guard) if guard else None
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
            return Decision(self._strong, _UNLIKE)
        if score <= threshold:
            return Decision(self._cheap, "the cheap tier will do", score, step=0, turn=ANSWER)
        return Decision(self._strong, "the strong tier gains", score)


class GuardedPolicy:
    """Rows unlike the calibration sample to the strong tier, all others as another policy says."""

    def __init__(self, inner: Policy, guard: Familiarity, strong: str, embed: Embed) -> None:
        self._inner, self._guard = inner, guard
        self._strong, self._embed = strong, embed
        self.columns = inner.columns

    def decide(self, candidates: Sequence[Candidate]) -> list[Decision]:
        vectors = self._embed([prompt_of(candidate) for candidate in candidates])
        return [
            Decision(self._strong, _UNLIKE) if is_unlike else decision
            for is_unlike, decision in zip(
                self._guard.unfamiliar(vectors), self._inner.decide(candidates), strict=True
            )
        ]


def policy_of(route: Route, configured: Route, plan: RoutePlan | None) -> Policy:
    """The policy of a run or an endpoint; loads what it needs.

    Args:
        route: as it is taken, see `route_by`.
        configured: as it was asked for.
        plan: of a route that is calibrated.
    """
    if not isinstance(configured, Calibrated) or configured.embedding is None or plan is None:
        return build_policy(route)
    embedding = configured.embedding
    if isinstance(configured, Learned):
        return LearnedPolicy(
            plan, configured.cheap, configured.strong, lambda: Embedder(embedding).embed
        )
    guard, inner = FittedRoute.load(plan.arrays).guard, build_policy(route)
    # Where no row stays cheap there is nothing to guard.
    if guard is None or plan.certificate.threshold is None:
        return inner
    return GuardedPolicy(inner, guard, configured.strong, Embedder(embedding).embed)


def _under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
