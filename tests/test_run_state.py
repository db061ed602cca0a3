import json
import time
from pathlib import Path

import pytest

from jobs.run_state import Lock
from pipelines.config import Storage
from pipelines.storage import Directory


def test_a_held_lock_says_again_and_again_that_its_driver_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.run_state._REFRESH_S", 0.05)
    directory, file = Directory(str(tmp_path), Storage()), tmp_path / ".nightmill/lock.json"
    with Lock(directory).held():
        first = json.loads(file.read_text())["time"]
        time.sleep(0.5)
        assert json.loads(file.read_text())["time"] > first
    assert not file.exists()
