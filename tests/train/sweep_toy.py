"""Sweeps of the experiment in fake_experiment.py."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_experiment

from mfk.train.sweep import sweep
from mfk.train.sweep_grid import Experiment, Run, flags_of, make_runs, split_words

SCRIPT = Path(__file__).with_name("fake_experiment.py")


class Fake:
    """The experiment in a folder of its own, and the sweeps of it."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "fake.py"
        self.script.write_bytes(SCRIPT.read_bytes())
        self.marks, self.root, self.out = folder / "marks", folder / "sweeps", folder / "sweep"
        self.experiment = Experiment("fake", self.script, fake_experiment.PRESETS)

    def sweep(self, line: str) -> int:
        return sweep(self.experiment, line.split(), self.root)

    def grid(self, line: str) -> list[Run]:
        names, flags = split_words(line.split(), flags_of(self.experiment))
        return make_runs(self.experiment, names, flags)

    def starts(self, folder: Path | None = None) -> dict[str, list[list[Any]]]:
        """Run -> (time, process, OMP_NUM_THREADS) of each of its starts."""
        files = ((folder or self.out) / "runs").glob("*/starts")
        return {f.parent.name: [json.loads(line) for line in f.read_text().splitlines()] for f in files}

    def table(self, folder: Path | None = None) -> dict[str, Any]:
        return json.loads(((folder or self.out) / "table.json").read_text())

    def steps(self, name: str) -> list[int]:
        records = (self.out / "runs" / name / "history.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in records if "train/loss" in line]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
