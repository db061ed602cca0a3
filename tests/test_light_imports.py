import subprocess
import sys

import pytest

HEAVY = ["vllm", "torch", "lancedb", "sentence_transformers", "transformers"]


@pytest.mark.parametrize(
    "module",
    [
        "pipelines.config",
        "pipelines.chain",
        "pipelines.settle",
        "jobs.cli",
        "jobs.batch",
        "jobs.distill",
    ],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_answers_help_without_ray() -> None:
    code = "import sys, jobs.cli; print('ray' in sys.modules, 'pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
