"""What a run knows about wrong hits, and where it therefore serves similar answers."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from actors.audit import Audit
from pipelines.config import Semantic
from pipelines.wrong_hits import Evidence, Recent, evidence_of, levels_from, threshold


class HitBounds:
    """The evidence of earlier runs and of this one, by group.

    Args:
        earlier: called once, for what other runs have shown.
    """

    def __init__(self, config: Semantic, earlier: Callable[[], Mapping[str, Evidence]]) -> None:
        self._config = config
        self._levels = levels_from(config.similarity)
        self._evidence = dict(earlier())
        self._recent: dict[str, Recent] = {}
        self._thresholds: dict[str, float | None] = {}
        self._voided: set[str] = set()
        self._seen: set[str] = set()

    def thresholds(self, groups: Iterable[str]) -> dict[str, float | None]:
        """From which similarity hits are bounded, by group; None: at none."""
        return {group: self._threshold(group) for group in groups}

    def voided(self) -> dict[str, Evidence]:
        """Groups whose hits have changed in this run, with what was shown since."""
        nothing = evidence_of([], self._levels)
        return {group: self._evidence.get(group, nothing) for group in self._voided}

    def add(self, audits: Sequence[Audit]) -> None:
        """Take audits; a row that Ray ran again counts once."""
        for audit in audits:
            if audit.row_id not in self._seen:
                self._seen.add(audit.row_id)
                self._add(audit)

    def _add(self, audit: Audit) -> None:
        group = audit.group
        self._thresholds.pop(group, None)
        recent = self._recent.setdefault(group, Recent())
        recent.add(audit.wrong)
        if recent.contradicts(self._config.max_wrong_hits):
            self._voided.add(group)
            self._evidence.pop(group, None)
            del self._recent[group]
            return
        new = evidence_of([(audit.similarity, audit.wrong)], self._levels)
        known = self._evidence.get(group)
        self._evidence[group] = new if known is None else known + new

    def _threshold(self, group: str) -> float | None:
        if group not in self._evidence:
            return None
        if group not in self._thresholds:
            limit, confidence = self._config.max_wrong_hits, self._config.confidence
            self._thresholds[group] = threshold(self._evidence[group], limit, confidence)
        return self._thresholds[group]
