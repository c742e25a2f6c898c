"""Smooth random motions of a robot, made from keys: motion to train on where there is no recording."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Rows, describe
from mfk.data.ik import sampling_range
from mfk.data.motion import Clip, MotionInfo, MotionRows, MotionSource, Skeleton
from mfk.data.motion_memory import motion_source
from mfk.kinematics import Chain, align_signs, link_poses

_STEP = 0.35  # of a joint's range, the most that it moves at once
_SHORTEST, _LONGEST, _PAUSE = 1.0, 2.0, 0.4  # s: of a movement, of the rest after it
_PEAK = 1.875  # the greatest speed of a quintic movement, in units of its mean
_SHARE = 0.9  # of a joint's greatest speed that is never exceeded
_HELD_OUT = 15  # percent of the clips


def robot_motion(
    chain: Chain,
    *,
    clips: int = 40,
    frames: int = 300,
    fps: float = 30.0,
    seed: int = 0,
    action: str | None = None,
) -> MotionSource:
    """Clips of `joint_motion` as poses of the robot's frames in the base frame, kept in memory.

    Bones are the base link, the joints' frames and the tip (see `link_poses`), each the parent of the next.
    The quaternions' signs are continuous within a clip. The splits are "train" and "val": the last 15 % of
    the clips, rounded up, are held out. A clip does not depend on how many there are.

    Args:
        chain: the robot; the z axis of its base frame points up.
        clips: their number, an int >= 2.
        frames: of each clip, an int >= 1.
        fps: frames per second, finite, > 0.
        seed: of the random numbers.
        action: what all clips are said to show.

    Raises:
        ValueError: a number out of range, a joint without finite limits, or two joints of one name.
    """
    _check_count("clips", clips, 2)
    middle = torch.stack(sampling_range(chain)).mean(0)
    reference = link_poses(chain, middle)[:, 3:]
    poses = []
    for clip in range(clips):
        q = joint_motion(chain, frames=frames, fps=fps, seed=seed, clip=clip)
        found = link_poses(chain, q)
        turns = align_signs(found[..., 3:], reference)
        poses.append(torch.cat((found[..., :3], turns), dim=-1).float())
    train = clips - -(-_HELD_OUT * clips // 100)
    seen = torch.arange(clips * frames, device="cpu") < train * frames
    info = MotionInfo(
        fps=float(fps),
        skeleton=Skeleton(_bone_names(chain), tuple(range(-1, chain.dof + 1)), "world", "z"),
        clips=tuple(Clip(f"{chain.name} {clip}", frames, action) for clip in range(clips)),
        label_names=None,
        splits=("train", "val"),
        metadata={"robot": chain.name, "seed": seed},
    )
    rows = MotionRows(torch.cat(poses), None, None, {"train": seen, "val": ~seen})
    return motion_source(f"motion of {chain.name}", info, rows)


def joint_motion(chain: Chain, *, frames: int, fps: float, seed: int, clip: int) -> Tensor:
    """Joint values over time: from one random place to the next, at rest in between, all joints at once.

        q(t) = a + (b - a) (10 τ³ - 15 τ⁴ + 6 τ⁵),    τ = (t - t_a) / T

    which is the smoothest way (least jerk). Places are drawn within the joints' ranges, as in
    `sampling_range`, at most 35 % of them from the one before; T ~ U(1, 2) s, or as long as no joint exceeds
    90 % of its greatest speed; a rest lasts up to 0.4 s.

    Args:
        chain: the robot.
        frames: their number, an int >= 1.
        fps: frames per second, finite, > 0.
        seed: of the random numbers.
        clip: which motion, an int.

    Returns:
        [frames, dof], float64, in rad or m.

    Raises:
        ValueError: a number out of range, or a joint without finite limits.
    """
    _check_count("frames", frames, 1)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise ValueError(f"fps: expected a finite number > 0, got {describe(fps)}")
    lower, upper = sampling_range(chain)
    place = lower + (upper - lower) * _uniform(seed, clip, 0, chain.dof)
    time = torch.arange(frames, dtype=torch.float64, device="cpu") / fps
    parts, begins, number = [], 0.0, 0
    while sum(map(len, parts)) < frames:
        number += 1
        drawn = _uniform(seed, clip, number, chain.dof + 2)
        there = place + _STEP * (upper - lower) * (2 * drawn[2:] - 1)
        there = there.clamp(lower, upper)
        needed = _PEAK * (there - place).abs() / (_SHARE * chain.velocity)
        lasts = max(_SHORTEST + (_LONGEST - _SHORTEST) * float(drawn[0]), float(needed.max()))
        ends = begins + lasts + _PAUSE * float(drawn[1])
        here = time[(time >= begins) & (time < ends)]
        t = ((here - begins) / lasts).clamp(max=1.0).unsqueeze(-1)
        parts.append(place + (there - place) * t**3 * (10 - 15 * t + 6 * t * t))
        place, begins = there, ends
    # Clamped for the sake of rounding alone.
    return torch.cat(parts).clamp(lower, upper)


def _uniform(seed: int, clip: int, number: int, count: int) -> Tensor:
    return rng.uniform(rng.key(seed, "motion", clip, number), Rows.all(count), dtype=torch.float64)


def _bone_names(chain: Chain) -> tuple[str, ...]:
    """Base link, joints and tip link; a link that is called as a joint is says that it is the link."""
    joints = chain.joint_names
    if len(set(joints)) != len(joints):
        raise ValueError(f"chain: expected joints with names of their own, got {list(joints)}")
    base, tip = (f"{link} (link)" if link in joints else link for link in (chain.base, chain.tip))
    return (base, *joints, tip)


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected an int >= {least}, got {describe(value)}")
