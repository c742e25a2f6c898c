"""Which windows of motion there are, and the frames of some: none crosses a clip's end, or a split's."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Batch, describe
from mfk.data.motion import MotionRows, MotionSource, clip_starts


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


class Group(NamedTuple):
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


def held_out_clips(clips: int, share: float, seed: int) -> list[int]:
    """Numbers of the clips that are held out whole: round(share * clips) of them, at least one.

    Raises:
        ValueError: fewer than two clips, or none would be left.
    """
    if not isinstance(share, float) or not 0 < share < 1:
        raise ValueError(f"validation_share: expected a share between 0 and 1, got {describe(share)}")
    wanted = max(1, round(share * clips))
    if wanted >= clips:
        raise ValueError(
            f"validation_share: {share:g} of {clips} clip{'s' * (clips != 1)} leaves none for training; "
            "clips are held out whole"
        )
    generator = np.random.Generator(np.random.Philox(key=rng.key(seed, "held out clips")))
    return sorted(int(i) for i in generator.permutation(clips)[:wanted])


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
            parts.append(
                gather_windows(Group(rows, chosen.start - first, chosen.end - first), slice(None), length)
            )
            order.append(np.flatnonzero(here))
    back = torch.from_numpy(np.argsort(np.concatenate(order)))
    return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}


def gather_windows(group: Group, chosen: np.ndarray | slice, length: int) -> Batch:
    """The batch of the chosen windows, see `motion_batches`."""
    start, end = (torch.from_numpy(x[chosen]) for x in (group.start, group.end))
    index = start[:, None] + torch.arange(length)
    valid = index < end[:, None]
    flat = torch.minimum(index, end[:, None] - 1).flatten()

    def rows(x: Tensor) -> Tensor:
        return x.index_select(0, flat).unflatten(0, (-1, length))

    batch = {"frames": rows(group.rows.frames), "valid": valid}
    return batch if group.rows.labels is None else batch | {"labels": rows(group.rows.labels)}
