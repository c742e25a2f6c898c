"""A trained network in use: from poses to joints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core.types import Model, Params, Rows
from mfk.data import IKDataConfig, draw_ik
from mfk.kinematics import Chain, check_pose, clip_to_limits, least_squares_step
from mfk.losses import sample
from mfk.tasks.ik import PoseErrors, ik_field, pose_errors

DAMPING = 1e-2
"""Of least-squares steps, in m and rad: the usual lambda^2 = 1e-4."""


class Solution(NamedTuple):
    """The best configuration found for a pose."""

    q: Tensor  # [dof], float64, rad or m
    errors: PoseErrors  # of its pose, []


def solve_pose(
    chain: Chain,
    model: Model,
    params: Params,
    buffers: Params,
    pose: Tensor,
    reference: Tensor,
    steps: int = 1,
) -> Tensor:
    """Joints for target poses by the network, clipped to the limits.

    Args:
        chain: the robot.
        model: as from `ik_model`.
        params: trained parameters.
        buffers: the model's buffers.
        pose: targets, [..., 7]: x y z [m], qw qx qy qz in the base frame; checked (`check_pose`).
        reference: configuration to start from, [..., dof] in rad or m.
        steps: network steps.

    Returns:
        q, [..., dof], float32.

    Raises:
        ValueError: a pose that is not finite or not unit, or shapes that do not fit.
    """
    check_pose(pose, "pose")
    u = ik_field(model, params, buffers, pose.float())
    with torch.no_grad():
        return clip_to_limits(chain, sample(u, reference.float(), steps))


def refine(chain: Chain, q: Tensor, pose: Tensor, dampings: Sequence[float]) -> Tensor:
    """Damped least-squares (Levenberg-Marquardt) steps from q [..., dof] towards pose [..., 7].

    One step for each damping (m and rad), in float64, inside the joint limits; returns [..., dof].
    """
    q, pose = q.double(), pose.double()
    with torch.no_grad():
        for damping in dampings:
            q = least_squares_step(chain, q, pose, damping)
    return q


def starts(chain: Chain, reference: Sequence[float] | None, count: int = 256) -> Tensor:
    """Configurations to solve from, [rows, dof]: the reference, or `count` of them within the limits.

    Raises:
        ValueError: a reference of another length than the chain's dof, or outside the limits.
    """
    if reference is None:
        return draw_ik(chain, IKDataConfig(), 0, 0, Rows.all(count)).q_reference
    if len(reference) != chain.dof:
        raise ValueError(f"reference: expected {chain.dof} numbers, one a joint, got {len(reference)}")
    q = torch.tensor(reference, dtype=torch.float64)
    inside = (q >= chain.lower) & (q <= chain.upper)
    if not bool(inside.all()):
        joint = chain.joint_names[int((~inside).nonzero()[0])]
        raise ValueError(f"reference: {joint}: expected a number within its limits, got {tuple(reference)}")
    return q.float().unsqueeze(0)


def solve_best(
    chain: Chain,
    model: Model,
    params: Params,
    buffers: Params,
    pose: Tensor,
    references: Tensor,
    *,
    steps: int = 1,
    refinements: int = 10,
) -> Solution:
    """Solve one pose from several references, refine each, and keep the best.

    Args:
        chain: the robot.
        model: as from `ik_model`.
        params: trained parameters.
        buffers: the model's buffers.
        pose: target, [7].
        references: configurations to start from, [rows, dof], as from `starts`.
        steps: network steps.
        refinements: least-squares steps after them, >= 0.

    Raises:
        ValueError: as `solve_pose`, or a negative number of refinements.
    """
    poses = pose.expand(len(references), 7)
    q = solve_pose(chain, model, params, buffers, poses, references, steps)
    return best_of(chain, q, pose, refinements)[0]


def best_of(chain: Chain, q: Tensor, pose: Tensor, refinements: int) -> tuple[Solution, int]:
    """Refine the configurations q [rows, dof] for one pose [7]; the best of them, and its row.

    Raises:
        ValueError: a negative number of refinements.
    """
    if refinements < 0:
        raise ValueError(f"refine: expected at least 0, got {refinements}")
    poses = pose.expand(len(q), 7)
    q = refine(chain, q, poses, [DAMPING] * refinements)
    errors = pose_errors(chain, q, poses)
    # A degree counts as much as a millimetre.
    best = int((errors.position * 1e3 + torch.rad2deg(errors.rotation)).argmin())
    return Solution(q[best], PoseErrors(errors.position[best], errors.rotation[best])), best
