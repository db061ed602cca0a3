"""`lm-eval`: a local task through `local-chat-completions` and `local-completions`."""

import json
import os
from pathlib import Path

import lm_eval
import pytest
import yaml
from lm_eval.tasks import TaskManager
from serving import Endpoint

WORDS = ("apple tree", "plum", "fig leaf")


def write_task(folder: Path) -> None:
    lines = [{"question": f"Write in upper case: {w}", "answer": w.upper()} for w in WORDS]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {
        "task": "upper_case",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "lines.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 32, "temperature": 0.0},
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / "upper_case.yaml").write_text(yaml.safe_dump(task))


@pytest.mark.parametrize(
    ("kind", "path", "chat"),
    [
        ("local-chat-completions", "chat/completions", True),
        ("local-completions", "completions", False),
    ],
)
def test_a_local_task_is_scored(
    endpoint: Endpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    path: str,
    chat: bool,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", endpoint.key)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    write_task(tmp_path)
    found = lm_eval.simple_evaluate(
        model=kind,
        model_args={
            "model": "small",
            "base_url": f"{endpoint.url}/{path}",
            "num_concurrent": 2,
            "max_retries": 1,
            "tokenized_requests": False,
            "tokenizer_backend": None,
        },
        tasks=["upper_case"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        apply_chat_template=chat,
        log_samples=True,
    )
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert found["results"]["upper_case"]["exact_match,none"] == 1.0
