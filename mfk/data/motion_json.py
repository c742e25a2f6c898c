"""Motion of one clip as JSON, as optiq takes it: for each bone a list of positions and quaternions."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfk.core.files import read_json
from mfk.core.types import describe
from mfk.data.motion import MotionInfo, MotionRows, MotionSource
from mfk.data.motion_info import POSE, Columns, Given, parse_info
from mfk.data.motion_rows import Shape, check_rows, cut_rows, from_file, shape_of, to_file

_KEYS = ("fps", "bone_names", "bones", "metadata")
_PARTS = {"position": 3, "quaternion": 4}  # x y z, and qx qy qz qw


def open_json(path: Path, given: Given) -> MotionSource:
    """See `mfk.data.motion_files.open_motion`; the numbers are rounded to float32, and kept in memory."""
    said = read_json(path)
    if not isinstance(said, dict) or not isinstance(said.get("bones"), dict) or {*said} - {*_KEYS}:
        raise ValueError(f"{path}: expected an object with {', '.join(_KEYS)}, got {describe(said)}")
    bones: dict[str, Any] = said["bones"]
    rows = next((len(poses) for poses in bones.values() if isinstance(poses, list)), 0)
    info = parse_info(path, said, rows, path.stem, Columns(False, None, ()), given)
    if {*bones} != {*info.skeleton.bone_names}:
        wrong = sorted({*bones} ^ {*info.skeleton.bone_names})[0]
        raise ValueError(
            f"{path}: bones: expected the bones of bone_names, got {wrong!r} in one of them only"
        )
    numbers = torch.stack([_bone(path, name, bones[name], rows) for name in info.skeleton.bone_names], 1)
    whole = MotionRows(from_file(numbers.flatten(1)), None, None, {})
    check_rows(str(path), shape_of(info, False), whole, 0)
    return MotionSource(
        str(path), info, (0, rows), functools.partial(_read, path, whole), functools.partial(_split, path)
    )


def write_json(
    part: Path, said: Mapping[str, Any], info: MotionInfo, shape: Shape, pieces: Iterable[MotionRows]
) -> None:
    """See `mfk.data.motion_files.write_motion`.

    Raises:
        ValueError: more than one clip, velocities, labels or splits, for which there is no place.
    """
    if len(info.clips) > 1 or shape.velocities or shape.labels is not None or shape.splits:
        raise ValueError(
            "info: expected one clip without velocities, labels and splits, as JSON holds, got "
            f"{len(info.clips)} clips, velocities {shape.velocities}, labels {shape.labels is not None} and "
            f"{len(shape.splits)} splits"
        )
    frames = torch.cat([to_file(rows.frames) for rows in pieces]).unflatten(1, (-1, POSE))
    bones = {
        name: [{"position": pose[:3], "quaternion": pose[3:]} for pose in frames[:, bone].tolist()]
        for bone, name in enumerate(shape.bone_names)
    }
    kept = {key: said[key] for key in ("fps", "bone_names", "metadata")} | {"bones": bones}
    part.write_text(json.dumps(kept, allow_nan=False), encoding="utf-8")


def _bone(path: Path, name: str, poses: object, rows: int) -> Tensor:
    """[rows, 7], float32, in the order of files."""
    where = f"{path}: bone {name!r}"
    if not isinstance(poses, list) or len(poses) != rows:
        raise ValueError(f"{where}: expected a list of {rows} poses, got {describe(poses)}")
    numbers: list[list[float]] = []
    for row, pose in enumerate(poses):
        parts = [pose.get(key) for key in _PARTS] if isinstance(pose, dict) and {*pose} == {*_PARTS} else []
        flat = [x for part in parts if isinstance(part, list) for x in part]
        fits = [isinstance(p, list) and len(p) == n for p, n in zip(parts, _PARTS.values(), strict=False)]
        if not fits or not all(fits) or not all(type(x) in (int, float) for x in flat):
            wanted = "a position of 3 numbers and a quaternion of 4"
            raise ValueError(f"{where}: row {row}: expected {wanted}, got {describe(pose)}")
        numbers.append(flat)
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused with the rest
            return torch.from_numpy(np.array(numbers, np.float64).astype(np.float32))
    except OverflowError:
        raise ValueError(
            f"{where}: expected numbers that float32 can hold, got one of hundreds of digits"
        ) from None


def _split(path: Path, name: str) -> Tensor:
    raise ValueError(f"{path}: there is no split {name!r}; a JSON file has none")


def _read(path: Path, whole: MotionRows, first: int, end: int, lean: bool = False) -> MotionRows:
    if not 0 <= first < end <= len(whole.frames):
        raise ValueError(f"{path}: expected rows within [0, {len(whole.frames)}), got [{first}, {end})")
    rows = cut_rows(whole, first, end)
    return rows._replace(frames=rows.frames.clone())
