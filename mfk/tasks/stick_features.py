"""How a stick figure's frames are seen by a network, and what its output means: causal, frame by frame.

A network corrects constant velocity in units of how much the motion has accelerated just before: a figure
that hardly moves is then predicted as exactly, for its size, as one that sprints.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core.types import Params, describe
from mfk.data.stick import SEGMENTS

_RECENT = 12  # frames whose acceleration gives the unit of a prediction
FLOOR = 2e-5  # units: float32's rounding of a place ten units from the origin is no motion


class Seen(NamedTuple):
    """Frames as a network sees them."""

    features: Tensor  # [B, T, feature_count(D)]
    base: Tensor  # [B, T, D], the next frame at constant velocity; after the first one, that frame itself
    unit: Tensor  # [B, T, 1], what a network's output is measured in


def feature_count(width: int) -> int:
    """Numbers that a network sees of a frame of `width`."""
    return 3 * width + 2


def fit_stick(motion: Tensor, valid: Tensor) -> Params:
    """What is measured on training windows once: how fast figures move and accelerate.

    Args:
        motion: [N, T, D], in units.
        valid: [N, T], bool.

    Returns:
        "pose" [D], deviation of the points from the hip; "velocity" [] and "acceleration" [], root mean
        squares of a frame's differences over points, in units.

    Raises:
        ValueError: nothing moves, or no window has three frames.
    """
    check_motion(motion)
    inside = valid.unsqueeze(-1)
    velocity, acceleration = motion.diff(dim=1), motion.diff(n=2, dim=1)
    if motion.shape[1] < 3 or not bool(valid[:, 2:].any()):
        raise ValueError("motion: expected a training window of at least 3 frames")
    pose = _from_hip(motion).double()
    scale = {
        "pose": _rms(pose, inside, (0, 1)).clamp(min=0.05),
        "velocity": _rms(velocity, inside[:, 1:], (0, 1, 2)),
        "acceleration": _rms(acceleration, inside[:, 2:], (0, 1, 2)),
    }
    if not bool(scale["acceleration"] > 0):
        raise ValueError("motion: expected figures that move, got none")
    return {name: x.to(motion.dtype) for name, x in scale.items()}


def see(scale: Params, motion: Tensor) -> Seen:
    """Frames [B, T, D] as a network sees them; frame t depends on motion[:, : t + 1] only.

    Of each frame the points as seen from its hip, their velocity, their acceleration in its unit; the hip's
    height above where it began; the unit's logarithm. Where the figure stands on the ground is not seen.
    The unit is the root mean square acceleration, per frame squared, of the last 12 frames.
    """
    check_motion(motion)
    _, frames, width = motion.shape
    velocity = torch.cat((torch.zeros_like(motion[:, :1]), motion.diff(dim=1)), 1)
    acceleration = torch.cat((torch.zeros_like(motion[:, :2]), motion.diff(n=2, dim=1)), 1)[:, :frames]
    unit = _unit(scale, acceleration)
    hip = motion[..., hip_columns(width)]
    height = (hip[..., 1:] - hip[:, :1, 1:]) / scale["pose"].mean()
    features = torch.cat(
        (
            _from_hip(motion) / scale["pose"],
            velocity / scale["velocity"],
            acceleration / unit,
            height,
            (unit / scale["acceleration"]).log(),
        ),
        -1,
    )
    return Seen(features, motion + velocity, unit)


def meant(seen: Seen, out: Tensor) -> Tensor:
    """The next frames [B, T, D] that a network's output [B, T, D] stands for; shared points agree."""
    return seen.base + seen.unit * joined(out)


def joined(frames: Tensor) -> Tensor:
    """Frames [..., D] in which end points that segments share are their mean, the pelvis that of the hips."""
    width = frames.shape[-1]
    names = [name for _, *ends in SEGMENTS[width] for name in ends]
    points = frames.unflatten(-1, (-1, 2))
    places = {name: [i for i, other in enumerate(names) if other == name] for name in names}
    mean = {name: points[..., at, :].mean(-2) for name, at in places.items()}
    if width == 48:
        mean["pelvis"] = (mean["left_hip"] + mean["right_hip"]) / 2
    return torch.cat([mean[name] for name in names], -1)


def columns_of(width: int, *names: str) -> list[int]:
    """Where the x and y of points stand in a frame of `width`, the first place of each."""
    found = []
    ends = [name for _, *ends in SEGMENTS[width] for name in ends]
    for name in names:
        found += [2 * ends.index(name), 2 * ends.index(name) + 1]
    return found


def hip_columns(width: int) -> list[int]:
    """Where the x and y of the hip stand."""
    return columns_of(width, "hip" if width == 20 else "pelvis")


def foot_heights(width: int) -> list[int]:
    """Where the y of the feet stand."""
    feet = ("left_foot", "right_foot") if width == 20 else ("left_ankle", "right_ankle")
    return columns_of(width, *feet)[1::2]


def check_motion(motion: Tensor) -> None:
    """Frames are [B, T, D] of a known width."""
    if not isinstance(motion, Tensor) or motion.ndim != 3 or motion.shape[-1] not in SEGMENTS:
        raise ValueError(f"motion: expected a tensor [B, T, D], D 20 or 48, got {describe(motion)}")


def _from_hip(motion: Tensor) -> Tensor:
    """Points as seen from the frame's own hip, [..., D]."""
    width = motion.shape[-1]
    hip = motion[..., hip_columns(width)]
    return motion - hip.repeat(*(1,) * (motion.ndim - 1), width // 2)


def _unit(scale: Params, acceleration: Tensor) -> Tensor:
    """Root mean square of the last accelerations [B, T, D], [B, T, 1]; none is known of the first two."""
    square = acceleration.square().mean(-1)
    frame = torch.arange(square.shape[1], device=square.device)
    before = torch.cat((square.new_zeros(len(square), _RECENT - 1), square), 1)
    # No running sum: what is left of it after a sprint would drown the hands of an idle figure.
    total = before.unfold(1, _RECENT, 1).sum(-1)
    unit = (total / (frame - 1).clamp(1, _RECENT) + FLOOR**2).sqrt()
    unit = torch.where(frame == 0, scale["velocity"].to(unit), unit)
    return torch.where(frame == 1, scale["acceleration"].to(unit), unit).unsqueeze(-1)


def _rms(x: Tensor, inside: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Root mean square over `axes` of the numbers inside."""
    kept = torch.where(inside, x.double(), 0.0)
    count = inside.expand_as(x).sum(axes)
    return (kept.square().sum(axes) / count.clamp(min=1)).sqrt()
