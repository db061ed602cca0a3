"""Which node an actor runs on: a replica's parts on theirs, a run's memory on the driver's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import ray

from pipelines.replicas import gpu_bundles
from pipelines.tier import Tier

OptionsOfEach = Callable[[], dict[str, Any]]


def beside_driver(plain_class: type, **options: Any) -> Any:
    """The class of actors that a run cannot lose: they live on the driver's node.

    Any other node may go in the middle of a run; without the driver there is no run.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(plain_class).options(num_cpus=0, scheduling_strategy=here, **options)


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
