"""What a distillation keeps in its output folder, so that it can go on after any kill."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.distill_config import DistillConfig
from pipelines.distill_data import Example, Part
from pipelines.errors import UsageProblem
from pipelines.publish import Measured
from pipelines.storage import Directory

_STATE = ".nightmill"
_PARTS: tuple[Part, ...] = ("train", "validation", "test")


class Store:
    """Files of one distillation; every worker sees the same folder."""

    def __init__(self, config: DistillConfig) -> None:
        self.directory = Directory(config.output, config.storage)
        self.model_folder = Path(config.output, "model")

    @property
    def training_folder(self) -> str:
        """Where Ray Train keeps checkpoints, under the name of each training."""
        return self.directory.path(f"{_STATE}/training")

    def progress_file(self, name: str) -> Path:
        return Path(self.directory.path(f"{_STATE}/progress-{name}.jsonl"))

    def open(self, identity: str) -> bool:
        """Begin, or go on with the same; whether it goes on.

        Raises:
            UsageProblem: another distillation lives here.
        """
        name = f"{_STATE}/distillation.json"
        if self.directory.exists(name):
            if json.loads(self.directory.read(name))["identity"] != identity:
                raise UsageProblem(
                    f"output: {self.directory.url}: holds a distillation of other models, data "
                    "or settings; choose another output or remove it"
                )
            return True
        self.directory.write(name, json.dumps({"identity": identity}).encode())
        os.makedirs(self.training_folder, exist_ok=True)
        return False

    def answers(self, number: int) -> list[list[int]] | None:
        """One batch of the teacher's answers, if it is there."""
        name = f"{_STATE}/answers/{number}.parquet"
        if not self.directory.exists(name):
            return None
        answers: list[list[int]] = self.directory.read_table(name)["ids"].to_pylist()
        return answers

    def save_answers(self, number: int, answers: Sequence[Sequence[int]]) -> None:
        table = pa.table({"ids": pa.array(answers, pa.list_(pa.int32()))})
        self.directory.write_table(f"{_STATE}/answers/{number}.parquet", table)

    def save_examples(self, parts: Mapping[Part, Sequence[Example]]) -> None:
        rows = [(part, example) for part in _PARTS for example in parts[part]]
        columns = {
            "part": pa.array([part for part, _ in rows], pa.string()),
            "ids": pa.array([list(e.ids) for _, e in rows], pa.list_(pa.int32())),
            "prefix": pa.array([e.prefix for _, e in rows], pa.int32()),
            "key": pa.array([e.key for _, e in rows], pa.binary()),
            "label": pa.array([e.label for _, e in rows], pa.string()),
        }
        self.directory.write_table(f"{_STATE}/examples.parquet", pa.table(columns))

    def load_examples(self) -> dict[Part, list[Example]]:
        parts: dict[Part, list[Example]] = {part: [] for part in _PARTS}
        for row in self.directory.read_table(f"{_STATE}/examples.parquet").to_pylist():
            example = Example(tuple(row["ids"]), row["prefix"], row["key"], row["label"])
            parts[row["part"]].append(example)
        return parts

    def finish_training(self, name: str, best: str, curve: Sequence[Mapping[str, Any]]) -> None:
        """Remember where the best checkpoint lies, relative to the folder, and the curve."""
        place = os.path.relpath(best, self.training_folder)
        data = json.dumps({"best": place, "curve": list(curve)})
        self.directory.write(f"{_STATE}/trained-{name}.json", data.encode())

    def _trained(self, name: str) -> dict[str, Any] | None:
        file = f"{_STATE}/trained-{name}.json"
        return json.loads(self.directory.read(file)) if self.directory.exists(file) else None

    def best_checkpoint(self, name: str) -> Path | None:
        """None where no training of that name has ended."""
        trained = self._trained(name)
        return Path(self.training_folder, trained["best"]) if trained else None

    def curve(self, name: str) -> list[dict[str, Any]]:
        trained = self._trained(name)
        return list(trained["curve"]) if trained else []

    def measured(self, name: str) -> Measured | None:
        file = f"{_STATE}/measured/{name}.json"
        if not self.directory.exists(file):
            return None
        return Measured(**json.loads(self.directory.read(file)))

    def save_measured(self, name: str, found: Measured) -> None:
        self.directory.write(f"{_STATE}/measured/{name}.json", json.dumps(asdict(found)).encode())
