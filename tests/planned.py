"""What a run did beside what `nightmill plan` had said of it."""

from collections import Counter

from jobs.forecast import RunForecast
from pipelines.prices import NUSD
from pipelines.settle import committed_time
from pipelines.storage import Directory


def is_as_planned(planned: RunForecast, output: Directory) -> bool:
    """Whether what each tier was asked and what that cost lie in their ranges."""
    asked, cost = Counter[str](), 0
    for (_, tier), done in committed_time(output).items():
        asked[tier] += done.requests
        cost += done.cost_nusd
    tiers = planned.figures.tiers
    assert asked.keys() <= tiers.keys()
    told = [(tiers[name].requests, asked[name]) for name in tiers]
    told.append((planned.figures.cost_usd, cost / NUSD))
    return all(range_.low - 1e-9 <= was <= range_.high + 1e-9 for range_, was in told)
