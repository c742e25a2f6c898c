"""Changes of a stick figure's motion that keep its bones: speed, place, size, and left for right.

Motion is [T, D] or [T, A, D]. Physics do not come along: compute them of the result (`stick_physics`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.data.stick import SEGMENTS, check_width


def resample_stick(motion: Tensor, speed: float, frames: int | None = None) -> Tensor:
    """Motion at another speed: frame i of the result is at i · speed, between the two frames next to it.

    Nothing is repeated at the end: where the motion is too short for `frames`, that is an error. Linear
    between frames, so that bones shorten there by the square of what they turn within a frame.

    Args:
        motion: [T, ..., D].
        speed: > 0; more than 1 is faster.
        frames: of the result; None: as many as there are, floor((T - 1) / speed) + 1.

    Raises:
        ValueError: no positive speed, or fewer frames than needed. TypeError: no motion.
    """
    _check(motion)
    _positive("speed", speed)
    most = math.floor((len(motion) - 1) / speed + 1e-9) + 1
    count = most if frames is None else frames
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise ValueError(
            f"frames: expected 1 to {most} of {len(motion)} frames at speed {speed:g}, got {describe(frames)}"
        )
    place = torch.arange(count, dtype=torch.float64) * speed
    below = place.floor().clamp(max=len(motion) - 1).long()
    part = (place - below).to(motion.dtype).reshape(-1, *[1] * (motion.ndim - 1))
    return motion[below].lerp(motion[(below + 1).clamp(max=len(motion) - 1)], part)


def resample_labels(labels: Tensor, speed: float, frames: int) -> Tensor:
    """Labels that go with `resample_stick`: those of the frame at or before i · speed, [frames, ...].

    Raises:
        ValueError: as `resample_stick`.
    """
    _positive("speed", speed)
    place = (torch.arange(frames, dtype=torch.float64) * speed + 1e-9).floor().long()
    if not frames or int(place[-1]) >= len(labels):
        raise ValueError(f"frames: expected at least 1 that {len(labels)} labels suffice for, got {frames}")
    return labels[place]


def shift_stick(motion: Tensor, x: float, y: float = 0.0) -> Tensor:
    """Motion moved by (x, y) units, all actors alike. TypeError, ValueError: no motion."""
    _check(motion)
    return motion + torch.tensor((x, y), dtype=motion.dtype).repeat(motion.shape[-1] // 2)


def scale_stick(motion: Tensor, scale: float) -> Tensor:
    """Motion made larger by `scale` > 0 around the origin, a point of the ground.

    Accelerations grow with it, gravity too. ValueError: no positive number. TypeError: no motion.
    """
    _check(motion)
    _positive("scale", scale)
    return motion * scale


def mirror_stick(motion: Tensor) -> Tensor:
    """X becomes -x, and what was left is right: twice is the motion itself. TypeError, ValueError: no motion.

    Left and right segments change places, since a figure's left hand is at its left also in a mirror; in
    frames of 48 the segment of the pelvis is turned round.
    """
    _check(motion)
    segments = SEGMENTS[motion.shape[-1]]
    names = [name for name, *_ in segments]
    other = [names.index(_swapped(name)) for name in names]
    found = motion.unflatten(-1, (-1, 2, 2))[..., other, :, :]
    turned = [place for place, (_, first, second) in enumerate(segments) if _swapped(first) == second]
    if turned:
        place = turned[0]
        found = torch.cat((found[..., :place, :, :], found[..., place:, :, :].flip(-2)), -3)
    return (found * torch.tensor((-1.0, 1.0), dtype=motion.dtype)).flatten(-3)


def _swapped(name: str) -> str:
    side, _, rest = name.partition("_")
    return f"{dict(left='right', right='left')[side]}_{rest}" if side in ("left", "right") else name


def _check(motion: object) -> None:
    if not isinstance(motion, Tensor) or not motion.is_floating_point():
        raise TypeError(f"motion: expected a tensor of floating point, got {describe(motion)}")
    if motion.ndim < 2 or not len(motion):
        raise ValueError(f"motion: expected [T, ..., D], got {tuple(motion.shape)}")
    check_width("motion", motion.shape[-1])


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {describe(value)}")
