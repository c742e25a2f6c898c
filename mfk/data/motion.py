"""What a motion file holds, whatever its format: frames of bones, in clips, with labels and splits.

Files store a bone as px py pz qx qy qz qw (the schema of optiq); inside mfk it is x y z, qw qx qy qz, as
every pose is. A source is read by ranges of rows, so that a file need not fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

Space: TypeAlias = Literal["world", "local"]
Up: TypeAlias = Literal["x", "y", "z"]


class Skeleton(NamedTuple):
    """The bones that every frame of a file has."""

    bone_names: tuple[str, ...]
    parents: tuple[int, ...] | None  # index of each bone's parent, -1 of the first, the root; None: not known
    space: Space | None  # poses are in the world's frame, or in the parent bone's; None: it does not say
    up: Up | None  # the world's axis that points up; None: the file does not say


class Clip(NamedTuple):
    """One recording: rows of a file that follow each other in time."""

    name: str
    frames: int
    action: str | None = None


class MotionInfo(NamedTuple):
    """What a file says about its rows."""

    fps: float  # frames per second
    skeleton: Skeleton
    clips: tuple[Clip, ...]  # in the order of the rows, of which they hold all
    label_names: tuple[str, ...] | None  # of the labels' columns; None: no labels
    splits: tuple[str, ...]  # names of the split columns
    metadata: Mapping[str, Any]  # whatever else stands in the file's own "metadata"


class MotionRows(NamedTuple):
    """Consecutive rows of a file."""

    frames: Tensor  # [n, bones, 7], float32: x y z [m], qw qx qy qz
    velocities: Tensor | None  # [n, bones, 7], float32, per second: (f[t] - f[t - 1]) fps, in the same order
    labels: Tensor | None  # [n, L], float32
    splits: Mapping[str, Tensor]  # name -> [n], bool


class MotionSource(NamedTuple):
    """A file, or generated motion, to read from."""

    name: str  # for messages: the file's path
    info: MotionInfo
    edges: tuple[int, ...]  # 0, ..., number of rows: ranges that are cheap to read at once, row groups say
    # (first row, end, lean=False), checked: shapes, finite, unit quaternions; lean: no velocities, no splits
    read: Callable[..., MotionRows]
    split: Callable[[str], Tensor]  # (name) -> [rows], bool, of one of `info.splits`


def clip_starts(info: MotionInfo) -> list[int]:
    """The first row of each clip, and the number of all rows at the end."""
    starts = [0]
    for clip in info.clips:
        starts.append(starts[-1] + clip.frames)
    return starts
