"""Placement groups: the GPUs of a replica whose engine may span nodes, reserved as one."""

from collections.abc import Callable
from functools import partial
from typing import Any

from pipelines.replicas import gpu_bundles
from pipelines.tier import Tier

OptionsOfEach = Callable[[], dict[str, Any]]


def group_of_each(tier: Tier) -> OptionsOfEach | None:
    """What makes the placement group of each replica; None where a replica stays on one node."""
    if not tier.spans_nodes:
        return None
    return partial(in_own_group, gpu_bundles(tier), tier.labels)


def in_own_group(bundles: list[dict[str, float]], labels: dict[str, str]) -> dict[str, Any]:
    """Reserve the bundles, close together; the options of an actor in the first of them.

    vLLM's workers find the group by themselves: they start inside of it. It ends with the run.
    """
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    selectors = [labels] * len(bundles) if labels else None
    group = placement_group(bundles, strategy="PACK", bundle_label_selector=selectors)
    strategy = PlacementGroupSchedulingStrategy(
        group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
    )
    return {"scheduling_strategy": strategy}
