"""From frames of bones to the numbers that a motion model sees, and back.

A window of frames is seen from its first one: the world's origin lies below the root bone, and the root faces
forward, so that where a motion happens, and which way it goes, make no difference to a model. Bones are seen
from the root. Nothing here looks at a later frame than the first, so that a causal model stays causal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.data.motion import Skeleton, Space, Up
from mfk.kinematics import (
    align_signs,
    bone_offsets,
    quaternion_conjugate,
    quaternion_multiply,
    quaternion_normalize,
    quaternion_rotate,
    world_from_local,
    world_from_rotations,
    yaw,
)


@dataclass(frozen=True)
class FeatureConfig:
    """What a model sees of a frame."""

    features: Literal["relative", "raw"] = "relative"
    """relative: bones as seen from the root, and it from where the window begins; raw: the file's numbers."""
    space: Space | None = None
    """For files that do not say: bones are given in the world's frame, or local, in their parent's."""
    up: Up | None = None
    """For files that do not say: the world's axis that points up."""
    rigid: bool = True
    """In rollouts bones keep the lengths of the last true frame; in files with `parents`, or local bones."""


class Frames(NamedTuple):
    """How a file's frames are to be read: static, nothing of it is a tensor."""

    bones: int
    parents: tuple[int, ...] | None
    space: Space | None
    up: int | None  # axis
    relative: bool
    rigid: bool


class Anchor(NamedTuple):
    """Where a window begins."""

    position: Tensor  # [..., 3], m: the point below the root
    heading: Tensor  # [..., 4]: the root's turn about the vertical


def read_as(skeleton: Skeleton, config: FeatureConfig, name: str) -> Frames:
    """How frames of `skeleton` are read; `name` is the file's, for messages.

    Raises:
        ValueError: the features need to know what the file does not say.
    """
    if config.features not in ("relative", "raw"):
        raise ValueError(f"features: expected relative or raw, got {config.features!r}")
    relative = config.features == "relative"
    for field, choices in (("space", "world or local"), ("up", "x, y or z")):
        if relative and getattr(skeleton, field) is None:
            raise ValueError(
                f"{name}: the file does not say its {field!r}, which relative features need: give "
                f"--{field} ({choices}), or --features raw"
            )
    return Frames(
        len(skeleton.bone_names),
        skeleton.parents,
        skeleton.space,
        None if skeleton.up is None else "xyz".index(skeleton.up),
        relative,
        config.rigid and (skeleton.space == "local" or skeleton.parents is not None),
    )


def mirror_pairs(bone_names: Sequence[str], name: str) -> tuple[int, ...]:
    """Where each bone goes in a mirror: to the one of the other side by name, left and right, or l and r.

    Raises:
        ValueError: no bone has one; `name` is the file's.
    """
    pairs = tuple(
        next((i for i, other in enumerate(bone_names) if other in _other_sides(bone)), k)
        for k, bone in enumerate(bone_names)
    )
    if pairs == tuple(range(len(pairs))):
        raise ValueError(
            f"mirror: {name}: expected bones named by their sides (LeftFoot and RightFoot, lfoot and rfoot, "
            f"foot_l and foot_r), got {describe(list(bone_names[:6]))}"
        )
    return pairs


def mirrored(how: Frames, frames: Tensor, pairs: Sequence[int]) -> Tensor:
    """World frames [..., bones, 7] in a vertical mirror, bones of the two sides exchanged.

    With x -> -x a rotation (w, x, y, z) becomes (w, x, -y, -z); with the mirror across y or z alike. It is
    the same motion of a body that is alike on both sides, whose bones at rest are not turned, as in BVH.
    """
    axis = 0 if how.up != 0 else 1
    signs = frames.new_ones(7)
    signs[axis] = -1
    signs[3:] = torch.tensor([1.0, *(1.0 if k == axis else -1.0 for k in range(3))])
    return frames[..., list(pairs), :] * signs


