"""How a stick figure's frames are seen by a network, and what its output means: causal, frame by frame.

A network corrects constant velocity in units of how much the motion has accelerated just before, and by the
hyperbolic sine of its output: a figure that hardly moves is predicted as exactly, for its size, as one that
sprints, and yet a figure at rest may begin to kick.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core.types import Params, describe
from mfk.data.stick import SEGMENTS

_RECENT = 12  # frames whose movement gives the unit of a prediction
_LAGS = 4  # accelerations that are seen at once
_DRIFT = 0.05  # of a velocity: what drifts can be stopped though it does not accelerate
FLOOR = 1e-4  # units: what accelerates less is at rest; float32 rounds places 100 units away by 4e-6
_MOST = 9.0  # of a network's output: 4,000 units of acceleration


class Seen(NamedTuple):
    """Frames as a network sees them."""

    features: Tensor  # [B, T, feature_count(D)]
    base: Tensor  # [B, T, D], the next frame at constant velocity; after the first one, that frame itself
    unit: Tensor  # [B, T, 1], what a network's output is measured in


def feature_count(width: int) -> int:
    """Numbers that a network sees of a frame of `width`."""
    return (2 + _LAGS) * width + 2


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

    Of each frame the points as seen from its hip, their velocity, their last four accelerations in the
    frame's unit (their inverse hyperbolic sine), the hip's height above where it began, and the unit's
    logarithm. Where the figure stands on the ground is not seen. The unit is::

        sqrt(mean a^2 + (0.05)^2 mean v^2 + 1e-4^2)

    over points and the last 12 frames, in units a frame and a frame squared. Of the first frame, whose
    velocity is not known, it is the training windows' velocity.
    """
    check_motion(motion)
    _, frames, width = motion.shape
    velocity = torch.cat((torch.zeros_like(motion[:, :1]), motion.diff(dim=1)), 1)
    acceleration = torch.cat((torch.zeros_like(motion[:, :2]), motion.diff(n=2, dim=1)), 1)[:, :frames]
    unit = _unit(scale, velocity, acceleration)
    bends = [
        torch.cat((torch.zeros_like(motion[:, :age]), acceleration[:, : max(0, frames - age)]), 1)[:, :frames]
        for age in range(_LAGS)
    ]
    hip = motion[..., hip_columns(width)]
    height = (hip[..., 1:] - hip[:, :1, 1:]) / scale["pose"].mean()
    features = torch.cat(
        (
            _from_hip(motion) / scale["pose"],
            velocity / scale["velocity"],
            *((bend / unit).asinh() for bend in bends),
            height,
            (unit / scale["acceleration"]).log(),
        ),
        -1,
    )
    return Seen(features, motion + velocity, unit)


def meant(seen: Seen, out: Tensor) -> Tensor:
    """The next frames [B, T, D] of a network's output: base + unit sinh(out), where shared points agree.

    Outputs beyond +-9 count as 9.
    """
    return seen.base + seen.unit * joined(out.clamp(-_MOST, _MOST).sinh())


def measured(seen: Seen, frames: Tensor) -> Tensor:
    """The output [B, T, D] that stands for the next frames, asinh((frames - base) / unit)."""
    return ((frames - seen.base) / seen.unit).asinh().clamp(-_MOST, _MOST)


def anchor_of(scale: Params, motion: Tensor, frames: Tensor) -> Tensor:
    """Where the next `frames` are, whatever led there from `motion`, in numbers of size one, [B, T, D].

    The points as seen from the hip; in the hip's own place how far it moves along from the frame before, and
    its height above where it began.
    """
    at = hip_columns(motion.shape[-1])
    hip, after = motion[..., at], frames[..., at]
    along = (after[..., :1] - hip[..., :1]) / scale["velocity"]
    level = (after[..., 1:] - hip[:, :1, 1:]) / scale["pose"].mean()
    points = _from_hip(frames) / scale["pose"]
    return torch.cat((points[..., : at[0]], along, level, points[..., at[1] + 1 :]), -1)


def anchored(scale: Params, motion: Tensor, anchor: Tensor) -> Tensor:
    """The next frames [B, T, D] of an anchor: the inverse of `anchor_of`; shared points agree."""
    at = hip_columns(motion.shape[-1])
    hip = motion[..., at]
    along = hip[..., :1] + scale["velocity"] * anchor[..., at[0] : at[0] + 1]
    level = hip[:, :1, 1:] + scale["pose"].mean() * anchor[..., at[1] : at[1] + 1]
    none = torch.zeros_like(anchor[..., :2])
    points = torch.cat((anchor[..., : at[0]], none, anchor[..., at[1] + 1 :]), -1) * scale["pose"]
    place = torch.cat((along, level), -1).repeat(1, 1, motion.shape[-1] // 2)
    return place + _from_hip(joined(points))


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


def _unit(scale: Params, velocity: Tensor, acceleration: Tensor) -> Tensor:
    """The unit of each frame, [B, T, 1]; see `see`."""
    frame = torch.arange(velocity.shape[1], device=velocity.device)

    def recent(x: Tensor, known: int) -> Tensor:
        square = x.square().mean(-1)
        before = torch.cat((square.new_zeros(len(square), _RECENT - 1), square), 1)
        # No running sum: what is left of it after a sprint would drown the hands of an idle figure.
        return before.unfold(1, _RECENT, 1).sum(-1) / (frame + 1 - known).clamp(1, _RECENT)

    unit = (recent(acceleration, 2) + _DRIFT**2 * recent(velocity, 1) + FLOOR**2).sqrt()
    return torch.where(frame == 0, scale["velocity"].to(unit), unit).unsqueeze(-1)


def _rms(x: Tensor, inside: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Root mean square over `axes` of the numbers inside."""
    kept = torch.where(inside, x.double(), 0.0)
    count = inside.expand_as(x).sum(axes)
    return (kept.square().sum(axes) / count.clamp(min=1)).sqrt()
