"""Motion in the null space: the same pose, nearer to a wanted posture."""

from __future__ import annotations

import torch
from torch import Tensor

from mfk.kinematics.chain import Chain
from mfk.kinematics.fk import pose_and_jacobian
from mfk.kinematics.ik import clip_to_limits
from mfk.kinematics.levenberg import open_limits
from mfk.kinematics.normal_equations import gram, solve_positive
from mfk.kinematics.task_error import Weights, task_distances, task_error, task_jacobian

_STEPS = 40
_LAST = 8  # of them without pull, to meet the tolerance
_RIDGE = 1e-9


def towards(
    chain: Chain,
    q: Tensor,
    target: Tensor,
    wanted: Tensor,
    weights: Weights | None,
    tolerance: tuple[float, float],
) -> Tensor:
    """Solutions q [..., dof] moved in their null space towards `wanted` [..., dof]; [..., dof].

        q <- clip(q + J^+ e + (1 - J^+ J)(wanted - q))

    the Gauss-Newton step for the least |wanted - q|^2 at the target. Joints on a limit that would pass it
    are held. Where the result leaves the tolerance (m, rad) or is no nearer, q is returned as it was.
    """
    before = q
    lower, upper = (x.reshape(-1, *(1,) * (q.ndim - 1)) for x in open_limits(chain, q.device))
    for i in range(_STEPS):
        pose, jacobian = pose_and_jacobian(chain, q)
        error = task_error(pose, target, weights).twist
        columns = task_jacobian(jacobian, target, weights)
        pull = (wanted - q).movedim(-1, 0) if i < _STEPS - _LAST else torch.zeros_like(q.movedim(-1, 0))
        at = q.movedim(-1, 0)
        free = torch.ones_like(at)
        for _ in range(2):
            kept = columns * free.unsqueeze(1)
            pulled = pull * free
            # J^+ (e - J pull) + pull: one solution for both terms.
            left = error - (kept * pulled.unsqueeze(1)).sum(0)
            dq = (kept * solve_positive(gram(kept, _RIDGE), left.unsqueeze(1))[:, 0]).sum(1) + pulled
            held = ((at <= lower) & (dq < 0)) | ((at >= upper) & (dq > 0))
            free = torch.where(held, 0.0, free)
        # At most a third of a radian a step: the null space is curved.
        dq = dq * (0.3 / dq.abs().amax(0)).clamp(max=1.0)
        q = clip_to_limits(chain, q + dq.movedim(0, -1))
    position, rotation = task_distances(chain, q, target, weights)
    good = (position <= tolerance[0]) & (rotation <= tolerance[1])
    good &= (q - wanted).norm(dim=-1) < (before - wanted).norm(dim=-1)
    return torch.where(good.unsqueeze(-1), q, before)
