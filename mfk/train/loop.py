"""The training loop: it runs any Task, validates, logs, saves, and can be stopped and resumed."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mfk.core import tree
from mfk.core.types import Batch, Metrics, Task
from mfk.train import checkpoint, runs
from mfk.train.config import TrainConfig, check_config, make_optimizer, make_schedule
from mfk.train.interrupt import interruptible
from mfk.train.log import open_sink
from mfk.train.state import TrainState, inference_params, init_state
from mfk.train.step import count_rows, make_train_step
from mfk.train.validate import validation_metrics

Batches = Callable[[int], Iterator[Batch]]
"""(first step) -> the batches from that step on, so that a resumed run sees what it would have seen."""


class FitResult(NamedTuple):
    """How a run ended."""

    state: TrainState
    interrupted: int  # number of the signal that stopped it, the state being saved; 0 for none
    best_step: int  # step of the best validation; -1 without one
    best: float  # its value
    run: Path  # holds checkpoints/, logs/, history.jsonl, config.yaml, versions.json


class TrainingDiverged(RuntimeError):
    """The run was stopped because its steps, or its parameters, were no longer finite."""


def fit(
    task: Task,
    config: TrainConfig,
    *,
    run: Path | str,
    record: Mapping[str, Any],
    validation: Sequence[Batch] = (),
    batches: Batches | None = None,
    resume: bool = False,
    resume_hint: str = "",
    roots: Collection[str] = (),
    fixed: Collection[str] = (),
    device: torch.device | str = "cpu",
    console: bool = True,
) -> FitResult:
    """Train `task` in the folder `run` until ``config.steps``, a signal, or divergence.

    Logged as ``train/<metric>`` and ``val/<metric>``. A validation and a checkpoint are made before the
    first step, every so many steps and at the end, and a checkpoint at every new best. Ctrl-C,
    SIGTERM and a closed terminal finish the step, save and return. A resumed run ends with bit-identical
    parameters (same machine, versions, thread count).

    Args:
        task: the problem; its evaluate sees the averaged parameters where there are any.
        config: see `TrainConfig`.
        run: the run's folder, as from `claim_run`.
        record: the whole resolved configuration as plain data, written to config.yaml.
        validation: complete batches for ``task.evaluate``; sums and weights are added over them.
        batches: where batches come from; None if ``task.draw`` makes its data from {}.
        resume: go on from the run's latest checkpoint.
        resume_hint: the command that resumes, printed after a signal.
        roots: the loss's metrics that are mean squares and logged as their root.
        fixed: dotted keys of `record`, or the first parts of some, that a resumed run must not change; other
            changes are reported.
        device: where everything is computed.
        console: report on the terminal.

    Raises:
        FileExistsError: the folder holds a run and `resume` is off, or another process trains in it.
        CheckpointError: `resume`, and there is no checkpoint that fits.
        TrainingDiverged: too many steps in a row were not finite; the message names step, metric and the
            last checkpoint.
        ValueError: a setting is out of range, `batches` ended early, or evaluate lacks the metric.
        OSError: the folder cannot be written.
    """
    check_config(config)
    run = Path(run)
    folder = run / runs.CHECKPOINTS
    best_metric = config.best_metric if validation else None
    optimizer, schedule = make_optimizer(config), make_schedule(config)
    with ExitStack() as stack:
        stack.enter_context(_threads(config.threads))
        changed: list[str] = []
        if resume:
            # Before anything of the run is read: another process may be writing it.
            if run.is_dir():
                stack.enter_context(runs.locked(run))
            checkpoint.find(folder)
            changed += _changed_settings(run, record, fixed) + _changed_versions(run, config.seed)
        else:
            runs.refuse_run(run)
        check_fit(task, config, validation, device)
        state = init_state(task, optimizer, config.seed, ema=config.ema_decay is not None, device=device)
        if resume:
            state = checkpoint.load(folder, state)
            if state.step > config.steps:
                raise ValueError(f"steps: {config.steps}, but the run in {run} has already made {state.step}")
        run.mkdir(parents=True, exist_ok=True)
        if not resume:
            stack.enter_context(runs.locked(run))
        sink = open_sink(run, state.step, config.steps, console=console)
        stack.callback(sink.close)
        if not (resume and state.step == config.steps):
            runs.write_record(run, record, config.seed)
        for change in changed:
            sink.note(f"resumed with another {change}")
        step = make_train_step(
            task,
            optimizer,
            schedule,
            seed=config.seed,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            clip=config.clip,
            ema_decay=config.ema_decay,
            device=device,
        )

        def validate(state: TrainState) -> tuple[TrainState, dict[str, float]]:
            _check_params(state, folder)
            values = validation_metrics(task, state, validation, device)
            if not values:
                return state, {}
            sink.log(state.step, {f"val/{name}": value for name, value in values.items()})
            score = values[config.best_metric]
            if score < state.guard.best:
                guard = state.guard._replace(best=score, best_step=state.step)
                state = state._replace(guard=guard)
            return state, values

        def save(state: TrainState, values: Mapping[str, float]) -> None:
            _check_params(state, folder)
            checkpoint.save(folder, state, values, keep_last=config.keep_last, best_metric=best_metric)

        signalled = stack.enter_context(interruptible())
        saved_at = state.step
        if not resume:
            state, values = validate(state)
            save(state, values)
        source = batches(state.step) if batches is not None else None
        clock, rows = time.perf_counter(), 0
        while state.step < config.steps and signalled() is None:
            batch = {} if source is None else _next(source, state.step)
            rows += count_rows(batch, config.batch_size)
            state, metrics = step(state, batch)
            sink.advance(state.step)
            last = state.step == config.steps
            logs = last or state.step % config.log_every == 0
            if logs or state.step % config.max_consecutive_skips == 0:
                figures = _figures(metrics, state, roots)
                if logs:
                    figures["train/samples_per_second"] = rows / (time.perf_counter() - clock)
                    sink.log(state.step, figures)
                    clock, rows = time.perf_counter(), 0
                _check_guard(state, figures, config.max_consecutive_skips, folder)
            pause, values = time.perf_counter(), {}
            if last or state.step % config.validate_every == 0:
                state, values = validate(state)
            is_best = bool(values) and state.guard.best_step == state.step
            if last or is_best or state.step % config.checkpoint_every == 0:
                save(state, values)
                saved_at = state.step
            clock += time.perf_counter() - pause
        if state.step != saved_at:
            save(state, {})
        received = signalled()
        if received is not None:
            hint = f" Resume with: {resume_hint}" if resume_hint else ""
            name = signal.Signals(received).name
            sink.note(f"{name}: stopped after step {state.step} of {config.steps}, saved in {folder}.{hint}")
    return FitResult(state, received or 0, state.guard.best_step, state.guard.best, run)


def check_fit(
    task: Task, config: TrainConfig, validation: Sequence[Batch] = (), device: torch.device | str = "cpu"
) -> None:
    """Raise what `fit` would raise for its settings, with nothing written.

    Raises:
        ValueError: a setting is out of range, or `validation` does not yield ``config.best_metric``.
    """
    check_config(config)
    if validation:
        state = init_state(task, make_optimizer(config), config.seed, device=device)
        # One batch names all metrics.
        names = sorted(validation_metrics(task, state, validation[:1], device))
        if config.best_metric not in names:
            raise ValueError(
                f"best_metric: expected one of task.evaluate's {names}, got {config.best_metric!r}"
            )


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _next(source: Iterator[Batch], step: int) -> Batch:
    try:
        return next(source)
    except StopIteration:
        raise ValueError(f"batches: ended before step {step}; expected one batch for every step") from None


def _figures(metrics: Metrics, state: TrainState, roots: Collection[str]) -> dict[str, float]:
    """Metrics as Python floats: here the host waits for the device."""
    figures = {
        f"train/{name}": float(value) ** 0.5 if name in roots else float(value)
        for name, value in metrics.items()
    }
    figures["train/skipped_steps"] = float(state.guard.skipped)
    return figures


def _check_guard(state: TrainState, figures: Mapping[str, float], limit: int, folder: Path) -> None:
    skipped = int(state.guard.consecutive)
    if skipped >= limit:
        names = [name for name, value in figures.items() if not math.isfinite(value)]
        raise TrainingDiverged(
            f"step {state.step}: {', '.join(names)} not finite, the last {skipped} steps were skipped. "
            f"{_last_good(folder)} Lower the learning rate, or look for bad values in the data."
        )


def _check_params(state: TrainState, folder: Path) -> None:
    if bool(tree.all_finite(inference_params(state))) and bool(tree.all_finite(state.params)):
        return
    bad = [name for name, x in tree.named_leaves(state.params) if not bool(torch.isfinite(x).all())]
    raise TrainingDiverged(
        f"step {state.step}: parameters {bad[:4]} are not finite. {_last_good(folder)} "
        "Lower the learning rate."
    )


def _last_good(folder: Path) -> str:
    listed = checkpoint.saved(folder)
    return f"Last good checkpoint: {listed[-1].path}." if listed else "There is no checkpoint yet."


def _changed_settings(run: Path, record: Mapping[str, Any], fixed: Collection[str]) -> list[str]:
    """What differs from the settings that began the run; ValueError if it is one of the fixed."""
    if not (run / runs.CONFIG).exists():
        return []
    before, now = (_flat(settings) for settings in (runs.read_record(run), record))
    changed = []
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            changes = f"{key} ({before.get(key)} -> {now.get(key)})"
            if any(key == name or key.startswith(name + ".") for name in fixed):
                raise ValueError(f"{run}: a resumed run cannot change {changes}; start a new run")
            changed.append(changes)
    return changed


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _changed_versions(run: Path, seed: int) -> list[str]:
    """What differs from the machine and packages that began the run."""
    try:
        before = json.loads((run / runs.VERSIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    now = runs.versions(seed)
    return [
        f"{name} ({before[name]} -> {now[name]}): numbers may differ in the last bits"
        for name in now
        if name != "seed" and name in before and before[name] != now[name]
    ]
