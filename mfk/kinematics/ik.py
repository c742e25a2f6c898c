"""Differential inverse kinematics: the pose error and one damped least-squares step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.kinematics import fk, rotations
from mfk.kinematics.chain import Chain
from mfk.kinematics.normal_equations import gram, solve_positive


def pose_error(pose: Tensor, target: Tensor) -> Tensor:
    """The twist that carries `pose` to `target`, in the base frame, [..., 6].

        (p_target - p, log(Q_target conj(Q)))    in m and rad, linear first

    Then q + J^+ error approaches the target. Poses are [..., 7] = x y z, qw qx qy qz; the signs of the
    quaternions do not matter. It is smooth but where the angle passes pi.

    Raises:
        TypeError: not float32 or float64 tensors of one dtype.
        ValueError: shapes other than [..., 7], or two different ones.
    """
    _check_poses(pose, target)
    relative = rotations.quaternion_multiply(target[..., 3:], rotations.quaternion_conjugate(pose[..., 3:]))
    return torch.cat((target[..., :3] - pose[..., :3], rotations.quaternion_log(relative)), dim=-1)


def damped_step(jacobian: Tensor, error: Tensor, damping: float) -> Tensor:
    """The damped least-squares step, [..., dof] in rad or m, limits not applied.

        dq = J^T (J J^T + damping^2 I)^-1 e  =  argmin |J dq - e|^2 + damping^2 |dq|^2

    `jacobian` is [..., 6, dof], `error` [..., 6]. With fewer than six joints the dof x dof system
    (J^T J + damping^2 I) dq = J^T e is solved, which is the same step.

    Raises:
        ValueError: shapes that do not fit, or a damping that is not positive and finite.
        TypeError: dtypes that differ.
    """
    j = _columns(jacobian, damping)
    if error.shape != jacobian.shape[:-1]:
        raise ValueError(
            f"error: expected shape {tuple(jacobian.shape[:-1])} beside a jacobian of shape "
            f"{tuple(jacobian.shape)}, got {tuple(error.shape)}"
        )
    if jacobian.dtype != error.dtype:
        raise TypeError(f"error: expected {jacobian.dtype}, the dtype of jacobian, got {error.dtype}")
    e = error.movedim(-1, 0)
    if len(j) < 6:
        dq = solve_positive(gram(j.transpose(0, 1), damping**2), (j * e).sum(1).unsqueeze(1))[:, 0]
    else:
        dq = (j * solve_positive(gram(j, damping**2), e.unsqueeze(1))[:, 0]).sum(1)
    return dq.movedim(0, -1)


def damped_inverse(jacobian: Tensor, damping: float) -> Tensor:
    """The damped pseudo-inverse J^T (J J^T + damping^2 I)^-1, [..., dof, 6], of J [..., 6, dof].

    `damped_step` is its product with an error; take this one where several twists are mapped.

    Raises:
        ValueError: a shape other than [..., 6, dof], or a damping that is not positive and finite.
    """
    j = _columns(jacobian, damping)
    across = j.transpose(0, 1)
    if len(j) < 6:
        return solve_positive(gram(across, damping**2), j).movedim((0, 1), (-2, -1))
    return solve_positive(gram(j, damping**2), across).movedim((0, 1), (-1, -2))


def least_squares_step(chain: Chain, q: Tensor, target: Tensor, damping: float = 1e-2) -> Tensor:
    """One Levenberg-Marquardt step from `q` towards `target`, clipped to the joint limits, [..., dof].

        q_next = clip(q + J^T (J J^T + damping^2 I)^-1 pose_error(forward(q), target))

    `q` is [..., dof] in rad or m, `target` a pose [..., 7] of the tip in the base frame with the same
    leading axes. Continuous joints are not clipped. Values are not checked (see `check_pose`).

    Raises:
        TypeError: not float32 or float64 tensors of one dtype.
        ValueError: shapes that do not fit, or a damping that is not positive.
    """
    pose, jacobian = fk.pose_and_jacobian(chain, q)
    _check_poses(pose, target)
    moved = q + damped_step(jacobian, pose_error(pose, target), damping)
    return clip_to_limits(chain, moved)


def clip_to_limits(chain: Chain, q: Tensor) -> Tensor:
    """Each joint clipped to its range, [..., dof]; continuous joints pass through.

    In float32 the bounds are the nearest numbers inside the range.
    """
    fk.check_joints(chain, q)
    single = q.dtype == torch.float32
    lower = chain.lower_float32 if single else chain.lower_limits
    upper = chain.upper_float32 if single else chain.upper_limits
    columns = [
        column if endless else column.clamp(low, high)
        for column, endless, low, high in zip(q.unbind(-1), chain.continuous, lower, upper, strict=True)
    ]
    return torch.stack(columns, dim=-1)


def unit_pose(pose: Tensor) -> Tensor:
    """A pose [..., 7] with its quaternion divided by its length, which `check_pose` lets be off a little."""
    return torch.cat((pose[..., :3], pose[..., 3:] / pose[..., 3:].norm(dim=-1, keepdim=True)), dim=-1)


def check_pose(pose: Tensor, name: str = "target") -> None:
    """Raise unless `pose` is [..., 7], finite, with quaternions of norm 1 within 1e-3.

    It reads the values on the host: call it where data enter, not in a training step.
    """
    if not isinstance(pose, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor [..., 7], got {describe(pose)}")
    if not pose.is_floating_point():
        raise TypeError(f"{name}: expected floating-point numbers, got {pose.dtype}")
    if pose.ndim == 0 or pose.shape[-1] != 7:
        raise ValueError(f"{name}: expected shape [..., 7] = x y z, qw qx qy qz, got {tuple(pose.shape)}")
    rows = pose.detach().reshape(-1, 7)
    finite = torch.isfinite(rows).all(-1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(f"{name}: expected finite numbers, got {rows[row].tolist()} in row {row}")
    norm = rows[:, 3:].double().norm(dim=-1)
    off = (norm - 1.0).abs() > 1e-3
    if bool(off.any()):
        row = int(off.nonzero()[0])
        raise ValueError(
            f"{name}: expected unit quaternions (qw qx qy qz), got norm {float(norm[row]):.6g} in row {row}"
        )


def _columns(jacobian: Tensor, damping: float) -> Tensor:
    """The Jacobian's columns, [dof, 6, ...]: the order in which `fk` lays them out."""
    if not (isinstance(damping, int | float) and math.isfinite(damping) and damping > 0):
        raise ValueError(f"damping: expected a positive number, got {damping!r}")
    if jacobian.ndim < 2 or jacobian.shape[-2] != 6:
        raise ValueError(f"jacobian: expected shape [..., 6, dof], got {tuple(jacobian.shape)}")
    return jacobian.movedim((-1, -2), (0, 1))


def _check_poses(pose: Tensor, target: Tensor) -> None:
    for name, value in (("pose", pose), ("target", target)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}: expected a tensor [..., 7], got {describe(value)}")
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}: expected float32 or float64, got {value.dtype}")
    if pose.ndim == 0 or pose.shape[-1] != 7:
        raise ValueError(f"pose: expected shape [..., 7], got {tuple(pose.shape)}")
    if target.shape != pose.shape:
        raise ValueError(
            f"target: expected the shape of the pose, {tuple(pose.shape)}, got {tuple(target.shape)}"
        )
    if target.dtype != pose.dtype:
        raise TypeError(f"target: expected {pose.dtype}, got {target.dtype}")
