"""Augmentation of inverse-kinematics rows: new straight paths from given ones, as pure functions of a key.

A row is a straight path in joint space from a reference to a solution, q(s) = q_0 + s v, known at its time
r. Every change keeps that: the path stays straight, and the pose stays that of the solution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Rows, describe
from mfk.kinematics import (
    Chain,
    check_joints,
    clip_to_limits,
    quaternion_canonical,
    quaternion_multiply,
    quaternion_rotate,
)

_TURN = 2 * math.pi


@dataclass(frozen=True)
class AugmentConfig:
    """What is changed in a row, at random and anew in every step; all of it off by default."""

    joint_noise: float = 0.0
    """Standard deviation of noise on the reference, in rad (m for a prismatic joint); the solution stays."""
    turns: bool = False
    """Add whole turns to the whole path, each number that the joint's limits allow equally likely."""
    base_rotation: bool = False
    """Turn the whole problem, pose included, about the first joint's axis, as far as that joint may go."""


class IKPaths(NamedTuple):
    """Rows of straight paths, of one dtype."""

    q: Tensor  # [rows, dof], the state at time r; rad or m
    v: Tensor  # [rows, dof], the velocity: solution minus reference
    q_target: Tensor  # [rows, dof], the solution
    pose: Tensor  # [rows, 7], of the tip at the solution in the base frame: x y z [m], qw qx qy qz
    r: Tensor  # [rows, 1], in [0, 1]


def augment(
    chain: Chain,
    config: AugmentConfig,
    q: Tensor,
    v: Tensor,
    q_target: Tensor,
    pose: Tensor,
    r: Tensor,
    *,
    seed: int,
    step: int,
    rows: Rows,
) -> IKPaths:
    """Change the rows of a batch as `config` says; without changes the inputs come back as they are.

        joint_noise     q_0' = clip(q_0 + sigma n), n ~ N(0, I);  v' = q_target - q_0',  q' = q_0' + r v'
        turns           q' = q + 2 pi k,  q_target' = q_target + 2 pi k
        base_rotation   q' = q + phi e_1,  q_target' = q_target + phi e_1,  pose' = R(phi) pose

    e_1 is the first joint and R(phi) turns about its axis. k and phi are uniform over what keeps the whole
    path inside the limits. A continuous joint has none: it takes no turns, and its phi is any angle; the
    whole path is then moved by the whole turns that bring its solution into -pi..pi.

    Args:
        chain: the robot.
        config: see `AugmentConfig`.
        q: [rows, dof], state at time r; float32 or float64, as all the others.
        v: [rows, dof], velocity of the straight path.
        q_target: [rows, dof], its end q + (1 - r) v.
        pose: [rows, 7], of the solution.
        r: [rows, 1].
        seed: of the run.
        step: of the run; another step, other numbers.
        rows: which rows of the global batch these are.

    Returns:
        The rows, in the dtype and on the device of the inputs, inside the limits.

    Raises:
        TypeError: an input is no float tensor, or their dtypes differ.
        ValueError: a setting is out of range or without effect on this chain, shapes disagree, or the
            state or solution of a row lies outside the limits.
    """
    check_augment(chain, config)
    given = IKPaths(q, v, q_target, pose, r)
    _check_paths(chain, given, len(rows.index))
    if config == AugmentConfig():
        return given
    _check_limits(chain, q, "q")
    _check_limits(chain, q_target, "q_target")
    state, velocity, target, time = (x.double() for x in (q, v, q_target, r))
    reference = state - time * velocity
    if config.joint_noise > 0:
        noise = rng.normal(rng.key(seed, step, "joint noise"), rows, (chain.dof,), torch.float64)
        reference = clip_to_limits(chain, reference + config.joint_noise * noise.to(q.device))
        velocity = target - reference
        state = reference + time * velocity
    ends = torch.stack((reference, state, target))
    least, most = ends.amin(0), ends.amax(0)
    shift = torch.zeros_like(target)
    if config.turns:
        share = rng.uniform(rng.key(seed, step, "turns"), rows, (chain.dof,), torch.float64)
        shift = _TURN * _turns(chain, least, most, share.to(q.device))
    if config.base_rotation:
        share = rng.uniform(rng.key(seed, step, "base rotation"), rows, (), torch.float64)
        low, high, end = ((x + shift)[:, 0] for x in (least, most, target))
        shift[:, 0] += _base_angle(chain, low, high, end, share.to(q.device))
    if config.turns or config.base_rotation:
        q_target = clip_to_limits(chain, (target + shift).to(q.dtype))
    if config.base_rotation:
        # By the angle that is left after rounding, so that the pose stays that of the solution.
        pose = _rotated(chain, pose, q_target[:, 0].double() - target[:, 0])
    q = clip_to_limits(chain, (state + shift).to(q.dtype))
    return IKPaths(q, velocity.to(q.dtype), q_target, pose, r)


