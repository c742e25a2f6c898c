"""Where metrics go: history.jsonl, TensorBoard, and the terminal."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mfk.core.files import write_atomically
from mfk.train.runs import HISTORY, LOGS


class Sink(NamedTuple):
    """A place to report to; `close` it in any case."""

    log: Callable[[int, Mapping[str, float]], None]  # (steps made, metrics) -> written and flushed
    advance: Callable[[int], None]  # (steps made): moves the progress bar
    note: Callable[[str], None]  # (text): one line on the terminal
    close: Callable[[], None]


class _Terminal(NamedTuple):
    show: Callable[[int, Mapping[str, float]], None]  # (steps made, metrics)
    advance: Callable[[int], None]  # (steps made)
    note: Callable[[str], None]
    stop: Callable[[], None]


_SILENT = _Terminal(lambda step, metrics: None, lambda step: None, lambda text: None, lambda: None)


def open_sink(run: Path, start: int, total: int, *, console: bool = True) -> Sink:
    """Open the logs of a run that has made `start` of `total` steps.

    ``history.jsonl`` takes one JSON object a line: step, time (seconds since 1970) and the metrics
    by name; NaN and infinities are the strings "nan", "inf", "-inf", which ``float`` reads. Records
    past `start`, left by a run that was killed after its last checkpoint, are cut off; TensorBoard
    hides its own. The terminal gets a progress bar, or plain lines where it is none.
    """
    run = Path(run)
    history = run / HISTORY
    if history.exists():
        _cut(history, start)
    file = history.open("a", encoding="utf-8")
    board = _open_board(run / LOGS, start)
    terminal = (_bar if _on_terminal() else _lines)(start, total) if console else _SILENT

    def log(step: int, metrics: Mapping[str, float]) -> None:
        record = {"step": step, "time": round(time.time(), 3)}
        record |= {name: x if math.isfinite(x) else str(x) for name, x in metrics.items()}
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        for name, x in metrics.items():
            # tensorboardX prints a warning for each other value; the history has them.
            if math.isfinite(x):
                board.add_scalar(name, x, step)
        terminal.show(step, metrics)

    def close() -> None:
        terminal.stop()
        file.close()
        board.close()

    return Sink(log, terminal.advance, terminal.note, close)


def read_history(run: Path | str) -> list[dict[str, Any]]:
    """The records of a run's history.jsonl, in order, with "nan", "inf" and "-inf" as floats."""
    records = []
    for line in (Path(run) / HISTORY).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        records.append({k: float(v) if isinstance(v, str) else v for k, v in record.items()})
    return records


def _cut(history: Path, start: int) -> None:
    kept = []
    for line in history.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            # The line that was being written when the process was killed.
            continue
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f"{history}: expected one record with its step a line, got {line[:80]!r}")
        if record["step"] <= start:
            kept.append(line + "\n")
    write_atomically(history, "".join(kept))


def _open_board(folder: Path, start: int) -> Any:
    from tensorboardX import SummaryWriter

    # A killed process loses these seconds of TensorBoard; the history is written at once.
    return SummaryWriter(logdir=str(folder), purge_step=start + 1 if start else None, flush_secs=5)


def _on_terminal() -> bool:
    from rich.console import Console

    return Console().is_terminal


def _figures(metrics: Mapping[str, float]) -> str:
    """The few metrics that fit on a line."""
    parts = []
    for name, form in (
        ("train/loss", "loss {:.4g}"),
        ("val/val_loss", "val_loss {:.4g}"),
        ("train/lr", "lr {:.2e}"),
        ("train/samples_per_second", "{:.0f} samples/s"),
    ):
        if name in metrics:
            parts.append(form.format(metrics[name]))
    return "  ".join(parts)


def _bar(start: int, total: int) -> _Terminal:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        # Drawn by the loop itself: no thread that could outlive it.
        auto_refresh=False,
    )
    progress.start()
    job = progress.add_task("", total=total, completed=start)
    shown: dict[str, float] = {}
    drawn = [0.0]

    def show(step: int, metrics: Mapping[str, float]) -> None:
        shown.update(metrics)
        progress.update(job, completed=step, description=_figures(shown), refresh=True)

    def advance(step: int) -> None:
        now = time.monotonic()
        if now - drawn[0] > 0.1:
            drawn[0] = now
            progress.update(job, completed=step, refresh=True)

    def note(text: str) -> None:
        progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    return _Terminal(show, advance, note, progress.stop)


def _lines(start: int, total: int) -> _Terminal:
    begun = time.monotonic()
    printed = [-math.inf]

    def show(step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        is_validation = any(name.startswith("val/") for name in metrics)
        if now - printed[0] < 5.0 and step < total and not is_validation:
            return
        printed[0] = now
        left = (now - begun) / max(step - start, 1) * (total - step)
        note(f"step {step}/{total}  {_figures(metrics)}  ETA {int(left) // 60}:{int(left) % 60:02d}")

    def note(text: str) -> None:
        # A pipe that nobody reads any more, or a full disk behind it, must not end a training.
        with suppress(OSError):
            print(text, file=sys.stdout, flush=True)

    return _Terminal(show, lambda step: None, note, lambda: None)
