"""Batched inverse kinematics: from poses to joints, verified, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.compiler import refuse_trace
from mfk.core.types import Rows, describe
from mfk.kinematics.chain import Chain
from mfk.kinematics.fk import check_chain
from mfk.kinematics.ik import check_pose, clip_to_limits, unit_pose
from mfk.kinematics.implicit import pose_cotangent, pose_twist, solution_map
from mfk.kinematics.lanes import Search, search
from mfk.kinematics.levenberg import levenberg_marquardt, open_limits
from mfk.kinematics.posture import towards
from mfk.kinematics.seed_table import nearest_seeds, seed_table
from mfk.kinematics.task_error import Weights, check_weights, task_distances


class SeedsFrom(NamedTuple):
    """Seeds that a function makes from poses [n, 7] and starts [n, dof], or None where there are none."""

    make: Callable[[Tensor, Tensor | None], Tensor]


Seeds: TypeAlias = Literal["table", "random"] | Tensor | Callable[[Tensor], Tensor] | SeedsFrom

_BLOCK = 65_536  # poses searched for together; it bounds the memory
_FROM_TABLE = 4
_CANDIDATES = 16  # of which the nearest is taken


class Solution(NamedTuple):
    """What `solve` found; with several solutions wanted, each field has an axis for them after the others."""

    q: Tensor  # [..., dof], the target's dtype, rad or m
    converged: Tensor  # [...], bool: both errors of this very q, in float64, are within the tolerance
    position_error: Tensor  # [...], float64, m
    rotation_error: Tensor  # [...], float64, rad
    iterations: Tensor  # [...], int64: steps that all starts for this pose took together


class _Plan(NamedTuple):
    """Everything but tensors."""

    chain: Chain
    count: int
    tolerance: tuple[float, float]
    seed: int
    seeds: Literal["table", "random"] | Callable[[Tensor], Tensor] | SeedsFrom
    weights: Weights | None
    nearest: bool
    separation: float
    starts: int
    jit: bool


def solve(
    chain: Chain,
    target: Tensor,
    q0: Tensor | None = None,
    *,
    num_solutions: int = 1,
    tol: float | tuple[float, float] = 1e-6,
    seed: int = 0,
    seeds: Seeds = "table",
    weights: tuple[float, ...] | None = None,
    nearest: bool = False,
    separation: float = 0.01,
    max_starts: int = 100,
    jit: bool = False,
) -> Solution:
    """Joints whose tip is at the target poses, inside the joint limits.

    Levenberg-Marquardt from several starts, all poses at once; a pose that is done costs nothing more, and
    one that is not gets further starts, several beside each other, until `max_starts` of them have failed.
    The search computes in float64, whatever the target's dtype. What is returned is checked once more, as
    returned, in float64: `converged` is never claimed of anything else. A pose that is out of reach comes
    back unconverged with the best configuration found.

    Differentiable with respect to `target`, by the implicit function theorem, forwards and backwards and
    under `vmap`::

        dq = J_free^+ (dp, omega)

    with the undamped pseudo-inverse of the Jacobian: of all changes that follow the target, the smallest
    (no motion in the null space). A joint that lies on a limit is held, and has derivative zero: the
    one-sided derivative for targets that keep it there. Where a row is not converged its derivative is zero.
    There is none with respect to `q0`.

    Args:
        chain: the robot.
        target: poses [..., 7] = x y z [m], qw qx qy qz, of the tip in the base frame; float32 or float64.
            Quaternions may be off unit length by 1e-3, and either sign is the same rotation.
        q0: where the first start of each pose begins, [dof], or [..., dof] with the target's axes; rad or m.
            What that start comes to is the answer; others are made only where it fails.
        num_solutions: how many distinct ones for each pose. With more than 1 every field of the result has
            an axis of that length; where fewer were found the rest is NaN, unconverged, with infinite errors.
        tol: a solution's error is at most this many m and rad; or a pair, one for each.
        seed: of the starts; the same arguments give the same result.
        seeds: the starts that come first: "table", the nearest of 100,000 reachable poses; "random", none,
            so that all are spread evenly over the joints' ranges, as later ones always are; a tensor
            [..., m, dof] of configurations; a function that makes [n, m, dof] of them from poses [n, 7]; or
            `SeedsFrom` one that is given q0 [n, dof] (or None) too.
        weights: of the errors along the target's x y z and about them; 0 leaves one free: (1, 1, 1, 0, 0, 0)
            position alone, (1, 1, 1, 1, 1, 0) any turn about the tool's z. None: all six alike. They tell
            what the search cares for most; a solution is within the tolerance in all that count. A weight is
            0, or at least a thousandth of the greatest.
        nearest: of up to 16 solutions, each moved in its null space towards `q0`, the nearest to `q0`; with
            several wanted, these come in the order of their distance, and none is moved. It needs `q0`.
        separation: solutions are distinct where some joint differs by at least this much (rad or m; turns by
            a full circle are no difference). At least 1e-5 for a float32 target.
        max_starts: starts without a (new) solution after which a pose is given up. One of the first 20 takes
            at most 40 steps, a later one 150; most are given up much sooner.
        jit: compile the step with `mfk.jit`: about twice as fast on 10^4 poses, after a few seconds at the
            first call (benchmarks/README.md).

    Raises:
        TypeError: a tensor of another dtype, or something that is no tensor.
        ValueError: shapes that do not fit, a pose that is not finite or no unit quaternion (with its row),
            numbers out of range, or `q0` or seeds that are not finite.
        NotImplementedError: a forward derivative of a forward derivative, which torch gets wrong here.
        mfk.core.TraceError: inside `mfk.jit`: a search ends when it is done, which a graph cannot.
            torch.compile is not supported either.
    """
    refuse_trace("mfk.kinematics.solve", "call it outside, or take some `least_squares_step` inside")
    check_chain(chain)
    tolerance = _pair(tol)
    for name, value in (("num_solutions", num_solutions), ("max_starts", max_starts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected a whole number, got {seed!r}")
    if not isinstance(nearest, bool):
        raise TypeError(f"nearest: expected True or False, got {nearest!r}")
    if nearest and q0 is None:
        raise ValueError("nearest: expected q0, the configuration to be near to, got None")
    _check_target(target)
    _check_separation(separation, target.dtype)
    batch = target.shape[:-1]
    if q0 is not None:
        single = isinstance(q0, Tensor) and q0.ndim == 1
        _check_configurations(chain, "q0", q0, (chain.dof,) if single else (*batch, chain.dof))
        q0 = q0.expand(*batch, chain.dof)
    given = None
    if isinstance(seeds, Tensor):
        per_pose = seeds.shape[-2] if seeds.ndim >= 2 else 0
        _check_configurations(chain, "seeds", seeds, (*batch, per_pose, chain.dof))
        given, seeds = seeds, "random"
    elif not (callable(seeds) or isinstance(seeds, SeedsFrom) or _named(seeds)):
        raise ValueError(f"seeds: expected 'table', 'random', a tensor or a function, got {seeds!r}")
    if _forward_levels() > 1:
        raise NotImplementedError(
            "mfk.kinematics.solve: torch loses the derivative of a custom function's forward derivative; "
            "take one of the two in reverse mode, as jacfwd(jacrev(f)) or torch.func.hessian do"
        )
    plan = _Plan(
        chain,
        num_solutions,
        tolerance,
        seed,
        seeds,
        check_weights(weights),
        nearest,
        separation,
        max_starts,
        jit,
    )
    return Solution(*cast(Any, _Solve.apply(target, q0, given, plan)))


class _Solve(torch.autograd.Function):
    """`solve` with its derivative; the plan is no tensor."""

    @staticmethod
    def forward(
        target: Tensor, q0: Tensor | None, given: Tensor | None, plan: _Plan
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        check_pose(target)
        for name, value in (("q0", q0), ("seeds", given)):
            if value is not None and not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name}: expected finite numbers, got {describe(value)} with others")
        with torch.no_grad():
            return tuple(_solve(target, q0, given, plan))  # type: ignore[return-value]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        target, _, _, plan = inputs
        q, converged, *others = output
        ctx.plan = plan
        ctx.mark_non_differentiable(converged, *others)
        ctx.save_for_backward(target, q, converged)
        ctx.save_for_forward(target, q, converged)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:  # type: ignore[override]
        target, q, converged = ctx.saved_tensors
        matrix = _map(target, q, converged, ctx.plan)
        twist = (matrix.mT @ cotangents[0].double().unsqueeze(-1)).squeeze(-1)
        if ctx.plan.count > 1:
            twist = twist.sum(-2)
        return pose_cotangent(target.double(), twist).to(target.dtype), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:  # type: ignore[override]
        target, q, converged = ctx.saved_tensors
        twist = pose_twist(target.double(), tangents[0].double())
        if ctx.plan.count > 1:
            twist = twist.unsqueeze(-2)
        matrix = _map(target, q, converged, ctx.plan)
        return (matrix @ twist.unsqueeze(-1)).squeeze(-1).to(q.dtype), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, target: Tensor, q0: Any, given: Any, plan: _Plan) -> Any:
        """The mapped axis becomes a batch axis."""

        def front(x: Tensor | None, axis: int | None) -> Tensor | None:
            if x is None:
                return None
            return x.unsqueeze(0).expand(info.batch_size, *x.shape) if axis is None else x.movedim(axis, 0)

        return _Solve.apply(
            front(target, in_dims[0]), front(q0, in_dims[1]), front(given, in_dims[2]), plan
        ), (0, 0, 0, 0, 0)


def _solve(target: Tensor, q0: Tensor | None, given: Tensor | None, plan: _Plan) -> Solution:
    chain, device = plan.chain, target.device
    batch = target.shape[:-1]
    poses = unit_pose(target.double()).reshape(-1, 7)
    count = _CANDIDATES if plan.nearest and plan.count == 1 else plan.count
    offset = rng.uniform(rng.key(plan.seed, "starts"), Rows.all(1), (chain.dof,), torch.float64)[0].to(device)
    step = levenberg_marquardt(chain, plan.weights, plan.jit)
    redundant = chain.dof > (6 if plan.weights is None else sum(w > 0 for w in plan.weights))
    # Rounding to float32 costs a part of the tolerance.
    margin = 1.0 if target.dtype == torch.float64 else 0.25
    searched = (plan.tolerance[0] * margin, plan.tolerance[1] * margin)
    parts = []
    for begin in range(0, len(poses), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        wanted = poses[rows]
        # q0 is the first start, and the seeds follow it.
        centre = None
        if q0 is not None:
            centre = clip_to_limits(chain, q0.reshape(-1, 1, chain.dof)[rows].double())
        starts = [] if centre is None else [centre]
        if given is not None:
            starts.append(given.reshape(len(poses), -1, chain.dof)[rows].double())
        else:
            starts.append(_seeds(plan, wanted, None if centre is None else centre[:, 0]).double())
        seeds = clip_to_limits(chain, torch.cat(starts, dim=1))
        alone = q0 is not None
        task = Search(wanted, seeds, count, searched, plan.separation, plan.starts, redundant, alone, offset)
        found = search(chain, step, task)
        q = found.q
        # Of a pose without a solution, the best that was found.
        none = found.number == 0
        q[:, 0] = torch.where(none.unsqueeze(-1), found.best, q[:, 0])
        q = _unwound(chain, q, centre)
        if plan.nearest:
            q = _nearest(plan, q, wanted, cast(Tensor, centre))
        q = clip_to_limits(chain, q.to(target.dtype))
        position, rotation = task_distances(
            chain, q, wanted.unsqueeze(1).expand(*q.shape[:2], 7), plan.weights
        )
        position = torch.where(position.isnan(), torch.inf, position)
        rotation = torch.where(rotation.isnan(), torch.inf, rotation)
        converged = (position <= plan.tolerance[0]) & (rotation <= plan.tolerance[1])
        steps = found.steps.unsqueeze(1).expand(position.shape)
        parts.append((q, converged, position, rotation, steps))
    if not parts:
        empty = poses.new_empty(0, plan.count)
        parts.append((target.new_empty(0, plan.count, chain.dof), empty.bool(), empty, empty, empty.long()))
    several = () if plan.count == 1 else (plan.count,)
    q, *others = (torch.cat(x) for x in zip(*parts, strict=True))
    return Solution(
        q.reshape((*batch, *several, chain.dof)), *(x.reshape((*batch, *several)) for x in others)
    )


def _seeds(plan: _Plan, target: Tensor, q0: Tensor | None) -> Tensor:
    """The first starts, [n, m, dof]."""
    chain = plan.chain
    if plan.seeds == "random":
        return target.new_empty(len(target), 0, chain.dof)
    if plan.seeds == "table":
        turned = 0.3 if plan.weights is None or all(plan.weights[3:]) else 0.0
        return nearest_seeds(seed_table(chain, target.device), target, _FROM_TABLE, turned)
    # A copy: the function may write to what it is given.
    if isinstance(plan.seeds, SeedsFrom):
        made = plan.seeds.make(target.clone(), None if q0 is None else q0.clone())
    else:
        made = cast(Callable[[Tensor], Tensor], plan.seeds)(target.clone())
    if (
        not isinstance(made, Tensor)
        or made.ndim != 3
        or (made.shape[0], made.shape[2]) != (len(target), chain.dof)
    ):
        raise ValueError(
            f"seeds: expected the function to return [{len(target)}, m, {chain.dof}], got {describe(made)}"
        )
    if made.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"seeds: expected the function to return float32 or float64, got {made.dtype}")
    if not bool(torch.isfinite(made).all()):
        raise ValueError("seeds: expected the function to return finite numbers, got others")
    return made


def _nearest(plan: _Plan, q: Tensor, target: Tensor, q0: Tensor) -> Tensor:
    """The solutions [n, count, dof] nearest to q0 [n, 1, dof], in the order of their distance."""
    # Of a continuous joint q0 is the nearest of all its turns.
    endless = torch.tensor(plan.chain.continuous, device=q.device)

    def wanted(q: Tensor) -> Tensor:
        return torch.where(endless, q0 + 2 * math.pi * torch.round((q - q0) / (2 * math.pi)), q0)

    if plan.count == 1:
        poses = target.unsqueeze(1).expand(*q.shape[:2], 7)
        moved = towards(plan.chain, q, poses, wanted(q), plan.weights, plan.tolerance)
        q = _unwound(plan.chain, moved, q0)
    distance = (q - wanted(q)).norm(dim=-1)
    distance = torch.where(distance.isnan(), torch.inf, distance)
    order = torch.argsort(distance, dim=1, stable=True)[:, : plan.count]
    return torch.gather(q, 1, order.unsqueeze(-1).expand(-1, -1, q.shape[-1]))


def _unwound(chain: Chain, q: Tensor, centre: Tensor | None) -> Tensor:
    """Revolute joints moved by full turns: as near to `centre` (or 0) as the limits allow."""
    columns = []
    for i, kind in enumerate(chain.kinds):
        x = q[..., i]
        if kind != "prismatic":
            lower, upper = chain.lower_limits[i], chain.upper_limits[i]
            c = torch.zeros_like(x) if centre is None or kind == "continuous" else centre[..., i]
            turn = 2 * math.pi
            x = x - turn * torch.round((x - c) / turn)
            if kind == "revolute":
                # The nearest turn may lie outside.
                x = x + turn * torch.ceil((lower - x) / turn).clamp(min=0)
                x = x - turn * torch.ceil((x - upper) / turn).clamp(min=0)
                inside = (x >= lower) & (x <= upper)
                x = torch.where(inside, x, q[..., i])
        columns.append(x)
    return torch.stack(columns, dim=-1)


def _map(target: Tensor, q: Tensor, converged: Tensor, plan: _Plan) -> Tensor:
    poses = unit_pose(target.double())
    if plan.count > 1:
        poses = poses.unsqueeze(-2).expand(*q.shape[:-1], 7)
    lower, upper = open_limits(plan.chain, q.device)
    if q.dtype == torch.float32:  # in which the limits are other numbers
        low = torch.tensor(plan.chain.lower_float32, dtype=torch.float64, device=q.device)
        high = torch.tensor(plan.chain.upper_float32, dtype=torch.float64, device=q.device)
        lower, upper = torch.where(lower.isinf(), lower, low), torch.where(upper.isinf(), upper, high)
    q = torch.where(converged.unsqueeze(-1), q.double(), 0.0)
    return solution_map(plan.chain, q, poses, plan.weights, converged, (lower, upper))


def _pair(tol: Any) -> tuple[float, float]:
    """The tolerances in m and rad."""
    both = tuple(tol) if isinstance(tol, tuple | list) else (tol, tol)
    for x in both:
        if isinstance(x, bool) or not isinstance(x, int | float):
            raise TypeError(f"tol: expected a number, or two of them (m, rad), got {describe(tol)}")
    if len(both) != 2 or not all(0 < x < math.inf for x in both):
        raise ValueError(f"tol: expected a positive number, or two of them (m, rad), got {tol!r}")
    return both[0], both[1]


def _check_separation(separation: Any, dtype: torch.dtype) -> None:
    if isinstance(separation, bool) or not isinstance(separation, int | float):
        raise TypeError(f"separation: expected a number, got {describe(separation)}")
    least = 1e-5 if dtype == torch.float32 else 0.0  # below, rounding makes two solutions one
    if not max(least, math.ulp(0.0)) <= separation < math.inf:
        what = f"a number >= {least}, as the target is float32" if least else "a positive number"
        raise ValueError(f"separation: expected {what}, got {separation!r}")


def _forward_levels() -> int:
    """How many forward derivatives of torch.func are being taken."""
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
    stack = functorch.get_interpreter_stack() or []
    return sum(level.key() == functorch.TransformType.Jvp for level in stack)


def _named(seeds: Any) -> bool:
    return isinstance(seeds, str) and seeds in ("table", "random")


def _check_target(target: Tensor) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"target: expected a tensor [..., 7], got {describe(target)}")
    if target.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"target: expected float32 or float64, got {target.dtype}")
    if target.ndim == 0 or target.shape[-1] != 7:
        raise ValueError(f"target: expected shape [..., 7] = x y z, qw qx qy qz, got {tuple(target.shape)}")


def _check_configurations(chain: Chain, name: str, q: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(q, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {describe(q)}")
    if q.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {q.dtype}")
    if q.shape != shape:
        raise ValueError(
            f"{name}: expected shape {shape}, {chain.dof} joints and the target's leading axes, "
            f"got {tuple(q.shape)}"
        )
