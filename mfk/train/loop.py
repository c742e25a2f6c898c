"""The training loop: it runs any Task, validates, logs, saves, and can be stopped and resumed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from mfk.core import tree
from mfk.core.types import Batch, Metrics, Optimizer, Schedule, Task, describe
from mfk.optim import adamw, decays_by_name, warmup_constant, warmup_cosine, warmup_linear
from mfk.train import checkpoint, runs
from mfk.train.interrupt import interruptible
from mfk.train.log import open_sink
from mfk.train.state import TrainState, inference_params, init_state
from mfk.train.step import count_rows, make_train_step
from mfk.train.validate import validation_metrics

Batches = Callable[[int], Iterator[Batch]]
"""(first step) -> the batches from that step on, so that a resumed run sees what it would have seen."""


@dataclass(frozen=True)
class TrainConfig:
    """How a task is trained."""

    steps: int = 10_000
    """Optimizer steps in all."""
    batch_size: int = 256
    """Rows of the global batch."""
    accumulate: int = 1
    """Micro-batches that a batch is split into; changes memory and time, not the result."""
    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the end of the schedule."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up; constant ignores min_lr."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, as a share of the learning rate; biases and norms are not decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging constants for the gradient and its square."""
    eps: float = 1e-8
    """AdamW's term beside the root."""
    clip: float | None = 1.0
    """Largest global gradient norm; None does not clip."""
    ema_decay: float | None = 0.999
    """Decay of the averaged parameters per step; None keeps none."""
    validate_every: int = 1_000
    """Steps between validations."""
    log_every: int = 50
    """Steps between log records."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints."""
    keep_last: int = 2
    """Checkpoints kept beside the best one."""
    best_metric: str = "val_loss"
    """Validation metric that picks the best checkpoint; lower is better."""
    max_consecutive_skips: int = 10
    """Steps skipped in a row, because they were not finite, that stop the run."""
    seed: int = 0
    """Seed of the initial parameters and of every draw."""
    threads: int | None = None
    """CPU threads; None leaves torch's choice."""


class FitResult(NamedTuple):
    """How a run ended."""

    state: TrainState
    interrupted: bool  # a signal came; the state is saved
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
    device: torch.device | str = "cpu",
    console: bool = True,
) -> FitResult:
    """Train `task` in the folder `run` until ``config.steps``, a signal, or divergence.

    Logged as ``train/<metric>`` and ``val/<metric>``. A validation and a checkpoint are made before the
    first step, every so many steps and at the end, and a checkpoint at every new best. Ctrl-C and
    SIGTERM finish the step, save and return. A resumed run ends with bit-identical parameters
    (same machine, versions, thread count).

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
        device: where everything is computed.
        console: report on the terminal.

    Raises:
        FileExistsError: the folder holds a run, and `resume` is off.
        CheckpointError: `resume`, and there is no checkpoint that fits.
        TrainingDiverged: too many steps in a row were not finite; the message names step, metric and the
            last checkpoint.
        ValueError: a setting is out of range, `batches` ended early, or evaluate lacks the metric.
        OSError: the folder cannot be written.
    """
    _check(config)
    run = Path(run)
    folder = run / runs.CHECKPOINTS
    best_metric = config.best_metric if validation else None
    optimizer, schedule = _optimizer(config), _schedule(config)
    with ExitStack() as stack:
        stack.enter_context(_threads(config.threads))
        state = init_state(task, optimizer, config.seed, ema=config.ema_decay is not None, device=device)
        if resume:
            state = checkpoint.load(folder, state)
            if state.step > config.steps:
                raise ValueError(f"steps: {config.steps}, but the run in {run} has already made {state.step}")
        else:
            runs.refuse_run(run)
            if best_metric is not None:
                # Before anything is written; the first batch names all metrics.
                _check_metric(best_metric, validation_metrics(task, state, validation[:1], device))
        run.mkdir(parents=True, exist_ok=True)
        changed = _changed_versions(run, config.seed) if resume else {}
        runs.write_record(run, record, config.seed)
        sink = open_sink(run, state.step, config.steps, console=console)
        stack.callback(sink.close)
        for name, (old, new) in changed.items():
            sink.note(f"resumed with another {name} ({old} -> {new}): numbers may differ in the last bits")
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
            if last or state.step % config.log_every == 0:
                figures = _figures(metrics, state, roots)
                figures["train/samples_per_second"] = rows / (time.perf_counter() - clock)
                sink.log(state.step, figures)
                _check_guard(state, figures, config.max_consecutive_skips, folder)
                clock, rows = time.perf_counter(), 0
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
        if received:
            hint = f" Resume with: {resume_hint}" if resume_hint else ""
            sink.note(
                f"{received}: stopped after step {state.step} of {config.steps}, saved in {folder}.{hint}"
            )
    return FitResult(state, received is not None, state.guard.best_step, state.guard.best, run)


def _optimizer(config: TrainConfig) -> Optimizer:
    return adamw(config.betas, config.eps, config.weight_decay, decay=decays_by_name)


def _schedule(config: TrainConfig) -> Schedule:
    if config.schedule == "constant":
        return warmup_constant(config.lr, config.warmup_steps)
    shape = {"cosine": warmup_cosine, "linear": warmup_linear}[config.schedule]
    return shape(config.lr, config.warmup_steps, config.steps, config.min_lr)


def _check(config: TrainConfig) -> None:
    for name in ("steps", "batch_size", "accumulate", "validate_every", "log_every", "checkpoint_every"):
        _check_count(name, getattr(config, name))
    for name in ("keep_last", "max_consecutive_skips"):
        _check_count(name, getattr(config, name))
    if config.threads is not None:
        _check_count("threads", config.threads)
    if config.schedule not in ("cosine", "linear", "constant"):
        raise ValueError(f"schedule: expected cosine, linear or constant, got {config.schedule!r}")


def _check_metric(name: str, values: Mapping[str, float]) -> None:
    if name not in values:
        raise ValueError(f"best_metric: expected one of task.evaluate's {sorted(values)}, got {name!r}")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected an int >= 1, got {describe(value)}")


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


def _changed_versions(run: Path, seed: int) -> dict[str, tuple[Any, Any]]:
    """What differs from the machine and packages that began the run."""
    try:
        before = json.loads((run / runs.VERSIONS).read_text())
    except (OSError, ValueError):
        return {}
    now = runs.versions(seed)
    return {name: (before[name], now[name]) for name in now if name in before and before[name] != now[name]}
