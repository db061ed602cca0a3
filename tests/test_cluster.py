import yaml
from conftest import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_the_cluster_file() -> None:
    validate_config(prepare_config(CLUSTER))


def test_workers_come_with_the_work_and_leave_after_it() -> None:
    types = CLUSTER["available_node_types"]
    assert all(node["min_workers"] == 0 for node in types.values())
    assert "InstanceMarketOptions" not in types[CLUSTER["head_node_type"]]["node_config"]
    assert CLUSTER["idle_timeout_minutes"] <= 10


def test_the_dashboard_is_not_open_to_the_network() -> None:
    (start,) = [c for c in CLUSTER["head_start_ray_commands"] if "--head" in c]
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in str(CLUSTER)
