"""How a run begins: what its folder holds, its first state, its first files and its log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mfk.core import ranks, tree
from mfk.core.files import write_atomically
from mfk.core.types import Batch, Optimizer, Task
from mfk.train import checkpoint, runs
from mfk.train.changes import changed_settings, changed_versions, check_settings
from mfk.train.config import TrainConfig, check_config, make_optimizer, with_few_members
from mfk.train.device import resolve_device
from mfk.train.ensemble import with_members
from mfk.train.log import Sink, open_sink, silent_sink
from mfk.train.shards import Shards, blank_state, split_state
from mfk.train.state import TrainState, init_state
from mfk.train.step import micro_batches
from mfk.train.validate import validation_metrics


class Found(NamedTuple):
    """What a run's folder holds."""

    best_metric: str | None  # what its run calls it, "" if nothing; None before its first checkpoint
    changed: list[str]  # what is not as it was when the run began


def look(
    run: Path,
    record: Mapping[str, Any],
    seed: int,
    fixed: Collection[str],
    *,
    resume: bool,
    stack: ExitStack,
) -> Found:
    """See whether a run can begin in the folder, or go on; one that goes on is locked as long as `stack`.

    Raises:
        FileExistsError: the folder holds a run and `resume` is off, or another process trains in it.
        ValueError: what is `fixed` has changed, or the run's own files cannot be read.
    """
    if not resume:
        runs.refuse_run(run)
        return Found(None, [])
    # Before anything of the run is read: another process may be writing it.
    if run.is_dir():
        stack.enter_context(runs.locked(run))
    changed = changed_settings(run, record, fixed) + changed_versions(run, seed)
    if not runs.is_unsaved(run):
        check_settings(run, record)
    found = checkpoint.saved(run / runs.CHECKPOINTS)
    return Found((found[-1].best_metric or "") if found else None, changed)


def check_fit(
    task: Task, config: TrainConfig, validation: Sequence[Batch] = (), init_from: Path | str | None = None
) -> None:
    """Raise what `fit` would raise for its settings, with nothing written.

    Raises:
        CheckpointError: `init_from` holds no checkpoint, or one of another model.
        ValueError: a setting is out of range, or `validation` does not yield ``config.best_metric``.
    """
    check_config(config)
    single, task = task, with_members(task, config.members)
    device = resolve_device(config.device)
    if not validation and config.patience is not None:
        raise ValueError("patience: early stopping needs validation batches, and there are none")
    if init_from is not None:
        _with_weights(init_from, init_state(task, make_optimizer(config), config.seed, device=device))
    if validation:
        if single.members is None and config.members > 2:
            # Two members yield the names that all of them do.
            config = with_few_members(config, 2)
            task = with_members(single, 2)
        state = init_state(task, make_optimizer(config), config.seed, device=device)
        # One batch names all metrics.
        names = sorted(validation_metrics(task, state, validation[:1], device))
        if config.best_metric not in names:
            raise ValueError(
                f"best_metric: expected one of task.evaluate's {names}, got {config.best_metric!r}"
            )


def first_state(
    task: Task,
    config: TrainConfig,
    optimizer: Optimizer,
    device: torch.device,
    shards: Shards | None,
    *,
    run: Path | None,
    init_from: Path | str | None,
) -> TrainState:
    """The state that the next step is made from: of a run's last checkpoint, or else a new one.

    Args:
        task: with its members.
        config: its length in steps.
        optimizer: see `make_optimizer`.
        device: of the state.
        shards: of a model that is shared out; this rank's parts are returned.
        run: the run that goes on; None: it begins.
        init_from: whose weights a run begins with.

    Raises:
        CheckpointError: there is none that fits. ValueError: the run has made more steps already.
    """
    state = init_state(
        task, optimizer, config.seed, ema=config.ema_decay is not None, device=device,
        split=None if shards is None else shards.split,
    )  # fmt: skip
    if run is None:
        return state if init_from is None else _from_disk(state, partial(_with_weights, init_from), shards)
    state = _from_disk(state, partial(checkpoint.load, run / runs.CHECKPOINTS), shards)
    if state.step > config.steps:
        raise ValueError(f"steps: {config.steps}, but the run in {run} has already made {state.step}")
    return state


def open_run(
    run: Path,
    config: TrainConfig,
    state: TrainState,
    record: Mapping[str, Any],
    files: Mapping[str, str],
    *,
    resume: bool,
    begins: bool,
    ended: bool,
    console: bool,
    stack: ExitStack,
) -> Sink:
    """Lock the folder, write what a run has from its beginning, open its log: on rank 0, until `stack` ends.

    Raises:
        FileExistsError: another process has begun meanwhile. OSError: the folder cannot be written.
    """
    opened: list[Sink] = []

    def begin() -> None:
        run.mkdir(parents=True, exist_ok=True)
        if not resume:
            stack.enter_context(runs.locked(run))
            runs.refuse_begun(run)  # by another process, since this one has looked
        if begins:
            (run / runs.HISTORY).unlink(missing_ok=True)
            for name, text in files.items():
                write_atomically(run / name, text)
            # Before its logs: a run that is killed in between can then be gone on with.
            runs.write_record(run, record, config.seed)
        opened.append(
            open_sink(
                run, state.step, config.steps, console=console, level=config.log_level,
                watched=config.best_metric, trackers=config.trackers, record=record,
            )
        )  # fmt: skip
        stack.callback(opened[0].close)
        if not ended:
            (run / runs.RESULT).unlink(missing_ok=True)
        if not ended and not begins:
            runs.write_record(run, record, config.seed)

    ranks.first(begin)
    return opened[0] if opened else silent_sink()


def introduce(
    sink: Sink,
    run: Path,
    task: Task,
    config: TrainConfig,
    state: TrainState,
    changed: Sequence[str],
    device: torch.device,
    *,
    ended: bool,
) -> None:
    """Say where the run stands, and what somebody may want to know who compares it with another."""
    count = ranks.current().count
    many = "" if count == 1 else f", {count} ranks"
    sink.note(f"run: {run}, step {state.step} of {config.steps}, {config.precision} on {device}{many}")
    parts = micro_batches(config.accumulate, count)
    if task.coupled and parts != config.accumulate:
        sink.note(
            f"the loss couples the rows of a micro-batch, and {count} ranks make {parts} of them a "
            f"step: one process does the same with --accumulate {parts}"
        )
    if ended:
        sink.note("nothing is left to train: the run has ended")
    for change in changed:
        sink.note(f"resumed with another {change}", "warning")
    if device.type == "mps":
        sink.note("device: mps is untested; compare with a run on the CPU", "warning")


def _from_disk(
    state: TrainState, load: Callable[[TrainState], TrainState], shards: Shards | None
) -> TrainState:
    """The state as rank 0 finds it on its disk."""
    found = [state if shards is None else blank_state(shards, state)]

    def read() -> None:
        found[0] = load(found[0])

    ranks.first(read)
    whole = ranks.from_first(found[0])
    return whole if shards is None else split_state(shards, whole, state)


def _with_weights(folder: Path | str, state: TrainState) -> TrainState:
    """`state` with the weights and the carried state of a run's best checkpoint."""
    try:
        params = checkpoint.load_params(folder, state.params, "best")
        carried = checkpoint.load_state(folder, state.state, "best")
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(f"init_from: {error}") from error
    ema = None if state.ema is None else tree.clone(params)
    return state._replace(params=params, state=carried, ema=ema)