def _other_sides(name: str) -> set[str]:
    """What the bone on the other side may be called."""
    found = {
        re.sub(f"{a}|{b}", lambda m, a=a, b=b: b if m[0] == a else a, name)
        for a, b in (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT"))
    }
    for a, b in ("lr", "rl", "LR", "RL"):
        if name[:1] == a:
            found.add(b + name[1:])
        if name[-2:-1] in ("_", ".") and name[-1] == a:
            found.add(name[:-1] + b)
    return found - {name}


def to_features(how: Frames, frames: Tensor, reference: Tensor) -> tuple[Tensor, Anchor | None]:
    """Features of windows, and where they begin.

    Args:
        how: see `read_as`.
        frames: [..., T, bones, 7], x y z [m], qw qx qy qz.
        reference: [bones, 4], the sign of each window's first quaternions is the one nearer to it.

    Returns:
        [..., T, 7 bones]: of each bone x y z [m], qw qx qy qz, sign-continuous along T.
    """
    if frames.ndim < 3 or frames.shape[-2:] != (how.bones, 7):
        raise ValueError(f"frames: expected the shape [..., T, {how.bones}, 7], got {describe(frames)}")
    position, rotation = frames[..., :3], frames[..., 3:]
    anchor = None
    if how.relative:
        assert how.up is not None
        ground = torch.ones(3, dtype=frames.dtype, device=frames.device)
        ground[how.up] = 0.0
        root = position[..., 0, :]
        anchor = Anchor(root[..., 0, :] * ground, yaw(rotation[..., 0, 0, :], how.up))
        back = quaternion_conjugate(anchor.heading)[..., None, None, :]
        moved = root - anchor.position[..., None, :]
        if how.space == "world":
            seen = torch.cat((moved[..., None, :], position[..., 1:, :] - position[..., :1, :]), -2)
            position = quaternion_rotate(back.expand_as(rotation), seen)
            rotation = quaternion_multiply(back.expand_as(rotation), rotation)
        else:
            back = back[..., 0, :].expand_as(rotation[..., 0, :])
            position = torch.cat((quaternion_rotate(back, moved)[..., None, :], position[..., 1:, :]), -2)
            turned = quaternion_multiply(back, rotation[..., 0, :])
            rotation = torch.cat((turned[..., None, :], rotation[..., 1:, :]), -2)
    rotation = align_signs(rotation, reference)
    return torch.cat((position, rotation), -1).flatten(-2), anchor


def from_features(how: Frames, features: Tensor, anchor: Anchor | None) -> Tensor:
    """Frames [..., T, bones, 7] of features [..., T, 7 bones]; their quaternions are normalised."""
    bones = features.unflatten(-1, (how.bones, 7))
    position, rotation = bones[..., :3], quaternion_normalize(bones[..., 3:])
    if anchor is None:
        return torch.cat((position, rotation), -1)
    heading = anchor.heading[..., None, None, :]
    if how.space == "world":
        heading = heading.expand_as(rotation)
        position = quaternion_rotate(heading, position)
        rotation = quaternion_multiply(heading, rotation)
        root = position[..., :1, :] + anchor.position[..., None, None, :]
        position = torch.cat((root, root + position[..., 1:, :]), -2)
    else:
        heading = heading[..., 0, :].expand_as(rotation[..., 0, :])
        root = quaternion_rotate(heading, position[..., 0, :]) + anchor.position[..., None, :]
        turned = quaternion_multiply(heading, rotation[..., 0, :])
        position = torch.cat((root[..., None, :], position[..., 1:, :]), -2)
        rotation = torch.cat((turned[..., None, :], rotation[..., 1:, :]), -2)
    return torch.cat((position, rotation), -1)


def keep_lengths(how: Frames, frames: Tensor, last: Tensor) -> Tensor:
    """`frames` [..., bones, 7] with the bones' offsets of the true frame `last`, positions rebuilt by FK."""
    if not how.rigid:
        return frames
    if how.space == "local":
        return torch.cat((frames[..., :1, :], torch.cat((last[..., 1:, :3], frames[..., 1:, 3:]), -1)), -2)
    assert how.parents is not None
    offsets = bone_offsets(last, how.parents)
    return world_from_rotations(frames[..., 0, :3], frames[..., 3:], offsets, how.parents)


def world_positions(how: Frames, frames: Tensor) -> Tensor:
    """Positions of the bones in the world, [..., bones, 3] in m, of frames [..., bones, 7]."""
    if how.space == "local":
        if how.parents is None:
            raise ValueError("parents: positions of local bones need the parents of the skeleton")
        return world_from_local(frames, how.parents)[..., :3]
    return frames[..., :3]


def joint_rotations(how: Frames, frames: Tensor) -> Tensor:
    """Rotations of the bones in their parents [..., bones, 4]; as they are where parents are not known."""
    rotation = frames[..., 3:]
    if how.space == "local" or how.parents is None:
        return rotation
    parent = list(how.parents[1:])
    above = quaternion_conjugate(rotation[..., parent, :])
    below = quaternion_multiply(above, rotation[..., 1:, :])
    return torch.cat((rotation[..., :1, :], below), -2)
