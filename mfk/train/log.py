"""Where metrics go: history.jsonl, TensorBoard, trackers, and the terminal."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from mfk.core.files import write_atomically
from mfk.train.board import open_board
from mfk.train.runs import HISTORY, LOGS
from mfk.train.terminal import LogLevel, Note, open_terminal
from mfk.train.trackers import Tracker, check_trackers, open_tracker


class Sink(NamedTuple):
    """A place to report to; `close` it in any case."""

    log: Callable[[int, Mapping[str, float]], None]  # (steps made, metrics) -> written and flushed
    advance: Callable[[int], None]  # (steps made): moves the progress bar
    note: Note  # (text, level="info"): one line on the terminal, if it shows that level
    close: Callable[[], None]


def open_sink(
    run: Path,
    start: int,
    total: int,
    *,
    console: bool = True,
    level: LogLevel = "info",
    watched: str = "val_loss",
    trackers: Sequence[Tracker] = (),
    record: Mapping[str, Any] | None = None,
) -> Sink:
    """Open the logs of a run that has made `start` of `total` steps.

    ``history.jsonl`` takes one JSON object a line: step, time (seconds since 1970) and the metrics
    by name; NaN and infinities are the strings "nan", "inf", "-inf", which ``float`` reads. Records
    past `start`, left by a run that was killed after its last checkpoint, are cut off; TensorBoard
    hides its own. The terminal gets a progress bar, or plain lines where it is none; `level` thins out the
    terminal only. A tracker that fails is told of once and left out from then on.

    Args:
        run: the run's folder.
        start: steps made.
        total: steps of the whole run.
        console: report on the terminal at all.
        level: the least that the terminal shows, see `mfk.train.terminal.open_terminal`.
        watched: the validation metric that the terminal shows.
        trackers: further places for the metrics, see `mfk.train.trackers`.
        record: the run's settings, as plain data, for the trackers.

    Raises:
        ValueError: `level` or `trackers` is not known, a tracker's package is not installed, or the history
            holds a line that is no record.
    """
    run = Path(run)
    check_trackers(trackers)
    history = run / HISTORY
    if history.exists():
        _cut(history, start)
    with ExitStack() as stack:
        terminal = open_terminal(start, total, console=console, level=level, watched=watched)
        stack.callback(terminal.stop)
        file = stack.enter_context(history.open("ab", buffering=0))
        board = open_board(run / LOGS, start)
        stack.callback(board.close)
        tracks = []
        for name in trackers:
            tracker = open_tracker(name, run, start, record or {}, terminal.note)
            stack.callback(tracker.close)
            tracks.append(tracker.log)
        close = stack.pop_all().close

    def log(step: int, metrics: Mapping[str, float]) -> None:
        entry = {"step": step, "time": round(time.time(), 3)}
        entry |= {name: x if math.isfinite(x) else str(x) for name, x in metrics.items()}
        try:
            # Unbuffered: what a full disk refused must not be tried again, and fail again, at the end.
            _append(file, (json.dumps(entry, allow_nan=False) + "\n").encode())
            # TensorBoard draws no other value; the history has them.
            board.log(step, {name: x for name, x in metrics.items() if math.isfinite(x)})
        except OSError as error:
            raise OSError(
                f"{run}: cannot write its logs ({error.strerror}); the last checkpoint is intact"
            ) from error
        for track in tracks:
            track(step, metrics)
        terminal.show(step, metrics)

    return Sink(log, terminal.advance, terminal.note, close)


def silent_sink() -> Sink:
    """What a rank reports to that is not the first: nothing."""
    return Sink(lambda *_: None, lambda *_: None, lambda *_, **__: None, lambda: None)


def read_history(run: Path | str) -> list[dict[str, Any]]:
    """The records of a run's history.jsonl, in order, with "nan", "inf" and "-inf" as floats.

    Raises:
        FileNotFoundError: there is no history. ValueError: a line of it is no record.
    """
    history = Path(run) / HISTORY
    return [
        {name: _number(history, name, x) for name, x in record.items()} for record in history_records(history)
    ]


def history_records(history: Path) -> list[dict[str, Any]]:
    """The records of a history.jsonl as they are written; without a last line that was being written.

    Raises:
        FileNotFoundError: there is no history. ValueError: a line of it is no record.
    """
    # What follows the last newline was cut short by a kill.
    lines = history.read_bytes().split(b"\n")[:-1]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            got = line[:80].decode("utf-8", "replace")
            raise ValueError(
                f"{history}: expected one record with its step a line, got {got!r} in line {number}"
            )
        records.append(record)
    return records


def _number(history: Path, name: str, value: Any) -> Any:
    try:
        number = float(value)
        return number if isinstance(value, str) else value
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{history}: {name!r:.80}: expected a number, got {value!r:.80}") from None


def _cut(history: Path, start: int) -> None:
    kept = [json.dumps(record) + "\n" for record in history_records(history) if record["step"] <= start]
    write_atomically(history, "".join(kept))


def _append(file: FileIO, line: bytes) -> None:
    """All of the line or none of it: a disk that is nearly full takes a part, and says nothing."""
    before = file.seek(0, 2)
    if file.write(line) != len(line):
        file.truncate(before)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
