"""From an experiment's settings to a finished run: what the experiments' scripts have in common."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mfk.core import config, ranks
from mfk.core.types import Batch, Batches, Task
from mfk.data.loader import batches_from
from mfk.train import restarts
from mfk.train.begin import check_fit
from mfk.train.config import TrainConfig, in_steps
from mfk.train.device import resolve_device
from mfk.train.estimate import describe_run
from mfk.train.faults import faults_told
from mfk.train.loop import FitResult, fit
from mfk.train.runs import CONFIG, claim_run


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives, and what it starts from."""

    out: str | None = None
    """Folder of the run; None takes a fresh number under outputs/<experiment>."""
    resume: str | None = None
    """Folder of a run to go on with; alone: --out, or else the newest."""
    init_from: str | None = None
    """Folder of a run whose best weights are the initial ones; optimizer and schedule begin anew."""
    dry_run: bool = False
    """Print the resolved config, shapes, number of parameters and memory estimate, and stop."""


class Settings(Protocol):
    """A frozen dataclass with these two fields beside its own."""

    @property
    def train(self) -> TrainConfig:
        """How to train."""
        ...

    @property
    def run(self) -> RunConfig:
        """Where to."""
        ...


def launch(
    task: Task,
    settings: Settings,
    *,
    name: str,
    validation: Sequence[Batch] = (),
    batches: Batches | Iterable[Batch] | None = None,
    example: Batch | None = None,
    files: Mapping[str, str] | None = None,
    roots: Collection[str] = (),
    fixed: Collection[str] = (),
) -> FitResult | None:
    """Train as `settings` say, in a folder of its own; None after a dry run, and on all ranks but the first.

    Processes that torchrun has started anew, because one of them was lost, go on with the run that they had
    begun, from its last complete checkpoint.

    Args:
        task: the problem.
        settings: a dataclass with the fields `train` (`TrainConfig`) and `run` (`RunConfig`); all of it is
            the run's record.
        name: of the experiment, ``experiments/<name>.py``; runs are numbered in ``outputs/<name>``.
        validation: as for `fit`.
        batches: as for `fit`.
        example: rows of the data, for the dry run; None if the task makes its own.
        files: as for `fit`.
        roots: as for `fit`.
        fixed: as for `fit`; the seed, the metric and the initial weights are always among them.

    Raises:
        SystemExit: 128 + the number of the signal that stopped the run, its state being saved.
        What `fit` raises.
    """
    run, plain = settings.run, _record(settings)
    if batches is not None and not isinstance(batches, Batches):
        batches = batches_from(batches, settings.train.seed)
    plan = in_steps(settings.train, None if batches is None else batches.per_epoch)
    with faults_told(settings.train, lambda: "Nothing was written."):
        check_fit(task, settings.train, validation, None if run.resume is not None else run.init_from)
    if settings.train.steps_per_epoch not in (None, plan.steps_per_epoch):
        print(f"# note: an epoch of these data has {plan.steps_per_epoch} steps; steps_per_epoch is not used")
    if run.dry_run:
        print(config.to_yaml(settings), end="")
        print(f"# {plan.steps} steps on {resolve_device(plan.device)}, {plan.precision}")
        print(describe_run(task, plan, example), end="")
        return None
    folder, resume = ranks.first(lambda: _folder(run, name, files or {}))
    result = fit(
        task,
        settings.train,
        run=folder,
        record=plain,
        validation=validation,
        batches=batches,
        resume=resume,
        init_from=run.init_from,
        resume_hint=f"python experiments/{name}.py --resume {folder}",
        files=files,
        roots=roots,
        fixed=("train.seed", "train.best_metric", "run.init_from", *fixed),
    )
    if result.interrupted:
        sys.exit(128 + result.interrupted)
    return result if ranks.current().rank == 0 else None


def _folder(run: RunConfig, name: str, files: Mapping[str, str]) -> tuple[Path, bool]:
    """The run's folder, and whether there is something in it to go on with."""
    if run.resume is not None:
        return Path(run.resume), True
    begun = restarts.begun(run.out, name)
    folder = begun or claim_run(run.out, name)
    if begun is None:
        restarts.mark(folder)
    for file, text in files.items():
        if begun is not None and (begun / file).is_file() and (begun / file).read_text("utf-8") != text:
            raise ValueError(f"{begun / file}: is another than when the run was begun; start a new run")
    return folder, (folder / CONFIG).is_file()


def _record(settings: Any) -> dict[str, Any]:
    """All settings but those of this one call."""
    return config.to_dict(replace(settings, run=replace(settings.run, out=None, resume=None, dry_run=False)))
