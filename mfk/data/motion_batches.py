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
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Batch, Batches, describe
from mfk.data.loader import LoaderConfig, pinned
from mfk.data.motion import MotionInfo, MotionRows, MotionSource, clip_starts


@dataclass(frozen=True)
class WindowConfig:
    """Which windows of a clip are trained on."""

    stride: int = 1
    """Frames from the start of a window to the start of the next."""
    buffer_mb: int = 256
    """Megabytes of frames in memory, that rows are shuffled within; a file that is smaller is read once."""


class Segments(NamedTuple):
    """Runs of rows that windows stay within."""

    first: np.ndarray  # [n], int64: first row
    end: np.ndarray  # [n], int64: the row after the last
    clip: np.ndarray  # [n], int64: which of the file's clips it belongs to


class Windows(NamedTuple):
    """Windows by where they start, in rising order."""

    start: np.ndarray  # [n], int64: row of the first frame
    end: np.ndarray  # [n], int64: the row after the last one of the segment
    clip: np.ndarray  # [n], int64


class _Group(NamedTuple):
    """Rows in memory, and the windows that start in them."""

    rows: MotionRows
    start: np.ndarray  # [n], positions in `rows`
    end: np.ndarray


def split_segments(source: MotionSource, split: str | None) -> Segments:
    """The runs of rows of a split, or of all rows for None; each lies within one clip.

    Raises:
        ValueError: the file has no such split, or no row is in it.
    """
    edges = np.asarray(clip_starts(source.info), np.int64)
    if split is None:
        found = Segments(edges[:-1], edges[1:], np.arange(len(edges) - 1))
    else:
        if split not in source.info.splits:
            raise ValueError(
                f"{source.name}: there is no split {split!r}; it has {list(source.info.splits) or 'none'}"
            )
        inside = source.split(split).numpy()
        changes = np.flatnonzero(np.diff(inside)) + 1
        borders = np.unique(np.concatenate((edges, changes)))
        first, end = borders[:-1], borders[1:]
        chosen = inside[np.minimum(first, len(inside) - 1)] & (end > first)
        first, end = first[chosen], end[chosen]
        found = Segments(first, end, np.searchsorted(edges, first, side="right") - 1)
    kept = found.end > found.first
    found = Segments(*(x[kept] for x in found))
    if len(found.first) == 0:
        raise ValueError(f"{source.name}: the split {split!r} is empty")
    return found


def held_out_clips(info: MotionInfo, share: float, seed: int) -> list[int]:
    """Numbers of the clips that are held out whole, round(share * clips) of them and at least one.

    Raises:
        ValueError: fewer than two clips, or none would be left.
    """
    count = len(info.clips)
    if not isinstance(share, float) or not 0 < share < 1:
        raise ValueError(f"validation_share: expected a share between 0 and 1, got {describe(share)}")
    wanted = max(1, round(share * count))
    if wanted >= count:
        raise ValueError(
            f"validation_share: expected at least two clips, to hold one out whole, got {count}; "
            "give the file a split"
        )
    generator = np.random.Generator(np.random.Philox(key=rng.key(seed, "held out clips")))
    return sorted(int(i) for i in generator.permutation(count)[:wanted])


def find_windows(segments: Segments, horizon: int, stride: int) -> Windows:
    """Every `stride`-th window of `horizon` frames that has at least one frame after it, in every segment.

    Raises:
        ValueError: no segment is that long; a number below 1.
    """
    for name, value in (("horizon", horizon), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an int >= 1, got {describe(value)}")
    # The last start leaves one frame to be predicted.
    counts = np.maximum(0, (segments.end - segments.first - horizon - 1) // stride + 1)
    which = np.repeat(np.arange(len(counts)), counts)
    if len(which) == 0:
        longest = int((segments.end - segments.first).max())
        raise ValueError(
            f"horizon: windows of {horizon} frames and one to predict need {horizon + 1} frames, "
            f"the longest clip has {longest}"
        )
    number = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = segments.first[which] + number * stride
    return Windows(start, segments.end[which], segments.clip[which])


def read_windows(source: MotionSource, windows: Windows, length: int) -> Batch:
    """The frames of a few windows: see `motion_batches`; the file is read once from end to end."""
    if not len(windows.start):
        raise ValueError("windows: expected at least one, got none")
    parts: list[Batch] = []
    order: list[np.ndarray] = []
    for first, end in itertools.pairwise(source.edges):
        here = (windows.start >= first) & (windows.start < end)
        if here.any():
            chosen = Windows(*(x[here] for x in windows))
            rows = source.read(first, min(int(chosen.start.max()) + length, source.edges[-1]), lean=True)
            parts.append(_gather(_Group(rows, chosen.start - first, chosen.end - first), slice(None), length))
            order.append(np.flatnonzero(here))
    back = torch.from_numpy(np.argsort(np.concatenate(order)))
    return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}


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
    kept: list[_Group] = []

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

    def load(members: Sequence[int]) -> _Group:
        if kept:
            return kept[0]
        group = _load(source, windows, [runs[i] for i in members], length)
        if len(members) == len(runs):
            kept.append(group)
        return group

    def from_position(epoch: int, position: int) -> Iterator[tuple[_Group, np.ndarray]]:
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
    from_position: Callable[[int, int], Iterator[tuple[_Group, np.ndarray]]],
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
                parts.append(_gather(group, order[:missing], length))
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


def _gather(group: _Group, chosen: np.ndarray | slice, length: int) -> Batch:
    start, end = (torch.from_numpy(x[chosen]) for x in (group.start, group.end))
    index = start[:, None] + torch.arange(length)
    valid = index < end[:, None]
    flat = torch.minimum(index, end[:, None] - 1).flatten()

    def rows(x: Tensor) -> Tensor:
        return x.index_select(0, flat).unflatten(0, (-1, length))

    batch = {"frames": rows(group.rows.frames), "valid": valid}
    return batch if group.rows.labels is None else batch | {"labels": rows(group.rows.labels)}


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


def _load(source: MotionSource, windows: Windows, runs: Sequence[tuple[int, int]], length: int) -> _Group:
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
    return _Group(MotionRows(frames, None, labels, {}), np.concatenate(starts), np.concatenate(ends))


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
