"""How far a pose is from what is asked of it, with weights and directions that are free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.kinematics import rotations
from mfk.kinematics.chain import Chain
from mfk.kinematics.fk import forward
from mfk.kinematics.ik import pose_error

Weights: TypeAlias = tuple[float, float, float, float, float, float]
"""Of the errors along and about the target's x, y and z axes, position first; 0 leaves one free."""

_LEAST_WEIGHT = 1e-3


class TaskError(NamedTuple):
    """The error that is left, batch axes innermost."""

    twist: Tensor  # [6, ...], weighted; m, rad
    position: Tensor  # [...], square of the distance, free directions left out; m^2
    rotation: Tensor  # [...], square of the angle; rad^2


def check_weights(weights: Sequence[float] | None) -> Weights | None:
    """The weights as six floats, the greatest of them 1; None, all of equal weight, stays None.

    Raises:
        TypeError: no sequence of numbers.
        ValueError: not six finite numbers >= 0, all of them 0, one below a thousandth of the greatest, or two
            rotations free and one not.
    """
    if weights is None:
        return None
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(f"weights: expected six numbers, got {describe(weights)}")
    if any(isinstance(w, bool) or not isinstance(w, int | float) for w in weights):
        raise TypeError(f"weights: expected six numbers, got {weights!r}")
    if len(weights) != 6 or not all(0 <= w < float("inf") for w in weights) or not any(weights):
        raise ValueError(
            "weights: expected six finite numbers >= 0, not all 0 (along, then about, the target's x y z), "
            f"got {weights!r}"
        )
    # What counts for less than the search's own damping would never be reached.
    scaled = tuple(w / max(weights) for w in weights)
    if any(0 < w < _LEAST_WEIGHT for w in scaled):
        raise ValueError(f"weights: expected 0, or at least a thousandth of the greatest, got {weights!r}")
    if scaled[3:].count(0.0) == 2:
        raise ValueError(
            "weights: expected all rotations, two of them or none to count (one alone is no orientation), "
            f"got {weights!r}"
        )
    return scaled  # type: ignore[return-value]


def task_error(pose: Tensor, target: Tensor, weights: Weights | None) -> TaskError:
    """The error of poses [..., 7] against unit targets [..., 7].

    Without weights it is `pose_error` in the base frame. With them it is in the target's frame, each part
    times its weight. Where one rotation is free, the others are those of the shortest arc that brings the
    tool's axis onto the target's: whatever the turn about it, nothing is left of it in them.
    """
    error = pose_error(pose, target).movedim(-1, 0)
    if weights is None:
        return TaskError(error, _square(error[:3]), _square(error[3:]))
    axes = _axes(target)
    linear, angular = error[:3], error[3:]
    rotation = _square(angular)
    free = [i for i, w in enumerate(weights[3:]) if w == 0.0]
    if len(free) == 1:
        angular, rotation = _arc(_axes(pose)[:, free[0]], axes[:, free[0]])
    elif free:
        rotation = torch.zeros_like(rotation)
    local = _in_target(torch.cat((linear, angular)), axes)
    counts = [w > 0 for w in weights]
    position = _square(torch.stack([local[i] if counts[i] else torch.zeros_like(local[i]) for i in range(3)]))
    return TaskError(_weigh(local, weights), position, rotation)


def task_jacobian(jacobian: Tensor, target: Tensor, weights: Weights | None) -> Tensor:
    """The rows of a Jacobian [..., 6, dof] that `task_error` asks for, as columns [dof, 6, ...]."""
    columns = jacobian.movedim((-1, -2), (0, 1))
    if weights is None:
        return columns
    return _weigh(_in_target(columns.transpose(0, 1), _axes(target)), weights).transpose(0, 1)


def task_distances(chain: Chain, q: Tensor, target: Tensor, weights: Weights | None) -> tuple[Tensor, Tensor]:
    """Position error [m] and rotation error [rad], [...] each, of q [..., dof], in float64."""
    error = task_error(forward(chain, q.double()), target.double(), weights)
    return error.position.sqrt(), error.rotation.sqrt()


def _in_target(twist: Tensor, axes: Tensor) -> Tensor:
    """Twists [6, *m, ...] of the base frame in a frame whose axes are the columns of `axes` [3, 3, ...]."""
    extra = twist.ndim + 1 - axes.ndim
    axes = axes.reshape(3, 3, *(1,) * extra, *axes.shape[2:])
    parts = []
    for part in (twist[:3], twist[3:]):
        parts.append(axes[0] * part[0] + axes[1] * part[1] + axes[2] * part[2])
    return torch.cat(parts)


def _weigh(rows: Tensor, weights: Weights) -> Tensor:
    """Rows [6, ...] times their weights."""
    return torch.stack([row * w for row, w in zip(rows.unbind(0), weights, strict=True)])


def _axes(pose: Tensor) -> Tensor:
    """The rotation matrix of a pose [..., 7], [3, 3, ...]: its second axis counts the frame's axes."""
    return rotations.quaternion_to_matrix(pose[..., 3:]).movedim((-2, -1), (0, 1))


def _arc(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation vector [3, ...] that brings one unit vector onto another, and its square."""
    cross = torch.linalg.cross(one, other, dim=0)
    sine_square = _square(cross)
    small = sine_square < 1e-24
    sine = torch.sqrt(torch.where(small, 1.0, sine_square))
    cosine = (one * other).sum(0)
    angle = torch.atan2(torch.where(small, 0.0, sine), cosine)
    return cross * torch.where(small, 1.0, angle / sine), torch.where(
        small & (cosine > 0), sine_square, angle**2
    )


def _square(rows: Tensor) -> Tensor:
    return (rows * rows).sum(0)
