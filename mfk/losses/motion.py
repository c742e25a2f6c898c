"""What a motion is judged by beside the error of its frames: velocities, unit quaternions, feet that stand.

One value per row, nothing broadcasts, every gradient is finite: at the zero quaternion, for a foot at rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.losses.fields import check_rows, squared_norm


def finite_difference_velocity(x: Tensor, dt: float) -> Tensor:
    """Velocities between neighbouring frames: (x[t + 1] - x[t]) / dt.

    A velocity loss is an error of `regression` between those of two motions.

    Args:
        x: frames, [..., T, F], T >= 2.
        dt: time between two of them, in s; finite, > 0.

    Returns:
        [..., T - 1, F], in the frames' unit per second.

    Raises:
        ValueError: fewer than two frames, or `dt` out of range. TypeError: `x` is not of floating point.
    """
    check_rows({"x": x}, {})
    if x.ndim < 2 or x.shape[-2] < 2:
        raise ValueError(f"x: expected a shape [..., T, F] with T >= 2 frames, got {tuple(x.shape)}")
    check_positive("dt", dt)
    return (x[..., 1:, :] - x[..., :-1, :]) / dt


def quaternion_norm(q: Tensor) -> Tensor:
    """How far a quaternion is from a unit one: (|q| - 1)².

    The gradient, 2 (|q| - 1) q / |q|, has no direction at q = 0; there it is 0.

    Args:
        q: [..., 4].

    Returns:
        [...]; 1 at q = 0.

    Raises:
        ValueError: the last axis is not 4. TypeError: `q` is not of floating point.
    """
    _check_quaternions({"q": q})
    return (length(q) - 1).square().squeeze(-1)


def quaternion_distance(q: Tensor, p: Tensor) -> Tensor:
    """Squared distance of two rotations as numbers: min(|q - p|², |q + p|²).

    q and -q are one rotation and have one value. For unit quaternions it is 2 - 2 |q·p| = 4 sin²(a/4), a the
    angle between the rotations. Where q·p = 0, which for unit quaternions is half a turn, the two are equal
    and the gradient is the mean of both.

    Args:
        q: [..., 4], in any order of components that `p` shares.
        p: [..., 4].

    Returns:
        [...].

    Raises:
        ValueError: the last axis is not 4, or shapes that differ.
        TypeError: dtypes that differ, or are not of floating point.
    """
    _check_quaternions({"q": q, "p": p})
    return torch.minimum(squared_norm(q - p), squared_norm(q + p))


def foot_sliding(
    position: Tensor, *, up: int, fps: float, height: float = 0.025, ground: float | None = None
) -> Tensor:
    """How fast feet slide while they are near the ground: the mean over frames and feet of v (2 - 2^(h/H)).

    v is the horizontal speed from a frame to the next, h the mean height of the foot in the two, clipped to
    [0, H]: a foot on the ground counts in full, one at H or above not at all.

    Args:
        position: of each foot, [..., T, feet, 3] in m, T >= 2.
        up: the axis that points up, 0, 1 or 2.
        fps: frames per second, finite, > 0.
        height: H in m, finite, > 0.
        ground: height of the ground in m; None: of each foot the lowest that it gets in its sequence.

    Returns:
        [...], in m/s.

    Raises:
        ValueError: another shape, or a number out of range. TypeError: `position` is not of floating point.

    Source: Zhang, Starke, Komura and Saito 2018, "Mode-Adaptive Neural Networks for Quadruped Motion
    Control", ACM Transactions on Graphics 37(4), with H = 0.025 m.
    """
    check_rows({"position": position}, {})
    if position.ndim < 3 or position.shape[-1] != 3 or position.shape[-3] < 2 or not position.shape[-2]:
        raise ValueError(
            "position: expected a shape [..., T, feet, 3] with T >= 2 frames and a foot, "
            f"got {tuple(position.shape)}"
        )
    if isinstance(up, bool) or not isinstance(up, int) or up not in (0, 1, 2):
        raise ValueError(f"up: expected the axis 0, 1 or 2, got {describe(up)}")
    check_positive("fps", fps)
    check_positive("height", height)
    if ground is not None and (
        isinstance(ground, bool) or not isinstance(ground, int | float) or not math.isfinite(ground)
    ):
        raise ValueError(f"ground: expected a finite number of m or None, got {describe(ground)}")
    level = position[..., up : up + 1]
    floor = level.amin(-3, keepdim=True) if ground is None else ground
    above = ((level[..., :-1, :, :] + level[..., 1:, :, :]) / 2 - floor).clamp(0, height)
    across = position[..., [axis for axis in range(3) if axis != up]]
    speed = fps * length(across[..., 1:, :, :] - across[..., :-1, :, :])
    return (speed * (2 - torch.exp2(above / height))).mean((-3, -2, -1))


def length(x: Tensor) -> Tensor:
    """‖x‖ over the last axis, which is kept, with gradient 0 at the zero vector.

    The axis is kept because the tangent of a 0-dimensional tensor that meets a Python number is float64.
    """
    square = squared_norm(x).unsqueeze(-1)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def check_positive(name: str, value: float) -> None:
    """ValueError unless it is a finite number > 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {describe(value)}")


def _check_quaternions(rows: dict[str, Tensor]) -> None:
    check_rows(rows, {})
    for name, x in rows.items():
        if x.shape[-1] != 4:
            raise ValueError(f"{name}: expected a shape [..., 4], got {tuple(x.shape)}")
