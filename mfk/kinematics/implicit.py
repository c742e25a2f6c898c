"""The derivative of a solution with respect to its target, by the implicit function theorem."""

from __future__ import annotations

import torch
from torch import Tensor

from mfk.kinematics import rotations
from mfk.kinematics.chain import Chain
from mfk.kinematics.fk import pose_and_jacobian
from mfk.kinematics.task_error import Weights, task_jacobian


def pose_twist(target: Tensor, tangent: Tensor) -> Tensor:
    """The twist [..., 6] (m, rad; base frame) of a tangent [..., 7] at a pose [..., 7].

    Angular velocity is 2 vec(dQ conj(Q)) / |Q|^2, blind to changes of the quaternion's length.
    """
    q, dq = target[..., 3:], tangent[..., 3:]
    square = (q * q).sum(-1, keepdim=True)
    product = rotations.quaternion_multiply(dq, rotations.quaternion_conjugate(q))
    return torch.cat((tangent[..., :3], 2.0 * product[..., 1:] / square), dim=-1)


def pose_cotangent(target: Tensor, cotangent: Tensor) -> Tensor:
    """The transpose of `pose_twist`: a cotangent [..., 7] of the pose for one [..., 6] of the twist."""
    q = target[..., 3:]
    square = (q * q).sum(-1, keepdim=True)
    vector = torch.cat((torch.zeros_like(square), 2.0 * cotangent[..., 3:] / square), dim=-1)
    return torch.cat((cotangent[..., :3], rotations.quaternion_multiply(vector, q)), dim=-1)


def solution_map(
    chain: Chain,
    q: Tensor,
    target: Tensor,
    weights: Weights | None,
    converged: Tensor,
    limits: tuple[Tensor, Tensor],
) -> Tensor:
    """The matrix [..., dof, 6] from twists of the target to changes of the solution q [..., dof].

        (S J_free)^+ S A,    S the directions that count (all six without weights)

    with the undamped pseudo-inverse: of all changes that follow the target, the smallest. A is the identity,
    but where a position is free and the tip lies d away from the target: as the target's axes turn, what
    counts as an error does so too, by d x omega.

    `converged` [...] tells where q is a solution; elsewhere the map is zero. A joint that lies on one of the
    `limits` ([dof] each) is held: its row is zero, the one-sided derivative towards which the limit does not
    give.
    """
    lower, upper = limits
    free = ((q > lower) & (q < upper) & converged.unsqueeze(-1)).to(q.dtype)
    pose, columns = pose_and_jacobian(chain, q)
    columns = columns * free.unsqueeze(-2)
    if weights is None:
        return free.unsqueeze(-1) * torch.linalg.pinv(columns)

    def selected(rows: Tensor) -> Tensor:
        """The rows that count, of a matrix [..., 6, n]."""
        return task_jacobian(rows, target, weights).movedim((0, 1), (-1, -2))

    away = (target[..., :3] - pose[..., :3]).unsqueeze(-2)
    eye = torch.eye(6, dtype=q.dtype, device=q.device).expand(*q.shape[:-1], 6, 6)
    turned = torch.linalg.cross(away.expand(*q.shape[:-1], 3, 3), eye[..., 3:, 3:], dim=-1).mT
    seen = torch.cat((torch.cat((eye[..., :3, :3], turned), -1), eye[..., 3:, :]), dim=-2)
    return free.unsqueeze(-1) * (torch.linalg.pinv(selected(columns)) @ selected(seen))
