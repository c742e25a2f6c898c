"""Frames of a figure from the six points of a pose: of 20 numbers as it is, of 48 with elbows and knees."""

from __future__ import annotations

import torch
from torch import Tensor

from mfk.data.stick import check_width, stick_frames, stick_points
from mfk.data.stick_actions import POINTS

# Units, at scale 1, of the figure of 48 numbers.
_HEAD, _CHEST, _SHOULDER, _DROP, _PELVIS = 0.5, 0.45, 0.15, 0.1, 0.1
_ARM, _LEG = 0.43, 0.775  # of each of the two bones


def pose_frames(points: Tensor, width: int) -> Tensor:
    """Frames of a pose at scale 1 that faces +x.

    In frames of 48 all twelve bones keep their lengths: knees bend forwards, elbows hang below raised arms.
    Where a hand or foot of the pose is out of reach, the limb is stretched towards it.

    Args:
        points: [..., 6, 2] in the order of `mfk.data.stick_actions.POINTS`.
        width: 20 or 48.

    Returns:
        [..., width].

    Raises:
        ValueError: another width.
    """
    check_width("width", width)
    given = {name: points[..., place, :] for place, name in enumerate(POINTS)}
    if width == 20:
        return stick_frames(given, 20)
    neck, pelvis = given["neck"], given["hip"]
    up = neck - pelvis
    up = up / up.norm(dim=-1, keepdim=True)
    out = torch.stack((up[..., 1], -up[..., 0]), -1)
    found = {
        "neck": neck,
        "head": neck + _HEAD * up,
        "chest": neck - _CHEST * up,
        "left_hip": pelvis - _PELVIS * out,
        "right_hip": pelvis + _PELVIS * out,
    }
    found["pelvis"] = (found["left_hip"] + found["right_hip"]) / 2
    for side, sign in (("left", -1.0), ("right", 1.0)):
        shoulder = neck + sign * _SHOULDER * out - _DROP * up
        found[f"{side}_shoulder"] = shoulder
        found[f"{side}_elbow"], found[f"{side}_wrist"] = _bent(shoulder, given[f"{side}_hand"], _ARM, -sign)
        hip = found[f"{side}_hip"]
        found[f"{side}_knee"], found[f"{side}_ankle"] = _bent(hip, given[f"{side}_foot"], _LEG, 1.0)
    return stick_frames(found, 48)


def rounded_frames(motion: Tensor) -> Tensor:
    """Frames in float32, [..., D]; far from the origin, the pelvis still is the middle of the hips."""
    if motion.shape[-1] == 20:
        return motion.float()
    points = {name: point.float() for name, point in stick_points(motion).items()}
    points["pelvis"] = (points["left_hip"] + points["right_hip"]) / 2
    return stick_frames(points, 48)


def _bent(start: Tensor, goal: Tensor, bone: float, side: float) -> tuple[Tensor, Tensor]:
    """Middle and end of a limb of two equal bones that reaches for a goal: the law of cosines."""
    way = goal - start
    length = way.norm(dim=-1, keepdim=True)
    way = way / length.clamp(min=1e-9)
    reach = length.clamp(max=1.999 * bone)
    off = (bone**2 - reach**2 / 4).sqrt()
    across = torch.stack((-way[..., 1], way[..., 0]), -1)
    return start + way * reach / 2 + side * off * across, start + way * reach
