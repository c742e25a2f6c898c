"""Whether positions, velocities and accelerations belong together, and what falls falls as it should.

Elementwise: one value per frame (or per pair of neighbouring frames), squared errors summed over x and y, no
mean over frames; masks and the sum are the caller's. Derivatives in time are forward differences: the
velocity of frame t leads to frame t + 1, so that what a file says of its last frame is not looked at.

Units are the caller's: metres, or figure units of 0.68 m, in which earth's gravity is 9.8 / 0.68 units/s².

Source: gestura-ai/stick-gen for the terms. Its gravity term asks every frame to fall, also the ones that
stand on the ground; here only those in flight are asked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.losses.fields import check_rows, squared_norm
from mfk.losses.motion import check_positive, length


def velocity_consistency(position: Tensor, velocity: Tensor, fps: float) -> Tensor:
    """How far velocities are from those of the positions: |(p[t + 1] - p[t]) fps - v[t]|².

    Args:
        position: [..., T, D], T >= 2.
        velocity: [..., T, D], in the positions' unit per second.
        fps: frames per second, finite, > 0.

    Returns:
        [..., T - 1], squared velocities.

    Raises:
        ValueError: shapes that differ, fewer than two frames, `fps` out of range.
        TypeError: dtypes that differ, or are not of floating point.
    """
    _check_pair({"position": position, "velocity": velocity})
    check_positive("fps", fps)
    return squared_norm((position[..., 1:, :] - position[..., :-1, :]) * fps - velocity[..., :-1, :])


def acceleration_consistency(velocity: Tensor, acceleration: Tensor, fps: float) -> Tensor:
    """How far accelerations are from what changes the velocities: |v[t + 1] - v[t] - a[t] / fps|².

    In velocities and not, as in `velocity_consistency`, in the derivative's unit: that is what the documented
    weight of this term, 0.2, goes with.

    Args:
        velocity: [..., T, D], T >= 2.
        acceleration: [..., T, D], in the velocities' unit per second.
        fps: frames per second, finite, > 0.

    Returns:
        [..., T - 1], squared velocities.

    Raises:
        ValueError, TypeError: as `velocity_consistency`.
    """
    _check_pair({"velocity": velocity, "acceleration": acceleration})
    check_positive("fps", fps)
    return squared_norm(velocity[..., 1:, :] - velocity[..., :-1, :] - acceleration[..., :-1, :] / fps)


def gravity_in_flight(acceleration: Tensor, flight: Tensor, g: float | Tensor) -> Tensor:
    """How far what is in flight is from free fall: (a_y + g)², y up; 0 where it is not in flight.

    Frames that are not in flight may hold anything, NaN included; their gradient is 0.

    Args:
        acceleration: [..., T, 2], x and y.
        flight: which frames are in flight, bool [..., T].
        g: gravity, >= 0 and finite, in the accelerations' unit; or one for each frame, [..., T].

    Returns:
        [..., T], squared accelerations.

    Raises:
        ValueError: shapes that do not agree, `g` out of range.
        TypeError: `acceleration` or `g` not of floating point, `flight` not of bool.
    """
    check_rows({"acceleration": acceleration}, {})
    if acceleration.ndim < 2 or acceleration.shape[-1] != 2:
        raise ValueError(f"acceleration: expected a shape [..., T, 2], got {tuple(acceleration.shape)}")
    frames = acceleration.shape[:-1]
    if not isinstance(flight, Tensor) or flight.dtype != torch.bool:
        raise TypeError(f"flight: expected a tensor of bool, got {describe(flight)}")
    if flight.shape != frames:
        raise ValueError(f"flight: expected one for each frame, {tuple(frames)}, got {tuple(flight.shape)}")
    if isinstance(g, Tensor):
        if g.dtype != acceleration.dtype:
            raise TypeError(f"g: expected the accelerations' dtype, {acceleration.dtype}, got {g.dtype}")
        if g.shape != frames:
            raise ValueError(f"g: expected one for each frame, {tuple(frames)}, got {tuple(g.shape)}")
    elif isinstance(g, bool) or not isinstance(g, int | float) or not 0 <= g < math.inf:
        raise ValueError(f"g: expected a finite number >= 0, got {describe(g)}")
    # What is left out is replaced before the square as well: 0 times the slope at a NaN would be a NaN.
    return torch.where(flight, torch.where(flight, acceleration[..., 1] + g, 0.0).square(), 0.0)


def in_flight(height: Tensor, ground: float = 0.0, clearance: float = 0.05) -> Tensor:
    """Which frames have every foot off the ground: min over feet of the height > ground + clearance.

    Args:
        height: of each foot, [..., T, feet].
        ground: height of the ground, finite.
        clearance: what a foot may be above it and still stand, finite, >= 0.

    Returns:
        bool [..., T].

    Raises:
        ValueError: no foot, or a number out of range. TypeError: `height` is not of floating point.
    """
    check_rows({"height": height}, {})
    if height.ndim < 2 or not height.shape[-1]:
        raise ValueError(f"height: expected a shape [..., T, feet] with a foot, got {tuple(height.shape)}")
    for name, value, least in (("ground", ground, -math.inf), ("clearance", clearance, 0.0)):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < least:
            raise ValueError(
                f"{name}: expected a finite number{' >= 0' if least == 0 else ''}, got {describe(value)}"
            )
    return height.amin(-1) > ground + clearance


def jerk(x: Tensor, fps: float) -> Tensor:
    """How a motion jitters: the mean over frames of |x[t + 3] - 3 x[t + 2] + 3 x[t + 1] - x[t]| fps³.

    0 for whatever is a parabola in time. The gradient is 0 at a frame without jerk.

    Args:
        x: frames, [..., T, D], T >= 4.
        fps: frames per second, finite, > 0.

    Returns:
        [...], in the frames' unit per s³.

    Raises:
        ValueError: fewer than four frames, or `fps` out of range. TypeError: `x` is not of floating point.
    """
    check_rows({"x": x}, {})
    if x.ndim < 2 or x.shape[-2] < 4:
        raise ValueError(f"x: expected a shape [..., T, D] with T >= 4 frames, got {tuple(x.shape)}")
    check_positive("fps", fps)
    third = x.diff(n=3, dim=-2)
    return (length(third) * fps**3).mean((-2, -1))


def _check_pair(rows: dict[str, Tensor]) -> None:
    check_rows(rows, {})
    for name, x in rows.items():
        if x.ndim < 2 or x.shape[-2] < 2:
            raise ValueError(f"{name}: expected a shape [..., T, D] with T >= 2 frames, got {tuple(x.shape)}")
