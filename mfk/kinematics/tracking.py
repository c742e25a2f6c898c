"""Following a path of poses, joint by joint within its speed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core.compiler import LEAST_ROWS, refuse_trace
from mfk.core.types import describe
from mfk.kinematics.chain import Chain
from mfk.kinematics.fk import check_chain, check_joints
from mfk.kinematics.ik import check_pose, clip_to_limits, unit_pose
from mfk.kinematics.levenberg import Step, levenberg_marquardt, open_limits
from mfk.kinematics.task_error import Weights, check_weights, task_distances


class Track(NamedTuple):
    """Joints along a path, and where something kept them from it."""

    q: Tensor  # [..., T, dof], the poses' dtype, rad or m
    reached: Tensor  # [..., T], bool: both errors of this q, in float64, are within the tolerance
    position_error: Tensor  # [..., T], float64, m
    rotation_error: Tensor  # [..., T], float64, rad
    at_velocity_limit: Tensor  # [..., T, dof], bool: the joint moves as fast as it may
    at_joint_limit: Tensor  # [..., T, dof], bool: the joint lies on a limit of its range


def track(
    chain: Chain,
    poses: Tensor,
    q0: Tensor,
    dt: float,
    *,
    tol: float = 1e-6,
    max_iterations: int = 10,
    velocity: Tensor | None = None,
    weights: tuple[float, ...] | None = None,
    jit: bool = True,
) -> Track:
    """Joints that follow a path of poses from `q0`, none of them faster than it may.

    At each time the last configuration is where the search begins, and it keeps to the box

        max(lower, q - velocity dt) <= q_next <= min(upper, q + velocity dt)

    so that what is too fast, or out of reach, is followed as far as its joints allow, and caught up with
    later: `reached`, `at_velocity_limit` and `at_joint_limit` say where. The search is `solve`'s step, from
    one start, in float64. A continuous joint counts its turns. The result carries no derivative.

    Args:
        chain: the robot.
        poses: the path, [..., T, 7] = x y z [m], qw qx qy qz of the tip in the base frame, one every `dt`.
        q0: configuration one `dt` before the first pose, [..., dof], within the limits; rad or m.
        dt: time between poses, s.
        tol: how near is near enough to go on, m and rad.
        max_iterations: steps for one pose, at most; what is nearest by then is taken.
        velocity: greatest speeds, [dof] in rad/s or m/s; None: the robot's (`chain.velocity`, inf where its
            description states none).
        weights: as for `solve`.
        jit: compile the step with `mfk.jit`: a few seconds once, and then over a thousand poses a second.

    Raises:
        TypeError: a tensor of another dtype, or something that is no tensor.
        ValueError: shapes that do not fit, poses that are not finite or no unit quaternions, `q0` outside the
            limits, numbers out of range.
        mfk.core.TraceError: inside `mfk.jit`.
    """
    refuse_trace("mfk.kinematics.track", "call it outside")
    for name, number in (("dt", dt), ("tol", tol)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
            raise ValueError(f"{name}: expected a positive number, got {number!r}")
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 1:
        raise ValueError(f"max_iterations: expected a whole number >= 1, got {max_iterations!r}")
    check_chain(chain)
    check_pose(poses, "poses")
    if poses.ndim < 2 or poses.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"poses: expected a float32 or float64 tensor [..., T, 7], got {describe(poses)}")
    check_joints(chain, q0, "q0")
    if q0.shape[:-1] != poses.shape[:-2]:
        raise ValueError(
            f"q0: expected shape {(*poses.shape[:-2], chain.dof)} beside poses {tuple(poses.shape)}, "
            f"got {tuple(q0.shape)}"
        )
    bounds = open_limits(chain, poses.device)
    _check_inside(chain, q0, bounds)
    reach = _speeds(chain, velocity, poses.device) * dt
    kept = check_weights(weights)
    with torch.no_grad():
        return _follow(chain, poses, q0, bounds, reach, tol, max_iterations, kept, jit)


def _follow(
    chain: Chain,
    poses: Tensor,
    q0: Tensor,
    bounds: tuple[Tensor, Tensor],
    reach: Tensor,
    tol: float,
    max_iterations: int,
    weights: Weights | None,
    jit: bool,
) -> Track:
    count = math.prod(poses.shape[:-2])
    path = poses.double().reshape(count, *poses.shape[-2:])
    path = unit_pose(path)
    step = levenberg_marquardt(chain, weights, jit)
    lower, upper = (x.unsqueeze(-1) for x in bounds)
    reach = reach.unsqueeze(-1)
    q = q0.double().reshape(count, chain.dof).T.contiguous()
    moving = path
    if jit and 0 < count < LEAST_ROWS:  # the compiler makes a program for rows of many, which is the fast one
        q = torch.cat((q, q[:, :1].expand(-1, LEAST_ROWS - count)), 1)
        moving = torch.cat((path, path[:1].expand(LEAST_ROWS - count, -1, -1)))
    found, fast, bound = [], [], []
    for target in moving.unbind(1):
        low, high = torch.maximum(lower, q - reach), torch.minimum(upper, q + reach)
        q = _reach(step, q, target.contiguous(), low, high, tol, max_iterations)
        found.append(q)
        fast.append(((q <= low) & (low > lower)) | ((q >= high) & (high < upper)))
        bound.append((q <= lower) | (q >= upper))
    shape = (*poses.shape[:-1], chain.dof)

    def over_time(columns: list[Tensor]) -> Tensor:
        if not columns:
            return q.new_empty(shape)
        return torch.stack([x[:, :count] for x in columns]).movedim((1, 2), (-1, 0)).reshape(shape)

    joints = clip_to_limits(chain, over_time(found).to(poses.dtype))
    position, rotation = task_distances(chain, joints, path.reshape(poses.shape), weights)
    reached = (position <= tol) & (rotation <= tol)
    return Track(joints, reached, position, rotation, over_time(fast).bool(), over_time(bound).bool())


def _reach(
    step: Step, q: Tensor, target: Tensor, low: Tensor, high: Tensor, tol: float, max_iterations: int
) -> Tensor:
    """From q [dof, n] towards targets [n, 7] inside a box, as near as the steps come."""
    best, least = q, torch.full_like(q[0], torch.inf)
    for moves in range(max_iterations + 1):
        after, position, rotation = step(q, target, low, high)
        error = torch.maximum(position, rotation)
        nearer = error < least
        best, least = torch.where(nearer, q, best), torch.where(nearer, error, least)
        if moves == max_iterations or not least.numel() or float(least.max()) <= tol**2:
            break
        q = after
    return best


def _speeds(chain: Chain, velocity: Tensor | None, device: torch.device) -> Tensor:
    """Greatest speeds, [dof], float64."""
    if velocity is None:
        return chain.velocity.to(device)
    if not isinstance(velocity, Tensor) or not velocity.is_floating_point():
        raise TypeError(f"velocity: expected a tensor of floats [{chain.dof}], got {describe(velocity)}")
    if velocity.shape != (chain.dof,):
        raise ValueError(f"velocity: expected shape [{chain.dof}], got {tuple(velocity.shape)}")
    if not bool((velocity > 0).all()):
        raise ValueError(f"velocity: expected positive numbers, got {velocity.tolist()}")
    return velocity.double().to(device)


def _check_inside(chain: Chain, q: Tensor, bounds: tuple[Tensor, Tensor]) -> None:
    lower, upper = (bound.to(q.dtype) for bound in bounds)
    outside = ~((q >= lower) & (q <= upper))
    if bool(outside.any()):
        *row, joint = outside.nonzero()[0].tolist()
        raise ValueError(
            f"q0: expected {chain.joint_names[joint]} within {chain.lower_limits[joint]:.6g} and "
            f"{chain.upper_limits[joint]:.6g}, got {float(q[(*row, joint)]):.6g}"
        )
