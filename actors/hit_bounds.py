"""What a run knows about wrong hits, and where it therefore serves similar answers."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from pipelines.wrong_hits import Evidence, evidence_of, levels_from, threshold

from actors.audit import Audit
from pipelines.config import Semantic


class HitBounds:
    """The evidence of earlier runs and of this one, by group.

    Args:
        earlier: called once, for the evidence that the cache keeps; a failure of it means none.
    """

    def __init__(self, config: Semantic, earlier: Callable[[], Mapping[str, Evidence]]) -> None:
        self._config = config
        self._levels = levels_from(config.similarity)
        self._evidence = dict(earlier())
        self._thresholds: dict[str, float | None] = {}
        self._seen: set[str] = set()

    def thresholds(self, groups: Iterable[str]) -> dict[str, float | None]:
        """From which similarity hits are bounded, by group; None: at none."""
        return {group: self._threshold(group) for group in groups}

    def add(self, audits: Sequence[Audit]) -> None:
        """Take audits; a row that Ray ran again counts once."""
        for audit in audits:
            if audit.row_id in self._seen:
                continue
            self._seen.add(audit.row_id)
            new = evidence_of([(audit.similarity, audit.wrong)], self._levels)
            known = self._evidence.get(audit.group)
            self._evidence[audit.group] = new if known is None else known + new
            self._thresholds.pop(audit.group, None)

    def _threshold(self, group: str) -> float | None:
        if group not in self._evidence:
            return None
        if group not in self._thresholds:
            evidence, config = self._evidence[group], self._config
            limit, confidence = config.max_wrong_hits, config.confidence
            self._thresholds[group] = threshold(evidence, limit, confidence)
        return self._thresholds[group]
