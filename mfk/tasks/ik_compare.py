"""Inverse-kinematics solvers side by side on held-out poses: baselines, the network, the network refined."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core import ranks, rng
from mfk.core.ranks import Ranks
from mfk.core.types import Model, Params, Rows
from mfk.data import IKDataConfig, draw_ik
from mfk.kinematics import Chain, forward
from mfk.tasks.ik import PoseErrors, pose_errors, within
from mfk.tasks.ik_solve import DAMPING, refine, solve_pose
from mfk.tasks.ik_uncertainty import predict

Solver = Callable[[Tensor, Tensor], Tensor]
"""(reference [N, dof], pose [N, 7]) -> q [N, dof]."""


ROWS = 1_000
"""Poses whose errors are found at a time: the last bits of a network's answers may depend on it."""

FALLING = (0.07, 0.03, DAMPING)
"""Dampings of three least-squares steps that begin carefully, in m and rad."""


@dataclass(frozen=True)
class SolverResult:
    """How one solver did on the held-out poses."""

    solver: str
    position_mean_mm: float
    position_median_mm: float
    position_p99_mm: float
    rotation_mean_deg: float
    rotation_median_deg: float
    rotation_p99_deg: float
    within_5mm_5deg: float
    within_1mm_01deg: float
    microseconds_per_pose: float


def solvers(
    chain: Chain,
    model: Model,
    untrained: Params,
    params: Params,
    buffers: Params,
    ensemble: tuple[Params, Params] | None = None,
) -> dict[str, Solver]:
    """The rows of the table: baselines, the network, and the network refined.

    Numerical steps are damped least-squares (Levenberg-Marquardt) steps in float64, clipped to the limits;
    the network runs in float32. "falling damping" takes the dampings `FALLING`.

    Args:
        chain: the robot.
        model: as from `ik_model`.
        untrained: parameters before training.
        params: parameters after it.
        buffers: the model's buffers.
        ensemble: parameters and buffers of several networks, stacked, for a row that `predict` answers.
    """

    def numerical(*dampings: float) -> Solver:
        return lambda reference, pose: refine(chain, reference, pose, dampings)

    def network(params: Params, steps: int, *dampings: float) -> Solver:
        def solve(reference: Tensor, pose: Tensor) -> Tensor:
            q = solve_pose(chain, model, params, buffers, pose, reference, steps)
            return refine(chain, q, pose, dampings) if dampings else q

        return solve

    together: dict[str, Solver] = {}
    if ensemble is not None:
        together[ensemble_name(ensemble[0])] = lambda reference, pose: (
            predict(chain, model, *ensemble, pose, reference).q
        )

    return {
        "do nothing": lambda reference, pose: reference,
        "1 least-squares step": numerical(DAMPING),
        "2 least-squares steps": numerical(*[DAMPING] * 2),
        "3 least-squares steps": numerical(*[DAMPING] * 3),
        "3 steps, falling damping": numerical(*FALLING),
        "untrained network": network(untrained, 1),
        "untrained + 1 LM step": network(untrained, 1, DAMPING),
        "network, 1 step": network(params, 1),
        **together,
        "network, 2 steps": network(params, 2),
        "network, 4 steps": network(params, 4),
        "network + 1 LM step": network(params, 1, DAMPING),
        "network + 2 LM steps": network(params, 1, *[DAMPING] * 2),
    }


def ensemble_name(params: Params) -> str:
    """The row of an ensemble, given its stacked parameters."""
    return f"ensemble of {len(next(iter(params.values())))}, 1 step"


class HeldOut(NamedTuple):
    """Problems that no training step has seen."""

    q_target: Tensor  # [rows, dof], a solution each; float32, rad or m
    q_reference: Tensor  # [rows, dof], where the solvers start


def held_out(chain: Chain, data: IKDataConfig, poses: int, seed: int = 0) -> HeldOut:
    """`poses` problems drawn as `data` says; training draws never coincide with them."""
    drawn = draw_ik(chain, data, rng.key(seed, "held-out poses") % 2**63, 0, Rows.all(poses))
    return HeldOut(drawn.q_target, drawn.q_reference)


def compare(
    chain: Chain,
    problems: HeldOut,
    named: Mapping[str, Solver],
    *,
    repeats: int = 7,
    here: Ranks | None = None,
) -> tuple[list[SolverResult], dict[str, PoseErrors]]:
    """Run every solver on held-out problems; errors by forward kinematics in float64.

    The time is the median over `repeats` calls on all poses, on the threads at hand; the solvers take turns,
    so that a machine that slows down slows all of them. Of several ranks, which must all call this, each
    finds the errors of its share of the poses; all return the errors of all poses, the same as one process.
    Rank 0 measures the times, on its share; those of the others are not numbers.

    Args:
        chain: the robot.
        problems: as from `held_out`.
        named: name -> solver.
        repeats: timed calls of each solver.
        here: this process among those that share the poses, `ranks.current()`; None: it takes all of them.
    """
    here = here or Ranks(0, 1)
    poses = len(problems.q_target)
    blocks = torch.arange(poses).split(ROWS)[here.rank :: here.count]
    pose = forward(chain, problems.q_target.double())
    errors = {name: PoseErrors(*pose.new_zeros(2, poses)) for name in named}
    for rows in blocks:
        for name, solve in named.items():
            found = pose_errors(chain, solve(problems.q_reference[rows], pose[rows]), pose[rows])
            for total, own in zip(errors[name], found, strict=True):
                total[rows] = own
    if here.count > 1:
        # Zeros where other ranks have their errors: the sum puts them together, to the bit.
        together = ranks.add_up(errors)
        errors = {name: together[name] for name in named}
    medians = [float("nan")] * len(named)
    if here.rank == 0:
        own = torch.cat(blocks)
        reference, pose = problems.q_reference[own], pose[own]
        seconds = [[_time(solve, reference, pose) for solve in named.values()] for _ in range(repeats)]
        medians = [sorted(times)[repeats // 2] / len(own) for times in zip(*seconds, strict=True)]
    results = [
        _summary(name, errors[name], median * 1e6) for name, median in zip(named, medians, strict=True)
    ]
    return results, errors


def _time(solve: Solver, reference: Tensor, pose: Tensor) -> float:
    start = time.perf_counter()
    solve(reference, pose)
    return time.perf_counter() - start


def _summary(name: str, errors: PoseErrors, microseconds: float) -> SolverResult:
    millimetres, degrees = errors.position * 1e3, torch.rad2deg(errors.rotation)
    return SolverResult(
        solver=name,
        position_mean_mm=float(millimetres.mean()),
        position_median_mm=float(millimetres.median()),
        position_p99_mm=float(millimetres.quantile(0.99)),
        rotation_mean_deg=float(degrees.mean()),
        rotation_median_deg=float(degrees.median()),
        rotation_p99_deg=float(degrees.quantile(0.99)),
        within_5mm_5deg=float(within(errors, 5.0, 5.0).double().mean()),
        within_1mm_01deg=float(within(errors, 1.0, 0.1).double().mean()),
        microseconds_per_pose=microseconds,
    )
