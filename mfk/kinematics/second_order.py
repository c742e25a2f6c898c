"""Second-order differential kinematics, from the Jacobian alone."""

from __future__ import annotations

import torch
from torch import Tensor


def velocity_product(jacobian: Tensor, dq: Tensor) -> Tensor:
    """Second derivative of the tip along a straight line in joint space, (dJ/ds) dq with q(s) = q + s dq.

    A serial chain's geometric Jacobian, columns J_i = (v_i, w_i), contains its own derivative:
    dJ_i/dq_j = (w_j x v_i, w_j x w_i) for j <= i and (w_i x v_j, 0) for j > i. Summed over both joints::

        linear  = sum_i (2 W_i + w_i dq_i) x v_i dq_i        W_i = sum_{j < i} w_j dq_j
        angular = sum_i W_i x w_i dq_i

    It holds for prismatic joints (w_i = 0) too.

    Args:
        jacobian: in the base frame, linear rows first, [..., 6, dof].
        dq: direction in joint space, [..., dof] in rad or m.

    Returns:
        [..., 6], linear (m) over angular (rad) per unit of s squared.

    Raises:
        ValueError: shapes that do not fit.

    Source: Bruyninckx and De Schutter 1996, "Symbolic differentiation of the velocity mapping for a serial
    kinematic chain", Mechanism and Machine Theory 31(2).
    """
    if jacobian.ndim < 2 or jacobian.shape[-2] != 6 or dq.shape != (*jacobian.shape[:-2], jacobian.shape[-1]):
        raise ValueError(
            "jacobian, dq: expected shapes [..., 6, dof] and [..., dof] with equal leading axes, "
            f"got {tuple(jacobian.shape)} and {tuple(dq.shape)}"
        )
    scaled = jacobian * dq.unsqueeze(-2)
    linear, angular = scaled[..., :3, :], scaled[..., 3:, :]
    before = angular.cumsum(-1) - angular
    return torch.cat(
        (
            torch.linalg.cross(2 * before + angular, linear, dim=-2).sum(-1),
            torch.linalg.cross(before, angular, dim=-2).sum(-1),
        ),
        dim=-1,
    )
