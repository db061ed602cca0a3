"""`nightmill distill` end to end, on the demo's small model in a few steps."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, write_jsonl

from demo.evaluate import held_out_questions
from pipelines.config_file import load_config
from pipelines.distill_config import DistillConfig
from pipelines.errors import UsageProblem

SMALL, LARGE = ROOT / "demo/models/small", ROOT / "demo/models/large"
STEPS, EVERY = 24, 8


def prompts(count: int) -> list[dict[str, Any]]:
    questions = held_out_questions(count, seed=3)
    return [{"prompt": q.prompt, "label": q.label} for q in questions]


def settings(folder: Path, **changed: Any) -> dict[str, Any]:
    data = folder / "prompts.jsonl"
    if not data.exists():
        write_jsonl(data, prompts(420))
    return {
        "teacher": str(SMALL),
        "format": {"kind": "int4", "group_size": 128},
        "data": [{"path": str(data)}],
        "answers": "teacher",
        "max_new_tokens": 16,
        "output": str(folder / "out"),
        "eval": {"rows": 140, "every_steps": EVERY},
        # Not each CPU that runs this multiplies 16-bit numbers by itself.
        "train": {
            "steps": STEPS,
            "batch_tokens": 2048,
            "learning_rate": 1e-5,
            "warmup": 2,
            "precision": "float32",
        },
        "publish": {"max_score_loss_points": 20.0},
        "baselines": [],
        **changed,
    }


def written(folder: Path, **changed: Any) -> Path:
    path = folder / "distill.yaml"
    path.write_text(yaml.safe_dump(settings(folder, **changed)))
    return path


def start(config: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "jobs.cli", "distill", str(config), "--json", *options]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: "subprocess.Popen[str]", code: int = 0) -> dict[str, Any]:
    out, err = process.communicate(timeout=250)
    assert process.returncode == code, err
    outcome: dict[str, Any] = json.loads(out)
    return outcome


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A distillation that ran to its end: the folder and what `--json` printed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "out", finished(start(written(folder)))


def test_the_student_is_nearer_than_plain_quantization_and_leaves(
    done: tuple[Path, dict[str, Any]],
) -> None:
    out, outcome = done
    measured = outcome["measured"]
    assert measured["student"]["kl"] <= 0.9 * measured["mse"]["kl"]
    assert outcome["published"]
    config = json.loads((out / "model/config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
    assert outcome["size_bytes"] < outcome["source_bytes"]
    assert (out / "model/tokenizer.json").exists()


def test_the_report_and_the_card_hold_the_figures(done: tuple[Path, dict[str, Any]]) -> None:
    out, outcome = done
    page, card = (out / "report.html").read_text(), (out / "model/README.md").read_text()
    for found in outcome["measured"].values():
        assert f"{found['kl']:.5f}" in page
        assert f"{found['kl']:.5f}" in card
    assert str(ROOT) not in card, "where models lay is nobody else's business"
    assert page.count("<svg") == 4
    assert not re.search(r'(src|href)="', page)


def test_a_finished_distillation_is_not_done_again(done: tuple[Path, dict[str, Any]]) -> None:
    out, outcome = done
    started = time.monotonic()
    assert finished(start(out.parent / "distill.yaml")) == outcome
    assert time.monotonic() - started < 60


def test_another_distillation_may_not_use_the_folder(done: tuple[Path, dict[str, Any]]) -> None:
    out, _ = done
    process = start(out.parent / "distill.yaml", "--set", "train.learning_rate=1.0")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "another output" in err


def test_a_killed_training_goes_on_and_ends_within_noise(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Two workers this time: neither they nor the kill may change where training ends."""
    config = written(tmp_path, workers={"num_workers": 2, "threads": 1})
    process = start(config)
    wait_for_step(tmp_path / "out", EVERY + 1, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    resumed = start(config)
    outcome = finished(resumed)
    steps = [point["step"] for point in outcome["curves"]["student"]]
    assert steps == list(range(0, STEPS + 1, EVERY))
    whole = done[1]["measured"]["student"]["kl"]
    assert outcome["measured"]["student"]["kl"] == pytest.approx(whole, rel=0.15)


def wait_for_step(out: Path, step: int, process: "subprocess.Popen[str]") -> None:
    """Until the training has told of a step at or after this one."""
    progress = out / ".nightmill/progress-student.jsonl"
    for _ in range(1200):
        assert process.poll() is None, process.communicate()[1]
        lines = progress.read_text().splitlines() if progress.exists() else []
        if any(json.loads(line)["step"] >= step for line in lines):
            return
        time.sleep(0.1)
    raise AssertionError("the training did not get so far")


def test_a_student_that_learned_nothing_stays_and_the_exit_code_says_so(tmp_path: Path) -> None:
    train = {"steps": 1, "batch_tokens": 64, "learning_rate": 1e-9}
    process = start(written(tmp_path, train=train))
    outcome = finished(process, code=3)
    assert not outcome["published"]
    assert outcome["model"] is None
    assert not (tmp_path / "out/model").exists()
    assert "not published" in (tmp_path / "out/report.html").read_text()


def planned(folder: Path, **changed: Any) -> Any:
    from jobs.distill_checks import plan_distillation

    return plan_distillation(load_config(written(folder, **changed), None, DistillConfig))


def other_tokenizer(folder: Path) -> Path:
    """The small model with two tokens exchanged."""
    shutil.copytree(SMALL, folder / "other")
    path = folder / "other/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer))
    return folder / "other"


def test_models_with_different_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"student: .*2 tokens have other ids"):
        planned(tmp_path, student=str(other_tokenizer(tmp_path)))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"format": {"kind": "int4", "group_size": 48}}, r"format: .*group_size 48.*to fix"),
        ({"teacher": str(LARGE)}, r"format: .*704 inputs"),
        ({"teacher": "no/such/folder"}, r"teacher: .*config\.json"),
        ({"max_length": 100_000}, r"max_length: .*2048"),
        ({"eval": {"rows": 5000}}, r"eval\.rows"),
        ({"output": "s3://bucket/out"}, r"output: .*folder"),
        ({"workers": {"num_workers": 500}}, r"num_workers"),
        ({"data": [{"path": "none.jsonl"}]}, r"data\.0\.path"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageProblem, match=says):
        planned(tmp_path, **changed)


def test_empty_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("")
    with pytest.raises(UsageProblem, match="data"):
        planned(tmp_path)


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(UsageProblem, match=r"output: .*GB free.*free some"):
        planned(tmp_path)


def test_a_row_longer_than_the_context_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*prompts(200), {"prompt": "word " * 3000}]
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    plan = planned(tmp_path)
    assert plan.skipped["longer than the context"] == 1
    assert all(len(e.ids) <= 2048 for part in plan.parts.values() for e in part)


@pytest.mark.parametrize("name", ["distill-demo.yaml", "distill-8b.yaml"])
def test_the_shipped_configurations_are_valid(name: str) -> None:
    load_config(ROOT / "configs" / name, None, DistillConfig)


def test_an_unknown_key_names_file_and_key(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"distill\.yaml: train\.rate: unknown key"):
        load_config(written(tmp_path, train={"rate": 1}), None, DistillConfig)
