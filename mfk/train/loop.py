"""The training loop: it runs any Task, validates, logs, saves, and can be stopped and resumed."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mfk.core import TraceError, ranks
from mfk.core.memory import hand_back
from mfk.core.types import Batch, Batches, Metrics, Task
from mfk.data.loader import batches_from
from mfk.train import checkpoint, runs, stopping
from mfk.train.begin import check_fit, first_state, introduce, look, open_run
from mfk.train.changes import fixed_settings
from mfk.train.config import (
    TrainConfig,
    in_steps,
    is_due,
    make_clip,
    make_optimizer,
    make_schedule,
)
from mfk.train.device import resolve_device
from mfk.train.divergence import check_guard, check_params, last_good
from mfk.train.ensemble import with_members
from mfk.train.exports import write_exports
from mfk.train.faults import faults_told
from mfk.train.figures import add_metrics, described, epoch_figures, step_figures
from mfk.train.interrupt import interruptible
from mfk.train.profile import profiled
from mfk.train.shards import gather_state, shards_of
from mfk.train.state import TrainState, inference_params, keep_best
from mfk.train.step import count_rows, make_train_step
from mfk.train.validate import member_metrics


class FitResult(NamedTuple):
    """How a run ended."""

    state: TrainState  # of a run that is shared out (config.shard) this rank's parts
    interrupted: int  # number of the signal that stopped it, the state being saved; 0 for none
    stopped_early: bool  # it ended for want of progress
    best_step: int  # step of the best validation; -1 without one
    best: float  # its value
    run: Path  # holds checkpoints/, logs/, history.jsonl, config.yaml, versions.json, result.json


def fit(
    task: Task,
    config: TrainConfig,
    *,
    run: Path | str,
    record: Mapping[str, Any],
    validation: Sequence[Batch] = (),
    batches: Batches | Iterable[Batch] | None = None,
    resume: bool = False,
    init_from: Path | str | None = None,
    resume_hint: str = "",
    files: Mapping[str, str] | None = None,
    roots: Collection[str] = (),
    fixed: Collection[str] = (),
    console: bool = True,
) -> FitResult:
    """Train `task` in the folder `run` until its last step, early stopping, a signal, or divergence.

    Logged as ``train/<metric>``, ``val/<metric>`` and, by epochs, ``epoch/<metric>``. A validation and
    a checkpoint are made before the first step, as often as configured and at the end, and a checkpoint
    at every new best. Ctrl-C, SIGTERM and a closed terminal finish the step, save and return. A resumed
    run ends with bit-identical parameters (same machine, versions, thread count).

    With ``config.members`` > 1 an ensemble of `task` is trained (`mfk.train.ensemble`). What is logged is
    the mean over the members, those left out that are not finite, with their spread as ``<metric>_spread``;
    this mean picks the best checkpoint and drives early stopping. Each member's own best is kept beside it
    (`mfk.train.load_members`). A member that diverges is left standing, and the others go on.

    Args:
        task: the problem; its evaluate sees the averaged parameters where there are any.
        config: see `TrainConfig`.
        run: the run's folder, as from `claim_run`.
        record: the whole resolved configuration as plain data, written to config.yaml.
        validation: complete batches for ``task.evaluate``; sums and weights are added over them.
        batches: where batches come from: `mfk.data.batches_of`, or any torch DataLoader of dicts of
            tensors; None if ``task.draw`` makes its data from {}.
        resume: go on from the run's latest checkpoint; a run that was killed before its first begins again.
        init_from: a run, or a checkpoint, whose weights and carried state (the best, averaged ones) are
            the initial ones; the optimizer and the schedule begin anew. A resumed run does not read it.
        resume_hint: the command that resumes, printed after a signal.
        files: name -> text, written into the folder when the run begins.
        roots: the loss's metrics that are mean squares and logged as their root.
        fixed: dotted keys of `record`, or the first parts of some, that a resumed run must not change; other
            changes are reported.
        console: report on the terminal.

    Raises:
        FileExistsError: the folder holds a run and `resume` is off, or another process trains in it.
        CheckpointError: `resume` or `init_from`, and there is no checkpoint that fits.
        TrainingDiverged: too many steps in a row were not finite (of an ensemble: of every member); the
            message names step, metric and the last checkpoint.
        ValueError: a setting is out of range, `batches` ended early, evaluate lacks the metric, or the
            loss is no pure function of tensors (`TraceError`; config.jit).
        OSError: the folder cannot be written, or a worker that gathers batches died.
        MemoryError: memory ran out; the message names settings to lower.
    """
    ranks.check_joined()
    task = with_members(task, config.members)
    run = Path(run)
    folder = run / runs.CHECKPOINTS
    source = (
        batches if isinstance(batches, Batches) or batches is None else batches_from(batches, config.seed)
    )
    plan = in_steps(config, None if source is None else source.per_epoch)
    device = resolve_device(config.device)
    optimizer, schedule = make_optimizer(plan), make_schedule(plan)
    with ExitStack() as stack:
        stack.callback(hand_back)
        stack.enter_context(_threads(config.threads))
        stack.enter_context(faults_told(config, lambda: last_good(folder)))
        # Rank 0 alone reads and writes the run's folder; the others are told.
        found = ranks.first(lambda: look(run, record, config.seed, fixed, resume=resume, stack=stack))
        check_fit(task, config, validation, None if resume else init_from)
        begins = found.best_metric is None
        best_metric = config.best_metric if validation else found.best_metric or None
        shards = shards_of(task.init(config.seed)[0]) if config.shard else None
        state = first_state(
            task, plan, optimizer, device, shards, run=None if begins else run, init_from=init_from
        )
        ended = state.step == plan.steps or stopping.is_over(state.guard, plan)
        sink = open_run(
            run, plan, state, record, files or {}, resume=resume, begins=begins, ended=ended, console=console,
            stack=stack,
        )  # fmt: skip
        introduce(sink, run, task, plan, state, found.changed, device, ended=ended)
        step = make_train_step(
            task,
            optimizer,
            schedule,
            seed=config.seed,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            clip=make_clip(config),
            ema_decay=config.ema_decay,
            precision=config.precision,
            device=device,
            compiled=config.jit,
            note=sink.note,
            shards=shards,
        )

        kept = fixed_settings(record, fixed)

        def validate(state: TrainState) -> tuple[TrainState, dict[str, float]]:
            check_params(state, folder)
            begun = time.perf_counter()
            whole = state
            if shards is not None:
                whole = state._replace(params=shards.gather(inference_params(state)), ema=None)
            each = member_metrics(task, whole, validation, device)
            del whole
            if not each:
                return state, {}
            values = described(each)
            sink.log(state.step, {f"val/{name}": value for name, value in values.items()})
            guard = stopping.judge(state.guard, values[config.best_metric], state.step, config.min_delta)
            sink.note(f"step {state.step}: validated in {time.perf_counter() - begun:.2f} s", "debug")
            if task.members is not None:
                state = keep_best(state, torch.tensor(each[config.best_metric], dtype=torch.float64))
            return state._replace(guard=guard), values

        def save(state: TrainState, values: Mapping[str, float]) -> None:
            check_params(state, folder)
            begun = time.perf_counter()
            whole = state if shards is None else gather_state(shards, state)
            write = partial(
                checkpoint.save, keep_last=config.keep_last, best_metric=best_metric, settings=kept
            )
            ranks.first(lambda: write(folder, whole, values))
            hand_back()  # or what a checkpoint frees is kept, in more and more pieces
            sink.note(f"step {state.step}: saved in {time.perf_counter() - begun:.2f} s", "debug")

        signalled = stack.enter_context(interruptible())
        saved_at, received = state.step, 0
        values: dict[str, float] = {}
        if begins:
            state, values = validate(state)
            save(state, values)
        feed = None
        if source is not None and not ended:
            feed = source.start(state.step)
            stack.callback(getattr(feed, "close", lambda: None))
        traced = config.profile if ranks.current().rank == 0 else None
        profile = stack.enter_context(profiled(run, traced, state.step, note=sink.note))
        epoch: Metrics = {}
        clock, rows = time.perf_counter(), 0
        # All ranks stop after the same step, whichever the signal reached.
        while not ended and not (received := ranks.highest(signalled() or 0)):
            batch = {} if feed is None else _next(feed, state.step)
            rows += count_rows(batch, config.batch_size)
            try:
                state, metrics = step(state, batch)
            except TraceError as error:
                raise TraceError(f"{error} Or train without compiling: --no-jit.") from error
            profile(state.step)
            sink.advance(state.step)
            ended = state.step == plan.steps
            logs = ended or is_due(state.step, config.log_every, None, None)
            if logs or state.step % config.max_consecutive_skips == 0:
                figures = step_figures(metrics, state, roots)
                if logs:
                    figures["train/samples_per_second"] = rows / (time.perf_counter() - clock)
                    sink.log(state.step, figures)
                    clock, rows = time.perf_counter(), 0
                check_guard(state, figures, config.max_consecutive_skips, folder)
            if config.log_every_epochs is not None:
                epoch = add_metrics(epoch, metrics)
                if is_due(state.step, None, config.log_every_epochs, plan.steps_per_epoch):
                    sink.log(state.step, epoch_figures(epoch, roots))
                    epoch = {}
            pause, values = time.perf_counter(), {}
            if ended or is_due(
                state.step, config.validate_every, config.validate_every_epochs, plan.steps_per_epoch
            ):
                state, values = validate(state)
                if not ended and stopping.is_over(state.guard, plan):
                    ended = True
                    if not logs:
                        sink.log(state.step, step_figures(metrics, state, roots))
                    sink.note(f"early stop after step {state.step}: {stopping.verdict(state.guard, plan)}")
            is_best = bool(values) and state.guard.best_step == state.step
            if (
                ended
                or is_best
                or is_due(
                    state.step, config.checkpoint_every, config.checkpoint_every_epochs, plan.steps_per_epoch
                )
            ):
                save(state, values)
                saved_at = state.step
            clock += time.perf_counter() - pause
        if state.step != saved_at:
            save(state, {})
        early = ended and state.step < plan.steps

        def close() -> None:
            if ended:
                runs.write_result(run, _result(state, early, best_metric))
            write_exports(run)

        ranks.first(close)
        received = ranks.highest(received or signalled() or 0)
        if received:
            hint = f" Resume with: {resume_hint}" if resume_hint else ""
            name = signal.Signals(received).name
            sink.note(
                f"{name}: stopped after step {state.step} of {plan.steps}, saved in {folder}.{hint}",
                "warning",
            )
    return FitResult(state, received, early, state.guard.best_step, state.guard.best, run)


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _next(feed: Iterator[Batch], step: int) -> Batch:
    try:
        return next(feed)
    except StopIteration:
        raise ValueError(f"batches: ended before step {step}; expected one batch for every step") from None


def _result(state: TrainState, early: bool, best_metric: str | None) -> dict[str, Any]:
    result = {
        "steps": state.step,
        "stopped_early": early,
        "best_metric": best_metric,
        "best": state.guard.best,
        "best_step": state.guard.best_step,
        "skipped_steps": int(state.guard.skipped.sum()),
    }
    if state.best is not None:
        result["member_best"] = state.best.value.tolist()
        result["member_best_step"] = state.best.step.tolist()
        result["member_skipped_steps"] = state.guard.skipped.tolist()
    return result
