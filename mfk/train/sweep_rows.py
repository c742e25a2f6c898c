"""What the runs of a sweep have come to, read from their folders."""

from __future__ import annotations

import math
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from mfk.core.types import describe
from mfk.train import runs
from mfk.train.log import read_history
from mfk.train.sweep_grid import Run
from mfk.train.sweep_process import read_json, read_outcome


class Row(NamedTuple):
    """How one run went."""

    run: Run
    status: str  # finished, stopped, failed (code), waiting
    metric: str | None  # the validation metric that was to be lowered
    best: float | None  # its lowest value
    best_step: int | None
    validation: dict[str, float]  # all metrics of that validation
    training: dict[str, float]  # last value of each training metric
    steps: int
    seconds: float  # wall time of all sessions
    course: list[tuple[int, float]]  # (step, metric)
    versions: dict[str, Any]

    def result(self) -> str:
        """In a few words."""
        best = "" if self.best is None else f"{self.metric} {self.best:.4g} at step {self.best_step}, "
        return f"{best}{self.steps} steps, {self.seconds:.0f} s"


def read_row(run: Run, folder: Path) -> Row:
    """What the run in `folder` has come to; a run that has not ended has its best value so far.

    Raises:
        ValueError: one of its files is damaged.
    """
    outcome = read_outcome(folder)
    result = _result(folder / runs.RESULT)
    history = read_history(folder) if (folder / runs.HISTORY).is_file() else []
    planned = [value for key, value in run.settings.items() if key.rpartition(".")[2] == "best_metric"]
    metric = result.get("best_metric", planned[0] if planned else None)
    course = [(record["step"], record[f"val/{metric}"]) for record in history if f"val/{metric}" in record]
    # The first of equals, as in the training itself; min() would let a NaN in front win.
    step, best = min(
        ((step, x) for step, x in course if math.isfinite(x)), key=lambda pair: pair[1], default=(None, None)
    )
    if result.get("best_step", -1) >= 0:
        step, best = result["best_step"], float(result["best"])
    training: dict[str, float] = {}
    validation: dict[str, float] = {}
    for record in history:
        training |= {k.removeprefix("train/"): x for k, x in record.items() if k.startswith("train/")}
        if record["step"] == step:
            validation |= {k.removeprefix("val/"): x for k, x in record.items() if k.startswith("val/")}
    versions = read_json(folder / runs.VERSIONS) if (folder / runs.VERSIONS).is_file() else {}
    return Row(
        run=run,
        status=outcome.status,
        metric=metric,
        best=best,
        best_step=step,
        validation=validation,
        training=training,
        steps=result.get("steps", max((record["step"] for record in history), default=0)),
        seconds=outcome.seconds,
        course=course,
        versions=versions,
    )


def _result(path: Path) -> dict[str, Any]:
    """What a run that has ended says of it; nothing where it has not."""
    result = read_json(path) if path.is_file() else {}
    best = result.get("best", "nan")
    try:
        float(best)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{path}: best: expected a number, got {describe(best)}") from None
    for name, kinds in (("best_metric", (str, NoneType)), ("best_step", (int,)), ("steps", (int,))):
        value = result.get(name, "" if name == "best_metric" else 0)
        if type(value) not in kinds:
            raise ValueError(f"{path}: {name}: expected {kinds[0].__name__}, got {describe(value)}")
    if result.get("best_step", -1) >= 0 and "best" not in result:
        raise ValueError(f"{path}: best: expected the value of step {result['best_step']}, got none")
    return result