def check_augment(chain: Chain, config: AugmentConfig) -> None:
    """ValueError for a setting that is out of range, or that would change nothing on this chain."""
    sigma = config.joint_noise
    if (
        isinstance(sigma, bool)
        or not isinstance(sigma, int | float)
        or not (math.isfinite(sigma) and sigma >= 0)
    ):
        raise ValueError(f"joint_noise: expected a number of rad (m) >= 0, got {describe(sigma)}")
    if config.turns and not any(_turning(chain)):
        raise ValueError(
            f"turns: True would have no effect: no joint of {chain.name} has limits more than one turn apart"
        )
    if config.base_rotation:
        name, low, high = chain.joint_names[0], chain.lower_limits[0], chain.upper_limits[0]
        if chain.stages[0].prismatic:
            raise ValueError(
                f"base_rotation: expected a first joint that turns, but {name!r} of {chain.name} is prismatic"
            )
        if low == high:
            raise ValueError(
                f"base_rotation: True would have no effect: {name!r} of {chain.name} stands still"
            )


def _turning(chain: Chain) -> list[bool]:
    """Which joints have room for a whole turn."""
    return [
        kind == "revolute" and high - low > _TURN
        for kind, low, high in zip(chain.kinds, chain.lower_limits, chain.upper_limits, strict=True)
    ]


def _turns(chain: Chain, least: Tensor, most: Tensor, share: Tensor) -> Tensor:
    """Whole turns [rows, dof] for paths that span least..most; share in [0, 1) picks one of those allowed."""
    lower, upper = chain.lower.to(share.device), chain.upper.to(share.device)
    # No turn is always allowed, whatever the rounding at the limits.
    fewest = torch.ceil((lower - least) / _TURN).clamp(max=0)
    greatest = torch.floor((upper - most) / _TURN).clamp(min=0)
    turns = fewest + torch.floor(share * (greatest - fewest + 1))
    return torch.where(torch.tensor(_turning(chain), device=share.device), turns, 0.0)


def _base_angle(chain: Chain, least: Tensor, most: Tensor, target: Tensor, share: Tensor) -> Tensor:
    """Angle [rows] to turn a first joint by whose paths span least..most; share in [0, 1) picks one."""
    if chain.continuous[0]:
        return torch.remainder(target + _TURN * share + math.pi, _TURN) - math.pi - target
    lowest = (chain.lower_limits[0] - least).clamp(max=0)
    highest = (chain.upper_limits[0] - most).clamp(min=0)
    return torch.lerp(lowest, highest, share)


def _rotated(chain: Chain, pose: Tensor, angle: Tensor) -> Tensor:
    """Poses [rows, 7] turned about the first joint's axis in the base frame by angles [rows] in float64."""
    stage = chain.stages[0]
    rows = stage.rotation or ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    axis = torch.tensor(
        [stage.sign * row[stage.axis] for row in rows], dtype=torch.float64, device=pose.device
    )
    origin = torch.tensor(stage.offset, dtype=torch.float64, device=pose.device)
    half = 0.5 * angle[:, None]
    turn = torch.cat((torch.cos(half), torch.sin(half) * axis), -1)
    position = origin + quaternion_rotate(turn, pose[:, :3].double() - origin)
    quaternion = quaternion_canonical(quaternion_multiply(turn, pose[:, 3:].double()))
    return torch.cat((position, quaternion), -1).to(pose.dtype)


def _check_paths(chain: Chain, paths: IKPaths, rows: int) -> None:
    widths = {"q": chain.dof, "v": chain.dof, "q_target": chain.dof, "pose": 7, "r": 1}
    check_joints(chain, paths.q)
    for name, width in widths.items():
        x = getattr(paths, name)
        if not isinstance(x, Tensor) or x.dtype != paths.q.dtype:
            raise TypeError(f"{name}: expected a tensor of {paths.q.dtype}, as q, got {describe(x)}")
        if x.shape != (rows, width):
            raise ValueError(f"{name}: expected shape {(rows, width)}, got {tuple(x.shape)}")


def _check_limits(chain: Chain, q: Tensor, name: str) -> None:
    """ValueError where joints leave their limits by more than float32's rounding; a NaN is let through."""
    outside = (q - clip_to_limits(chain, q)).abs() > 1e-6 * q.abs().clamp(min=1)
    if bool(outside.any()):
        row, joint = (int(x) for x in outside.nonzero()[0])
        low, high = chain.lower_limits[joint], chain.upper_limits[joint]
        raise ValueError(
            f"{name}: expected {chain.joint_names[joint]!r} of {chain.name} inside its limits {low} to {high}"
            f", got {float(q[row, joint])} in row {row}"
        )
