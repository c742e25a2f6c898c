"""The derivative of a solution with respect to its target, by the implicit function theorem."""

from __future__ import annotations

import torch
from torch import Tensor

from mfk.kinematics import rotations
from mfk.kinematics.chain import Chain
from mfk.kinematics.fk import jacobian
from mfk.kinematics.task_error import Weights, in_target, weigh


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


def solution_map(chain: Chain, q: Tensor, target: Tensor, weights: Weights | None, holds: Tensor) -> Tensor:
    """The matrix [..., dof, 6] from twists of the target to changes of the solution q [..., dof].

        (S J_free)^+ S,    S the directions that count (all six without weights)

    with the undamped pseudo-inverse: of all changes that follow the target, the smallest. `holds` [...] tells
    where q is a solution; elsewhere the map is zero. A joint that lies on a limit is held: its row is zero,
    the one-sided derivative towards which the limit does not give.
    """
    lower, upper = chain.lower.to(q.device), chain.upper.to(q.device)
    at_limit = ((q <= lower) | (q >= upper)) & ~torch.tensor(chain.continuous, device=q.device)
    free = (~at_limit & holds.unsqueeze(-1)).to(q.dtype)
    columns = jacobian(chain, q) * free.unsqueeze(-2)
    if weights is None:
        return free.unsqueeze(-1) * torch.linalg.pinv(columns)
    axes = rotations.quaternion_to_matrix(target[..., 3:]).movedim((-2, -1), (0, 1))
    rows = weigh(in_target(columns.movedim((-2, -1), (0, 1)), axes), weights).movedim((0, 1), (-2, -1))
    eye = torch.eye(6, dtype=q.dtype, device=q.device).expand(*q.shape[:-1], 6, 6)
    selected = weigh(in_target(eye.movedim((-2, -1), (0, 1)), axes), weights).movedim((0, 1), (-2, -1))
    return free.unsqueeze(-1) * (torch.linalg.pinv(rows) @ selected)
