"""TensorBoard's event file, written by this process alone: no thread, no queue, nothing left for exit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mfk.train.runs import LOGS

_FLUSH = 5.0  # s; what a killed process loses at most


class Board(NamedTuple):
    """An open event file."""

    log: Callable[[int, Mapping[str, float]], None]  # (steps made, finite metrics)
    close: Callable[[], None]


def open_board(folder: Path, start: int) -> Board:
    """A new event file in `folder` for a run that has made `start` steps; it hides later ones of older files.

    Raises:
        OSError: the file cannot be written, here or when something is logged.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import (  # made at run time, unseen by pyright
        Event,  # pyright: ignore[reportAttributeAccessIssue]
        SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
    )
    from tensorboardX.summary import scalar

    folder.mkdir(parents=True, exist_ok=True)
    # Two starts within a second would have one name.
    writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
    flushed = [time.monotonic()]
    if start:
        begins = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=time.time(), step=start + 1, session_log=begins))

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, x in metrics.items():
            writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, x)))
        if time.monotonic() - flushed[0] > _FLUSH:
            writer.flush()
            flushed[0] = time.monotonic()

    def close() -> None:
        # The history has all of it: a disk that is full by now must not hide the error that says so.
        with suppress(OSError):
            writer.close()
        # Which does not close the file where it cannot flush it.
        with suppress(OSError):
            writer._py_recordio_writer.close()

    return Board(log, close)


def add_image(run: Path, tag: str, step: int, png: bytes) -> None:
    """A picture, as PNG, in the TensorBoard logs of a run that has ended at `step`.

    Raises:
        OSError: the file cannot be written.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    picture = Summary.Image(encoded_image_string=png, colorspace=3, width=width, height=height)
    writer = EventsWriter(str(run / LOGS / "events"), f".{time.time_ns()}")
    summary = Summary(value=[Summary.Value(tag=tag, image=picture)])
    writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
    writer.close()
