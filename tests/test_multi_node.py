import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from conftest import ROOT, MakeConfig, tier
from test_batch import answers, assert_books_balance, prompts

from jobs.run_state import load_replicas
from jobs.summary import load_summary
from pipelines.config import Storage
from pipelines.storage import Directory

ROWS = 240


def test_a_machine_that_dies_and_one_that_joins_change_no_row_and_no_sum(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    slow = {"delay_s": 0.2, "max_num_seqs": 4}
    config = make_config(
        prompts(ROWS),
        input={"path": str(tmp_path / "prompts.jsonl"), "block_rows": 8},
        tiers=[{**tier(name, **slow), "labels": {"tier": name}} for name in ("spot", "steady")],
        route={
            "policy": "rules",
            "rules": [{"when": {"regex": "[02468]$"}, "tier": "spot"}],
            "otherwise": "steady",
        },
        baseline="steady",
    )
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with TemporaryDirectory(dir="/tmp") as apart:
        subprocess.run(
            [
                sys.executable,
                str(ROOT / "tests/changing_cluster.py"),
                str(path),
                str(tmp_path / "told"),
            ],
            cwd=ROOT,
            check=True,
            timeout=90,
            env={**alone, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": apart},
        )
    told = json.loads((tmp_path / "told").read_text())
    assert 0 < told["died_at"] <= told["joined_at"] < ROWS
    directory = Directory(config.output.path, Storage())
    summary = load_summary(directory)
    assert summary is not None
    assert (summary.ok, summary.errors, summary.pending) == (ROWS, 0, 0)
    assert answers(config) == {f"r{i}": f"SAY {i}" for i in range(ROWS)}
    assert_books_balance(config, summary)
    (replicas,) = load_replicas(directory).values()
    assert sorted(replica.tier for replica in replicas) == ["spot", "spot", "steady"]
