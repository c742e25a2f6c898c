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

_WAVES = 3  # sinusoids of a joint
_SLOWEST, _FASTEST = 0.1, 0.6  # Hz
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
    """Joint values over time: each joint swings about a place of its own, by three sinusoids.

        q(t) = c + A Σ_k a_k sin(2π (f_k s t + φ_k)),    Σ_k a_k = 1,  f_k ~ U(0.1, 0.6) Hz

    A is 10 to 60 % of half the joint's range, as in `sampling_range`, and c anywhere that keeps q within it.
    s <= 1 slows a joint down whose greatest speed, A s Σ_k 2π f_k a_k, would exceed 90 % of its limit.

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
    numbers = rng.uniform(
        rng.key(seed, "motion", clip), Rows.all(chain.dof), (2 + 3 * _WAVES,), torch.float64
    )
    size, place = numbers[:, 0], numbers[:, 1]
    parts, rate, phase = numbers[:, 2:].unflatten(-1, (3, _WAVES)).unbind(-2)
    reach = (0.1 + 0.5 * size) * (upper - lower) / 2
    center = torch.lerp(lower + reach, upper - reach, place)
    parts = (0.1 + parts) / (0.1 + parts).sum(-1, keepdim=True)
    rate = torch.lerp(torch.full_like(rate, _SLOWEST), torch.full_like(rate, _FASTEST), rate)
    fastest = reach * (2 * math.pi * rate * parts).sum(-1)
    rate = rate * (_SHARE * chain.velocity / fastest.clamp(min=1e-12)).clamp(max=1.0).unsqueeze(-1)
    time = torch.arange(frames, dtype=torch.float64, device="cpu").view(-1, 1, 1) / fps
    waves = parts * torch.sin(2 * math.pi * (rate * time + phase))
    # Clamped for the sake of rounding alone.
    return (center + reach * waves.sum(-1)).clamp(lower, upper)


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
