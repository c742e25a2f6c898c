"""One Levenberg-Marquardt step that keeps the joint limits, for many configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from mfk.core.compiler import jit
from mfk.kinematics.chain import Chain
from mfk.kinematics.fk import pose_and_jacobian
from mfk.kinematics.normal_equations import gram, solve_positive
from mfk.kinematics.task_error import Weights, task_error, task_jacobian

Step = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(q [dof, n], targets [n, 7], lower, upper [dof, n or 1]) -> (the next q, position^2, rotation^2 at q)."""

_DAMPING = 0.05  # times the squared error
_LEAST_RIDGE = 1e-9


def levenberg_marquardt(chain: Chain, weights: Weights | None, jitted: bool) -> Step:
    """One step that keeps the limits, for many configurations.

        dq = J^T (J J^T + lambda I)^-1 e,    lambda = 0.05 |e|^2 + 1e-9,    q <- clip(q + dq)

    Joints that lie on a limit and would pass it are held, and the step is solved again without them.

    Source: Chan and Lawrence 1988, "General inverse kinematics with the error damped pseudoinverse", ICRA,
    for the damping.
    """
    return _jitted(chain, weights) if jitted else _plain(chain, weights)


def open_limits(chain: Chain, device: torch.device) -> tuple[Tensor, Tensor]:
    """What a step keeps to, [dof] each, float64: the limits, and none for a continuous joint."""
    endless = torch.tensor(chain.continuous, device=device)
    lower, upper = chain.lower.to(device), chain.upper.to(device)
    return torch.where(endless, -torch.inf, lower), torch.where(endless, torch.inf, upper)


@lru_cache(maxsize=32)
def _jitted(chain: Chain, weights: Weights | None) -> Step:
    return jit(_plain(chain, weights))


def _plain(chain: Chain, weights: Weights | None) -> Step:
    def step(q: Tensor, target: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pose, jacobian = pose_and_jacobian(chain, q.movedim(0, -1))
        error = task_error(pose, target, weights)
        columns = task_jacobian(jacobian, target, weights)
        ridge = _DAMPING * (error.twist * error.twist).sum(0) + _LEAST_RIDGE
        dq = _least_squares(columns, error.twist, ridge)
        held = ((q <= lower) & (dq < 0)) | ((q >= upper) & (dq > 0))
        columns = columns * (~held).to(q.dtype).unsqueeze(1)
        dq = _least_squares(columns, error.twist, ridge)
        return torch.minimum(torch.maximum(q + dq, lower), upper), error.position, error.rotation

    return step


def _least_squares(columns: Tensor, error: Tensor, ridge: Tensor) -> Tensor:
    """J^T (J J^T + ridge)^-1 e, [dof, ...], of columns [dof, 6, ...]."""
    return (columns * solve_positive(gram(columns, ridge), error.unsqueeze(1))[:, 0]).sum(1)
