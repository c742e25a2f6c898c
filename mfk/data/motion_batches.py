"""Windows of motion in batches, streamed: no more of a file is in memory than a buffer of it.

A window is a start: `horizon` frames that a model sees, and the frames after them, which it predicts.
No window crosses the end of a clip, or of a split; what lies beyond is marked in "valid".
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Batch, Batches, describe
from mfk.data.loader import LoaderConfig, pinned
from mfk.data.motion import MotionRows, MotionSource
from mfk.data.motion_windows import Group, Segments, Windows, find_windows, gather_windows


@dataclass(frozen=True)
class WindowConfig:
    """Which windows of a clip are trained on."""

    stride: int = 1
    """Frames from the start of a window to the start of the next."""
    buffer_mb: int = 256
    """Megabytes of frames in memory, that rows are shuffled within; a file that is smaller is read once."""


def motion_batches(
    source: MotionSource,
    segments: Segments,
    *,
    horizon: int,
    ahead: int,
    batch_size: int,
    seed: int,
    config: WindowConfig | None = None,
    loader: LoaderConfig | None = None,
) -> Batches:
    """Batches of windows in an order that (seed, epoch) decides; every window comes once an epoch.

    An epoch takes runs of rows in random order, as many at a time as the buffer holds, and the windows that
    start in them in random order. ``start(k)`` reads nothing of the batches before batch k but the runs that
    batch k itself comes from.

    A batch holds "frames" [rows, horizon + ahead, bones, 7], "valid" [rows, horizon + ahead] (bool; False
    beyond the segment's end, where the last frame stands once more, not to be used), and "labels"
    [rows, horizon + ahead, L] where the file has them.

    Args:
        source: see `open_motion`.
        segments: see `split_segments`.
        horizon: frames that are seen.
        ahead: frames that are predicted, at least 1.
        batch_size: windows of a batch; the last of an epoch holds what is left.
        seed: decides the order.
        config: stride and buffer.
        loader: shuffling; one worker is a thread that gathers a batch ahead; page-locked memory.

    Raises:
        ValueError: no segment is long enough, or a setting is out of range.
    """
    config, loader = config or WindowConfig(), loader or LoaderConfig()
    for name, value in (("ahead", ahead), ("batch_size", batch_size), ("buffer_mb", config.buffer_mb)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an int >= 1, got {describe(value)}")
    if loader.num_workers not in (0, 1):
        raise ValueError(
            f"num_workers: expected 0, or 1, a thread that gathers a batch ahead, got {loader.num_workers!r}"
        )
    if loader.pin_memory and not torch.cuda.is_available():
        raise ValueError("pin_memory: page-locked memory needs CUDA, which is not there; leave it at False")
    rng.key(seed)
    windows = find_windows(segments, horizon, config.stride)
    length = horizon + ahead
    runs = _runs(source, windows, config.buffer_mb * 2**20)
    per_epoch = -(-len(windows.start) // batch_size)
    budget = max(1, config.buffer_mb * 2**20 // _row_bytes(source))
    kept: list[Group] = []

    def groups(epoch: int) -> list[list[int]]:
        """Runs of one epoch in the order that they come in, those together that are in memory together."""
        order = np.arange(len(runs))
        if loader.shuffle:
            generator = np.random.Generator(np.random.Philox(key=rng.key(seed, epoch, "runs")))
            order = generator.permutation(len(runs))
        found: list[list[int]] = [[]]
        size = 0
        for run in order.tolist():
            size += runs[run][1] - runs[run][0]
            if found[-1] and size > budget:
                found.append([])
                size = runs[run][1] - runs[run][0]
            found[-1].append(run)
        return found

    def load(members: Sequence[int]) -> Group:
        if kept:
            return kept[0]
        group = _load(source, windows, [runs[i] for i in members], length)
        if len(members) == len(runs):
            kept.append(group)
        return group

    def from_position(epoch: int, position: int) -> Iterator[tuple[Group, np.ndarray]]:
        """(rows in memory, windows in their order) from the epoch's window number `position` on."""
        for number, members in enumerate(groups(epoch)):
            count = sum(_starts_in(windows, runs[i]) for i in members)
            if position >= count:
                position -= count
                continue
            order = np.arange(count)
            if loader.shuffle:
                key = rng.key(seed, epoch, "windows", number)
                order = np.random.Generator(np.random.Philox(key=key)).permutation(count)
            yield load(members), order[position:]
            position = 0

    def start(step: int) -> Iterator[Batch]:
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step: expected an int >= 0, got {describe(step)}")
        batches = _batches(from_position, step, per_epoch, batch_size, length)
        batches = _ahead(batches) if loader.num_workers else batches
        return map(pinned, batches) if loader.pin_memory else batches

    return Batches(start, per_epoch)


def _batches(
    from_position: Callable[[int, int], Iterator[tuple[Group, np.ndarray]]],
    step: int,
    per_epoch: int,
    batch_size: int,
    length: int,
) -> Iterator[Batch]:
    first, at = divmod(step, per_epoch)
    for epoch in itertools.count(first):
        parts: list[Batch] = []
        missing = batch_size
        for group, order in from_position(epoch, at * batch_size):
            while len(order):
                parts.append(gather_windows(group, order[:missing], length))
                taken = min(missing, len(order))
                order, missing = order[taken:], missing - taken
                if missing == 0:
                    yield _joined(parts)
                    parts, missing = [], batch_size
        if parts:
            yield _joined(parts)
        at = 0


def _joined(parts: list[Batch]) -> Batch:
    return parts[0] if len(parts) == 1 else {n: torch.cat([part[n] for part in parts]) for n in parts[0]}


def _row_bytes(source: MotionSource) -> int:
    labels = source.info.label_names or ()
    return 4 * (7 * len(source.info.skeleton.bone_names) + len(labels))


def _runs(source: MotionSource, windows: Windows, buffer: int) -> list[tuple[int, int]]:
    """Ranges of rows between the source's edges, an eighth of the buffer each, that windows start in.

    The frames of a range's last windows lie in the next one and are read twice: longer ranges, less of that.
    """
    least = max(1, buffer // 8 // _row_bytes(source))
    found, first = [], source.edges[0]
    for edge in source.edges[1:]:
        if edge - first >= least or edge == source.edges[-1]:
            if _starts_in(windows, (first, edge)):
                found.append((first, edge))
            first = edge
    return found


def _starts_in(windows: Windows, run: tuple[int, int]) -> int:
    first, end = np.searchsorted(windows.start, run)
    return int(end - first)


def _load(source: MotionSource, windows: Windows, runs: Sequence[tuple[int, int]], length: int) -> Group:
    total = source.edges[-1]
    spans = [(first, min(end + length - 1, total)) for first, end in runs]
    frames: Tensor | None = None
    labels: Tensor | None = None
    starts, ends, at = [], [], 0
    for (first, end), (_, stop) in zip(runs, spans, strict=True):
        rows = source.read(first, stop, lean=True)
        if frames is None:
            # One allocation for all of them: joining them afterwards would take twice the memory.
            size = sum(b - a for a, b in spans)
            frames = rows.frames.new_empty((size, *rows.frames.shape[1:]))
            labels = None if rows.labels is None else rows.labels.new_empty((size, rows.labels.shape[1]))
        frames[at : at + stop - first] = rows.frames
        if labels is not None and rows.labels is not None:
            labels[at : at + stop - first] = rows.labels
        low, high = np.searchsorted(windows.start, (first, end))
        starts.append(windows.start[low:high] - first + at)
        ends.append(np.minimum(windows.end[low:high], stop) - first + at)
        at += stop - first
    assert frames is not None
    return Group(MotionRows(frames, None, labels, {}), np.concatenate(starts), np.concatenate(ends))


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the next one gathered by a thread meanwhile."""
    ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(item: tuple[Batch | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put((batch, None))
                if stop.is_set():
                    return
        except BaseException as error:  # it is raised where the batch is taken
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            assert batch is not None
            yield batch
    finally:
        stop.set()
        thread.join()
