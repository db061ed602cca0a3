"""`schemathesis`: requests made up from our OpenAPI document, right ones and wrong ones."""

import subprocess
import sys
from pathlib import Path

from serving import Endpoint

COMMAND = Path(sys.executable).with_name("schemathesis")
# A document cannot say all that makes a request impossible: which model calls tools, what is longer
# than its context, which file exists. All the rest is checked: statuses, media types, bodies and
# headers against the document, wrong requests refused, no 5xx, a key wherever one is asked for.
UNKNOWABLE = "positive_data_acceptance"


def test_the_endpoint_does_what_its_document_says(endpoint: Endpoint, tmp_path: Path) -> None:
    command = [
        COMMAND, "run", f"{endpoint.address}/openapi.json",
        "--header", f"Authorization: Bearer {endpoint.admin_key}",
        "--checks", "all", "--exclude-checks", UNKNOWABLE, "--continue-on-failure",
        "--max-examples", "25", "--generation-deterministic", "--request-timeout", "120",
        "--warnings", "off", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    assert "Selected: 18/18" in done.stdout
