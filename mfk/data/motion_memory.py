"""Motion in memory as a source to read from."""

from __future__ import annotations

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.data.motion import MotionInfo, MotionRows, MotionSource, clip_starts

_UNIT = 1e-3  # largest deviation of a quaternion's length from 1


def motion_source(
    name: str, info: MotionInfo, rows: MotionRows, edges: tuple[int, ...] | None = None
) -> MotionSource:
    """Any motion in memory as a source; what it reads are views, not to be written to.

    Args:
        name: for messages.
        info: what the rows are.
        rows: all of them.
        edges: 0, ..., number of rows, rising; None: the starts of the clips.

    Returns:
        A source whose `read` raises ValueError for a range outside the rows.

    Raises:
        ValueError: rows that are not what `info` says, a number that is not finite, a quaternion that is
            none of a rotation, or edges that do not rise from 0 to the number of rows.
        TypeError: tensors of another dtype.
    """
    total = clip_starts(info)[-1]
    bones = len(info.skeleton.bone_names)
    _check(f"{name}: frames", rows.frames, (total, bones, 7))
    length = rows.frames[..., 3:].norm(dim=-1)
    wrong = ((length - 1).abs() > _UNIT).nonzero()
    if len(wrong):
        row, bone = wrong[0].tolist()
        raise ValueError(
            f"{name}: frames: row {row}, bone {info.skeleton.bone_names[bone]!r}: "
            f"expected a unit quaternion, got the length {float(length[row, bone]):.4g}"
        )
    if rows.velocities is not None:
        _check(f"{name}: velocities", rows.velocities, (total, bones, 7))
    if (rows.labels is None) != (info.label_names is None):
        raise ValueError(f"{name}: labels: expected both the labels and their names, or neither")
    if rows.labels is not None and info.label_names is not None:
        _check(f"{name}: labels", rows.labels, (total, len(info.label_names)))
    if set(rows.splits) != set(info.splits):
        raise ValueError(f"{name}: splits: expected {sorted(info.splits)}, got {sorted(rows.splits)}")
    for split, column in rows.splits.items():
        if column.dtype != torch.bool or column.shape != (total,):
            raise ValueError(f"{name}: split {split!r}: expected [{total}] of bool, got {describe(column)}")
    if edges is None:
        edges = tuple(sorted(set(clip_starts(info))))
    elif not edges or edges[0] != 0 or edges[-1] != total or list(edges) != sorted(set(edges)):
        raise ValueError(f"{name}: edges: expected to rise from 0 to {total}, got {describe(edges)}")

    def read(first: int, end: int, lean: bool = False) -> MotionRows:
        if not 0 <= first <= end <= total:
            raise ValueError(f"{name}: expected 0 <= first <= end <= {total}, got {first} and {end}")
        return MotionRows(
            rows.frames[first:end],
            None if lean or rows.velocities is None else rows.velocities[first:end],
            None if rows.labels is None else rows.labels[first:end],
            {} if lean else {split: column[first:end] for split, column in rows.splits.items()},
        )

    return MotionSource(name, info, edges, read, rows.splits.__getitem__)


def _check(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        raise TypeError(f"{name}: expected a float32 tensor, got {describe(x)}")
    if x.shape != shape:
        raise ValueError(f"{name}: expected the shape {shape}, got {tuple(x.shape)}")
    wrong = (~x.isfinite()).nonzero()
    if len(wrong):
        raise ValueError(f"{name}: row {int(wrong[0, 0])}: expected finite numbers, got one that is not")
