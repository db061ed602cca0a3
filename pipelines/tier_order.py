"""The order of the engines in the chain: a row only ever moves forward."""

from collections.abc import Sequence

from pipelines.route_config import Route, handovers
from pipelines.tier import Tier


def in_order(tiers: Sequence[Tier], route: Route) -> list[Tier]:
    """The tiers, each after all those that may hand it a row; otherwise as they stand.

    A tier may hand rows to itself: its engine then works on them once more.

    Raises:
        ValueError: two tiers may hand rows to each other, naming them.
    """
    pairs = {(a, b) for a, b in handovers(route) if a != b}
    pairs |= {(tier.name, tier.fallback) for tier in tiers if tier.fallback}
    left, ordered = list(tiers), list[Tier]()
    while left:
        waiting = {b for a, b in pairs if any(tier.name == a for tier in left)}
        free = next((tier for tier in left if tier.name not in waiting), None)
        if free is None:
            names = " and ".join(tier.name for tier in left)
            raise ValueError(
                f"tiers {names} hand rows to each other in a circle; list one of the models "
                "twice, as two tiers, or change route or fallback"
            )
        ordered.append(free)
        left.remove(free)
    return ordered
