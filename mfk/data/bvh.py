"""Motion in Biovision's text format (.bvh): a hierarchy of bones, then one line of numbers for each frame."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mfk.data.bvh_text import BvhHeader, open_lines, parse_header, parse_numbers
from mfk.kinematics import quaternion_canonical, quaternion_multiply, quaternion_rotate

Positions: TypeAlias = Literal["add", "replace"]


class Bvh(NamedTuple):
    """A file's motion: each bone in its parent's frame, the root in the world's."""

    header: BvhHeader
    translations: Tensor  # [T, bones, 3], float64, in the file's unit
    rotations: Tensor  # [T, bones, 4], float64: unit quaternions, w x y z


def read_bvh_header(path: str | os.PathLike[str]) -> BvhHeader:
    """The skeleton, number of frames and frame rate of a file, whose frames are not read.

    A frame time within 1e-4 (relative) of 1 / N is taken as N frames per second: files give it with few
    digits.

    Raises:
        OSError: the file cannot be opened.
        ValueError: text that is no BVH: no or two roots, equal names, unknown or repeated channels, braces or
            numbers missing, a frame time that is not positive. It names the file and the line.
    """
    return parse_header(Path(path), open_lines(Path(path)))


def read_bvh(path: str | os.PathLike[str], *, positions: Positions | None = None) -> Bvh:
    """Read a file.

    Rotation channels turn in the order in which they are listed, R = R_1 R_2 R_3, in degrees; whatever the
    order of a bone's channels, it is moved before it is turned. End sites are no bones. A bone's translation
    is its OFFSET plus its position channels, if it has any.

    That sum is what Biovision's format says; programs that write the OFFSET into the position channels too
    mean the channels alone. For the root the sum is taken unless `positions` says otherwise. For another bone
    with position channels, both readings are about equally common: where they differ, `positions` must say.

    Args:
        path: the file.
        positions: "add" adds position channels to the OFFSET, "replace" puts them, axis by axis, in its
            place.

    Raises:
        OSError, ValueError: as `read_bvh_header`, or for frames that are fewer or more than announced, or
            have other than one finite number for each channel; or `positions` is needed.
    """
    if positions not in (None, "add", "replace"):
        raise ValueError(f"positions: expected add, replace or None, got {positions!r}")
    path = Path(path)
    lines = open_lines(path)
    header = parse_header(path, lines)
    numbers = parse_numbers(path, lines, header)
    translations = header.offsets.repeat(header.frames, 1, 1)
    rotations = torch.zeros(header.frames, len(header.bone_names), 4, dtype=torch.float64)
    rotations[..., 0] = 1.0
    column = 0
    for bone, channels in enumerate(header.channels):
        for channel in channels:
            axis, value = "XYZ".index(channel[0]), numbers[:, column]
            column += 1
            if channel.endswith("rotation"):
                half = torch.deg2rad(value) / 2
                turn = torch.zeros(header.frames, 4, dtype=torch.float64)
                turn[:, 0], turn[:, 1 + axis] = half.cos(), half.sin()
                rotations[:, bone] = quaternion_multiply(rotations[:, bone], turn)
                continue
            if positions is None and bone and header.offsets[bone, axis] != 0:
                raise ValueError(
                    f"{path}: bone {header.bone_names[bone]!r} has both an OFFSET and {channel}; whether "
                    "they add up, the program that wrote the file decides: expected positions add or replace"
                )
            if positions == "replace":
                translations[:, bone, axis] = value
            else:
                translations[:, bone, axis] += value
    return Bvh(header, translations, rotations)


def bvh_frames(bvh: Bvh, metres_per_unit: float) -> Tensor:
    """Poses of all bones in the world's frame, [T, bones, 7] float32: x y z [m], qw qx qy qz.

    Down the hierarchy, p = p_parent + R(q_parent) t and q = q_parent q_local, in float64, rounded at the end.
    A bone's first quaternion has qw >= 0, each later one the sign that is nearer to the one before it.

    Args:
        bvh: the motion.
        metres_per_unit: 0.01 for centimetres. The format does not say.

    Raises:
        ValueError: `metres_per_unit` is not a finite positive number.
    """
    if not (math.isfinite(metres_per_unit) and metres_per_unit > 0):
        raise ValueError(f"metres_per_unit: expected a positive number, got {metres_per_unit!r}")
    position, turned = list(bvh.translations.unbind(1)), list(bvh.rotations.unbind(1))
    for bone, parent in enumerate(bvh.header.parents):
        if parent >= 0:
            position[bone] = position[parent] + quaternion_rotate(turned[parent], position[bone])
            turned[bone] = quaternion_multiply(turned[parent], turned[bone])
    q = torch.stack(turned, 1)
    q[:1] = quaternion_canonical(q[:1])
    flips = (q[1:] * q[:-1]).sum(-1, keepdim=True) < 0
    q[1:] *= 1.0 - 2.0 * (flips.cumsum(0) % 2)
    return torch.cat((torch.stack(position, 1) * metres_per_unit, q), -1).float()
