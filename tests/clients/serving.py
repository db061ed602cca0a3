"""One `nightmill serve` with real models, for clients of all kinds."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PYTHON = os.environ.get("NIGHTMILL_PYTHON", str(ROOT / ".venv/bin/python"))
"""Where nightmill and vLLM are installed: the clients have an environment of their own."""
_START_S, _DRAIN_S = 600, 90


@dataclass(frozen=True)
class Endpoint:
    """Attributes:
    address: without /v1.
    key: a tenant's, who is no admin.
    admin_key: another tenant's, who is one.
    tokenizer: the folder of the model of tier `small`.
    log: what the server printed.
    """

    address: str
    key: str
    admin_key: str
    tokenizer: Path
    log: Path

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    def no_spaces(self) -> dict[str, int]:
        """A bias against whitespace, which this small model would write into JSON to the end."""
        vocabulary = json.loads((self.tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
        # Ġ, Ċ, ĉ and č are a space, a line's end, a tab and a return in a byte-level vocabulary.
        return {str(i): -100 for text, i in vocabulary.items() if not text.strip("ĠĊĉč")}


@contextmanager
def serving(folder: Path) -> Iterator[Endpoint]:
    """A ready endpoint: tier `small` generates and calls tools, tier `vectors` embeds."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    model = folder / "small"
    shutil.copytree(ROOT / "demo/models/small", model)
    shutil.copy(HERE / "chat_template.jinja", model)
    tenants = folder / "tenants.yaml"
    address = f"http://127.0.0.1:{port}"
    key, admin_key = _key(tenants, "acme"), _key(tenants, "boss", "--admin")
    endpoint = Endpoint(address, key, admin_key, model, folder / "serve.log")
    config = folder / "serve.yaml"
    config.write_text(yaml.safe_dump(_config(folder, model, port)))
    with endpoint.log.open("w") as log:
        process = subprocess.Popen(
            [PYTHON, "-m", "jobs.cli", "serve", str(config)], stdout=log, stderr=log, cwd=ROOT
        )
    try:
        until = time.monotonic() + _START_S
        while not _ready(address):
            assert process.poll() is None, endpoint.log.read_text()[-3000:]
            assert time.monotonic() < until, endpoint.log.read_text()[-3000:]
            time.sleep(0.5)
        yield endpoint
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_DRAIN_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _config(folder: Path, model: Path, port: int) -> dict[str, object]:
    sizes = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024}
    price = {"kind": "serverless", "usd_per_mtok": {"input": 0.05, "output": 0.15}}
    small = {"kind": "vllm", "model": str(model), "engine_args": sizes, "tool_parser": "hermes"}
    vectors = {"kind": "vllm", "model": str(model), "engine_args": sizes, "task": "embed"}
    return {
        "input": {"path": "-"},
        "output": {"path": str(folder / "out")},
        "tiers": [
            {"name": "small", "engine": small, "billing": price},
            {"name": "vectors", "engine": vectors, "billing": price},
        ],
        "route": {"policy": "fixed", "tier": "small"},
        "response_cache": {"path": str(folder / "cache")},
        "sampling": {"temperature": 0.0},
        "serve": {
            "port": port,
            "data_dir": str(folder / "data"),
            "tenants": str(folder / "tenants.yaml"),
            "max_tokens": 256,
        },
    }


def _key(tenants: Path, name: str, *options: str) -> str:
    command = [PYTHON, "-m", "jobs.cli", "key", "new", name, "--file", str(tenants), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def _ready(address: str) -> bool:
    try:
        with urlopen(f"{address}/ready", timeout=2) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False
