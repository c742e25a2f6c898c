"""The numbers of a motion file: checked, put into mfk's order and the file's, cut into pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.data.motion import MotionInfo, MotionRows
from mfk.data.motion_info import POSE

PIECE = 1 << 23  # bytes of frames that are written, and cheap to read, at once

_UNIT = 1e-2  # norms further from 1 are no rotations; in between they are left as they are
_FROM_FILE = (0, 1, 2, 6, 3, 4, 5)  # px py pz qx qy qz qw -> x y z, qw qx qy qz
_TO_FILE = (0, 1, 2, 4, 5, 6, 3)


def frame_velocities(frames: Tensor, fps: float) -> Tensor:
    """Differences of the frames of one clip: v[t] = (f[t] - f[t - 1]) fps, and v[0] = v[1].

    Quaternions are differenced component by component, as optiq does: their signs should be continuous.
    A clip of one frame has zeros.

    Args:
        frames: [T, bones, 7].
        fps: frames per second.

    Returns:
        [T, bones, 7], per second.

    Raises:
        ValueError: another shape, or no frame.
    """
    if frames.ndim != 3 or frames.shape[-1] != POSE or not len(frames):
        raise ValueError(f"frames: expected [T, bones, {POSE}] with T > 0, got {describe(frames)}")
    if len(frames) == 1:
        return torch.zeros_like(frames)
    steps = (frames[1:] - frames[:-1]) * fps
    return torch.cat((steps[:1], steps))


def from_file(numbers: Tensor) -> Tensor:
    """[n, 7 bones] as a file has them -> [n, bones, 7] as mfk has them; a copy."""
    return numbers.unflatten(-1, (-1, POSE))[..., _FROM_FILE]


def to_file(frames: Tensor) -> Tensor:
    """The inverse of `from_file`."""
    return frames[..., _TO_FILE].flatten(1)


class Shape(NamedTuple):
    """What every piece of a file has."""

    bone_names: tuple[str, ...]
    velocities: bool
    labels: int | None
    splits: tuple[str, ...]


def shape_of(info: MotionInfo, velocities: bool) -> Shape:
    """The shape of the rows that `info` speaks of."""
    labels = None if info.label_names is None else len(info.label_names)
    return Shape(info.skeleton.bone_names, velocities, labels, info.splits)


def check_rows(where: str, shape: Shape, rows: MotionRows, first: int) -> None:
    """Refuse rows, the first of which is number `first`, that are not what a file may hold.

    Raises:
        ValueError: another shape, a number that is not finite, or a quaternion whose norm is off 1 by more
            than 1e-2; names the row and the bone.
        TypeError: neither float32, nor bool for a split.
    """
    n, bones = len(rows.frames), len(shape.bone_names)
    _check(where, "frames", rows.frames, (n, bones, POSE))
    if (rows.velocities is not None) != shape.velocities or (rows.labels is None) != (shape.labels is None):
        found = [name for name in ("velocities", "labels") if getattr(rows, name) is not None]
        wanted = [name for name in ("velocities", "labels") if getattr(shape, name) not in (None, False)]
        raise ValueError(
            f"{where}: rows from {first}: expected {' and '.join(wanted) or 'nothing'} beside the frames, "
            f"got {' and '.join(found) or 'nothing'}"
        )
    if {*rows.splits} != {*shape.splits}:
        raise ValueError(
            f"{where}: rows from {first}: expected the splits {', '.join(shape.splits) or '(none)'}, "
            f"got {', '.join(rows.splits) or '(none)'}"
        )
    for name, values in (("frames", rows.frames), ("velocities", rows.velocities)):
        if values is not None:
            _check(where, name, values, (n, bones, POSE))
            _refuse(
                where, name, values, ~values.isfinite().all(-1), "finite numbers", shape.bone_names, first
            )
    norm = rows.frames[..., 3:].double().norm(dim=-1)
    off = (norm - 1).abs() > _UNIT
    _refuse(where, "frames", rows.frames[..., 3:], off, "a unit quaternion", shape.bone_names, first)
    if rows.labels is not None:
        _check(where, "labels", rows.labels, (n, shape.labels or 0))
        _refuse(where, "labels", rows.labels, ~rows.labels.isfinite().all(-1), "finite numbers", None, first)
    for name, flags in rows.splits.items():
        _check(where, f"split {name!r}", flags, (n,), torch.bool)


def cut_rows(rows: MotionRows, first: int, end: int) -> MotionRows:
    """Rows [first, end) of a piece; views."""
    return MotionRows(
        rows.frames[first:end],
        None if rows.velocities is None else rows.velocities[first:end],
        None if rows.labels is None else rows.labels[first:end],
        {name: flags[first:end] for name, flags in rows.splits.items()},
    )


def rows_per_piece(bones: int) -> int:
    """How many rows are written at once."""
    return max(1, PIECE // (4 * POSE * bones))


def checked_pieces(
    where: str, info: MotionInfo, shape: Shape, pieces: Iterable[MotionRows]
) -> Iterator[MotionRows]:
    """The same rows, checked against the clips, in pieces of `rows_per_piece`; the last may be shorter.

    A piece is good until the next: they share their memory, so that a long file does not scatter the heap.

    Raises:
        ValueError, TypeError: as `check_rows`, or for a piece that goes over a clip's end, rows missing
            or left.
    """
    total = sum(clip.frames for clip in info.clips)
    size = min(total, rows_per_piece(len(shape.bone_names)))
    piece = _empty(size, shape)
    ends = itertools.accumulate(clip.frames for clip in info.clips)
    clips = zip(info.clips, ends, strict=True)
    clip, end = next(clips)
    done = held = 0
    for rows in pieces:
        check_rows(where, shape, rows, done)
        if done == total:
            raise ValueError(f"{where}: expected {total} rows, as the clips have, got more")
        if done == end:
            clip, end = next(clips)
        count = len(rows.frames)
        if done + count > end:
            raise ValueError(
                f"{where}: clip {clip.name!r}: expected {end - done} rows from row {done} to the clip's end, "
                f"got {count}"
            )
        first = 0
        while first < count:
            taken = min(size - held, count - first)
            _put(piece, held, cut_rows(rows, first, first + taken))
            first, held = first + taken, held + taken
            if held == size:
                yield piece
                held = 0
        done += count
    if done != total:
        raise ValueError(
            f"{where}: expected {total} rows, as the clips have, got {done}: clip {clip.name!r} ends early"
        )
    if held:
        yield cut_rows(piece, 0, held)


def _empty(rows: int, shape: Shape) -> MotionRows:
    poses = (rows, len(shape.bone_names), POSE)
    return MotionRows(
        torch.empty(poses),
        torch.empty(poses) if shape.velocities else None,
        None if shape.labels is None else torch.empty(rows, shape.labels),
        {name: torch.empty(rows, dtype=torch.bool) for name in shape.splits},
    )


def _put(piece: MotionRows, first: int, rows: MotionRows) -> None:
    """Write rows into a piece, which has the same columns."""
    columns = [(piece.frames, rows.frames), (piece.velocities, rows.velocities), (piece.labels, rows.labels)]
    columns += [(flags, rows.splits[name]) for name, flags in piece.splits.items()]
    for to, values in columns:
        if to is not None and values is not None:
            to[first : first + len(values)] = values


def _check(
    where: str, name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{where}: {name}: expected shape {shape}, got {describe(value)}")
    if value.dtype != dtype:
        raise TypeError(f"{where}: {name}: expected {dtype}, got {value.dtype}")


def _refuse(
    where: str, name: str, values: Tensor, bad: Tensor, what: str, bones: tuple[str, ...] | None, first: int
) -> None:
    """Raise with the first row, and bone, in which `bad` holds."""
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        of = f" bone {bones[place[1]]!r}:" if bones else ""
        shown = ", ".join(f"{x:.6g}" for x in values[tuple(place)].tolist()[:8])
        raise ValueError(f"{where}: {name}: row {first + place[0]}:{of} expected {what}, got {shown}")
