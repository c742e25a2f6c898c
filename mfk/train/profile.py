"""A trace of some steps of a training, by torch.profiler."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mfk.core.files import write_atomically
from mfk.train.runs import LOGS


@contextmanager
def profiled(
    run: Path | str,
    steps: tuple[int, int] | None,
    first: int,
    *,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Callable[[int], None]]:
    """Trace the steps a..b = `steps`, numbered from 0 and both included, of a run whose next step is `first`.

    Yields ``advance(made)``, to be called after every step with the number of steps made. The trace goes to
    ``logs/profile_<a>_<b>.json``, in Chrome's format for chrome://tracing or Perfetto, and to
    ``logs/profile_<a>_<b>.txt``, a table of the operators by the time they take themselves, one line for
    each shape of their inputs. It holds what the CPU and CUDA do, each step marked "step <n>", and also what
    happens between two of these steps: logs, a validation, a checkpoint. Any other step costs a comparison.

    A run that starts, ends or is interrupted inside the window traces the steps that it makes there, and the
    files are named after these. A step that raises is not counted.

    Args:
        run: the run's folder.
        steps: first and last step to trace; None traces nothing.
        first: steps that the run has made already.
        note: told the files that were written, or that none of the steps was made.
    """
    if steps is None:
        yield lambda made: None
        return
    begin, end = max(steps[0], first), steps[1]
    window = f"profile: steps {steps[0]} to {end}"
    if begin > end:
        note(f"{window} were made before this start; nothing is traced")
        yield lambda made: None
        return
    profiler: Any = None
    mark: Any = None
    traced = 0

    def finish() -> None:
        nonlocal profiler, mark
        if profiler is None:
            return
        stopped, profiler = profiler, None
        mark.__exit__(None, None, None)
        _wait()
        stopped.stop()
        if traced:
            files = _write(stopped, Path(run) / LOGS, f"profile_{begin}_{begin + traced - 1}")
            note(f"profile: wrote {files}")

    def advance(made: int) -> None:
        nonlocal profiler, mark, traced
        if not begin <= made <= end + 1:
            return
        if profiler is not None:
            traced = made - begin
        if made > end:
            finish()
            return
        if profiler is None:
            profiler = _start()
        else:
            mark.__exit__(None, None, None)
        mark = torch.profiler.record_function(f"step {made}")
        mark.__enter__()

    try:
        advance(first)
        yield advance
    finally:
        finish()
        if not traced:
            note(f"{window}: the run ended before the first of them was made; nothing is traced")


def _start() -> Any:
    from torch.profiler import profile

    # The tracer prints that it starts and stops, at a level above errors. It reads this at its first start.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    _wait()
    # Without a list, it takes every activity that this build and machine can trace.
    profiler = profile(record_shapes=True)
    profiler.start()
    return profiler


def _write(profiler: Any, folder: Path, name: str) -> str:
    trace, table = folder / f"{name}.json", folder / f"{name}.txt"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}.part"
    try:
        profiler.export_chrome_trace(str(part))
        part.replace(trace)
    finally:
        part.unlink(missing_ok=True)
    device = "device" if torch.cuda.is_initialized() else "cpu"
    operators = profiler.key_averages(group_by_input_shape=True)
    text = operators.table(
        sort_by=f"self_{device}_time_total",
        row_limit=200,
        max_name_column_width=80,
        max_shapes_column_width=120,
    )
    write_atomically(table, text + "\n")
    return f"{trace} and {table.name}"


def _wait() -> None:
    """Let the device finish what it was given: that belongs to the steps before."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
