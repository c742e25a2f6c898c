"""Recordings (.bvh) as stick figures: joints seen from the side that shows most, with texts and labels."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfk.core.files import read_json
from mfk.core.types import describe
from mfk.data.bvh import Positions, bvh_frames, read_bvh
from mfk.data.stick import (
    ACTIONS,
    FPS,
    UNIT,
    StickClip,
    check_width,
    five_segments,
    stick_frames,
    stick_physics,
)
from mfk.data.stick_actions import HIP_HEIGHT
from mfk.data.stick_augment import resample_stick

_CENTIMETRE = 0.01
_SAME = {"climb": "climbing"}  # names of recordings for documented actions
_COLUMNS = ("clip", "file", "skeleton", "action", "text")
# Points of 48 numbers -> joints of the map; the pelvis is the middle of the hips.
_JOINTS = {"neck": "neck", "head": "head", "chest": "chest"} | {
    f"{side}_{point}": f"{side[0]}_{joint}"
    for side in ("left", "right")
    for point, joint in (
        ("shoulder", "shoulder"),
        ("elbow", "elbow"),
        ("wrist", "hand"),
        ("hip", "hip"),
        ("knee", "knee"),
        ("ankle", "foot"),
    )
}
_LEAST_FPS, _FURTHEST = 1, 1e6  # units; squares of more, or their sums, no float32 could hold
_FAR, _NARROW = 1.5, 2.0  # how long a path is that has a direction, in units and in its own breadths


def stick_from_bvh(
    folder: str | os.PathLike[str],
    index_csv: str | os.PathLike[str],
    joint_map_json: str | os.PathLike[str],
    *,
    width: int = 20,
    clips: Sequence[str] | None = None,
    positions: Positions | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[StickClip]:
    """Recordings in centimetres, y up, as clips of 25 frames/s in figure units (0.68 m).

    Joints' places in the world are interpolated linearly in time and projected onto one vertical plane for
    the whole clip. Its horizontal axis is the main direction of the root's path on the ground, if that is 1.5
    units long or more and twice as long as broad: who walks is seen from the side and goes towards +x first.
    Else it is the way from the left to the right hip in the first frame: who stays is seen from behind. The
    root begins at x = 0, and the lowest place of an ankle is y = 0. A limb that turns out of the plane is
    seen shortened: that is no fault of the recording, though `check_stick` reports it.

    Args:
        folder: of the extracted archives; files lie in it as the index says.
        index_csv: a table with the columns clip, file, skeleton, action and text.
        joint_map_json: {"skeletons": {skeleton: {canonical joint: bone} or the name of another skeleton}}
            with the joints neck, head, chest and, after l_ and r_, shoulder, elbow, hand, hip, knee, foot.
        width: 20 or 48 numbers in a frame.
        clips: the clips to read, in that order; None: all of the index.
        positions: see `mfk.data.read_bvh`.
        progress: called after each clip with (clips done, clips, name of the clip).

    Returns:
        A clip each, with its text, label, physics and camera.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: no such table or map, an unknown clip, skeleton, bone or action, no text, or no such
            recording; names the file.
    """
    check_width("width", width)
    rows, skeletons = _index(Path(index_csv)), _skeletons(Path(joint_map_json))
    names = [*rows] if clips is None else list(clips)
    if isinstance(clips, str) or (unknown := [name for name in names if name not in rows]):
        got = clips if isinstance(clips, str) else unknown[0]
        raise ValueError(f"clips: expected names of the index ({', '.join([*rows][:4])}, ...), got {got!r}")
    found = []
    for done, name in enumerate(names, start=1):
        row = rows[name]
        joints = _bones(Path(joint_map_json), skeletons, row["skeleton"])
        found.append(_clip(_place(Path(index_csv), Path(folder), row), row, joints, width, positions))
        if progress is not None:
            progress(done, len(names), name)
    return found


def _place(index: Path, folder: Path, row: Mapping[str, str]) -> Path:
    """Where a recording lies, which is in the folder: an index is no way to have other files read."""
    name = row["file"]
    path = folder / name
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{index}: clip {row['clip']!r}: expected a file in {folder}, got {name!r:.200}")
    return path


def _clip(
    path: Path, row: Mapping[str, str], joints: Mapping[str, str], width: int, positions: Positions | None
) -> StickClip:
    bvh = read_bvh(path, positions=positions)
    place = {name: number for number, name in enumerate(bvh.header.bone_names)}
    if missing := sorted({*joints.values()} - {*place}):
        raise ValueError(f"{path}: expected a bone {missing[0]!r}, as skeleton {row['skeleton']!r} has it")
    world = bvh_frames(bvh, _CENTIMETRE)[..., :3].double() / UNIT
    if float(world.abs().amax()) > _FURTHEST or not bool(world.isfinite().all()):
        raise ValueError(
            f"{path}: expected places within {_FURTHEST:.0e} units, got {float(world.abs().amax()):.3g}"
        )
    points = {name: world[:, place[joints[joint]]] for name, joint in _JOINTS.items()}
    points["pelvis"] = (points["left_hip"] + points["right_hip"]) / 2
    axis = _axis(path, points)
    ground = min(float(points[f"{side}_ankle"][:, 1].min()) for side in ("left", "right"))
    start = float(points["pelvis"][0, [0, 2]] @ axis)
    flat = {
        name: torch.stack((point[:, [0, 2]] @ axis - start, point[:, 1] - ground), -1)
        for name, point in points.items()
    }
    recorded = stick_frames(flat, 48)
    if bvh.header.fps < _LEAST_FPS:
        # In between nothing is known, and the frames to be made of it are without number.
        raise ValueError(f"{path}: expected {_LEAST_FPS} frame/s or more, got {bvh.header.fps:.3g}")
    if math.floor((len(recorded) - 1) * FPS / bvh.header.fps + 1e-9) < 1:
        raise ValueError(f"{path}: expected two frames or more at {FPS} frames/s, got {len(recorded)}")
    motion = resample_stick(recorded, bvh.header.fps / FPS)
    hip = motion[:, 10]
    if width == 20:
        motion = five_segments(motion)
    action = _SAME.get(row["action"], row["action"])
    if action not in ACTIONS:
        raise ValueError(f"{path}: expected an action among ACTIONS, got {row['action']!r} in the index")
    camera = torch.stack((hip, torch.full_like(hip, HIP_HEIGHT), torch.ones_like(hip)), -1)
    kept = ("clip", "skeleton", "set", "licence", "action", "description")
    return StickClip(
        description=row["text"],
        motion=motion.float(),
        actions=torch.full((len(motion),), ACTIONS.index(action)),
        physics=stick_physics(motion).float(),
        camera=camera.float(),
        source=row.get("origin") or row["file"],
        meta={key: row[key] for key in kept if row.get(key)} | {"axis": axis.tolist()},
        environment_type="earth_normal",
    )


def _axis(path: Path, points: Mapping[str, Tensor]) -> Tensor:
    """The horizontal axis of the picture, a unit vector [2] of x and z in the world."""
    root = points["pelvis"][:, [0, 2]]
    apart = root - root.mean(0)
    main = torch.linalg.eigh(apart.T @ apart).eigenvectors[:, 1]
    along = (root - root[0]) @ main
    across = (root - root[0]) @ torch.stack((-main[1], main[0]))
    length, breadth = (float(x.max() - x.min()) for x in (along, across))
    if length >= max(_FAR, _NARROW * breadth):
        return main * along[along.abs().argmax()].sign()
    way = (points["right_hip"] - points["left_hip"])[0, [0, 2]]
    if float(way.norm()) < 1e-6:
        raise ValueError(f"{path}: expected hips beside each other in the first frame, got none so")
    return way / way.norm()


def _index(path: Path) -> dict[str, dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a table in UTF-8: {error}") from None
    if lacking := [name for name in _COLUMNS if name not in columns]:
        raise ValueError(
            f"{path}: expected the columns {', '.join(_COLUMNS)}, got none named {lacking[0]!r} "
            f"among {list(columns)}"
        )
    if not rows:
        raise ValueError(f"{path}: expected a row for each clip, got none")
    found: dict[str, dict[str, str]] = {}
    for line, row in enumerate(rows, start=2):
        if empty := [name for name in _COLUMNS if not row[name]]:
            raise ValueError(f"{path}: row {line}: expected something under {empty[0]!r}, got nothing")
        if row["clip"] in found:
            raise ValueError(f"{path}: row {line}: expected clips of other names, got {row['clip']!r} twice")
        found[row["clip"]] = row
    return found


def _skeletons(path: Path) -> dict[str, Any]:
    said = read_json(path)
    skeletons = said.get("skeletons") if isinstance(said, dict) else None
    if not isinstance(skeletons, dict):
        raise ValueError(f"{path}: expected an object with 'skeletons', got {describe(said)}")
    return skeletons


def _bones(path: Path, skeletons: Mapping[str, Any], name: str) -> dict[str, str]:
    """Canonical joint -> bone of a skeleton, which may be said to be like another."""
    seen = [name]
    while isinstance(joints := skeletons.get(seen[-1]), str):
        if joints in seen:
            raise ValueError(f"{path}: skeleton {name!r}: expected joints, got names in a circle: {seen}")
        seen.append(joints)
    if not isinstance(joints, dict):
        raise ValueError(f"{path}: expected a skeleton {seen[-1]!r}, got {', '.join(skeletons) or 'none'}")
    for joint in _JOINTS.values():
        if not isinstance(joints.get(joint), str):
            raise ValueError(f"{path}: skeleton {seen[-1]!r}: expected a bone for {joint!r}, got none")
    return joints
