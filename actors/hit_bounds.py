"""What a run knows about wrong hits, and where it therefore serves similar answers."""

from collections.abc import Iterable, Mapping, Sequence

from actors.audit import Audit
from pipelines.cache_ledger import Terms
from pipelines.wrong_hits import Evidence, Group, threshold


class HitBounds:
    """The groups of one run, shared by all that recall for it.

    Args:
        groups: as earlier runs, and earlier starts of this one, have left them.
    """

    def __init__(self, terms: Terms, groups: Mapping[str, Group]) -> None:
        self._terms = terms
        self._groups = dict(groups)
        self._thresholds: dict[str, float | None] = {}
        self._seen: set[str] = set()
        self._closed = False

    def thresholds(self, groups: Iterable[str]) -> dict[str, float | None]:
        """From which similarity hits are bounded, by group; None: at none."""
        return {group: self._threshold(group) for group in groups}

    def close_all(self) -> None:
        """Serve nothing any more: audits cannot be made."""
        self._closed = True

    def add(self, audits: Sequence[Audit]) -> None:
        """Take audits; a row that Ray ran again counts once."""
        for audit in audits:
            if audit.row_id not in self._seen:
                self._seen.add(audit.row_id)
                self._add(audit)

    def _add(self, audit: Audit) -> None:
        terms = self._terms
        group = self._groups.get(audit.group, Group(Evidence.none(terms.levels)))
        self._groups[audit.group] = group.after(
            audit.similarity, audit.wrong, terms.limit, terms.confidence
        )
        self._thresholds.pop(audit.group, None)

    def _threshold(self, name: str) -> float | None:
        if self._closed or name not in self._groups:
            return None
        if name not in self._thresholds:
            evidence, terms = self._groups[name].evidence, self._terms
            self._thresholds[name] = threshold(evidence, terms.limit, terms.confidence)
        return self._thresholds[name]
