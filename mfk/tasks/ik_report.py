"""The report of an inverse-kinematics run: a table against numerical baselines, and its plots."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.files import write_atomically
from mfk.core.types import Model, Params, Rows
from mfk.data import IKDataConfig, draw_ik
from mfk.kinematics import Chain, forward, least_squares_step
from mfk.tasks.ik import PoseErrors, pose_errors, solve_pose, within

Solver = Callable[[Tensor, Tensor], Tensor]
"""(reference [N, dof], pose [N, 7]) -> q [N, dof]."""

DAMPING = 1e-2
"""Of the least-squares baselines and refinements, in m and rad: the usual lambda^2 = 1e-4."""


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


class Curves(NamedTuple):
    """The course of a training, as (step, value) pairs."""

    loss: list[tuple[int, float]]  # unweighted squared error of the training rows, rad^2
    validation: list[tuple[int, float]]  # mean position error of one network step, mm


def solvers(chain: Chain, model: Model, params: Params, buffers: Params) -> dict[str, Solver]:
    """The rows of the table: baselines, the network, and the network refined.

    Numerical steps are damped least-squares (Levenberg-Marquardt) steps in float64, clipped to the
    limits; the network runs in float32.
    """
    untrained, initial_buffers = model.init(0)

    def numerical(steps: int) -> Solver:
        return lambda reference, pose: _refine(chain, reference.double(), pose.double(), steps)

    def network(steps: int, refinements: int = 0) -> Solver:
        def solve(reference: Tensor, pose: Tensor) -> Tensor:
            q = solve_pose(chain, model, params, buffers, pose, reference, steps)
            return _refine(chain, q.double(), pose.double(), refinements) if refinements else q

        return solve

    return {
        "do nothing": lambda reference, pose: reference,
        "1 least-squares step": numerical(1),
        "2 least-squares steps": numerical(2),
        "3 least-squares steps": numerical(3),
        "network before training": lambda reference, pose: solve_pose(
            chain, model, untrained, initial_buffers, pose, reference
        ),
        "network, 1 step": network(1),
        "network, 2 steps": network(2),
        "network, 4 steps": network(4),
        "network + 1 LM step": network(1, 1),
        "network + 2 LM steps": network(1, 2),
    }


def compare(
    chain: Chain,
    data: IKDataConfig,
    named: Mapping[str, Solver],
    *,
    poses: int = 5_000,
    seed: int = 0,
    repeats: int = 5,
) -> tuple[list[SolverResult], dict[str, PoseErrors]]:
    """Run every solver on held-out poses; errors by forward kinematics in float64.

    The time is the median over `repeats` of one call on all poses, on the threads at hand.

    Args:
        chain: the robot.
        data: how references are drawn.
        named: name -> solver.
        poses: number of held-out poses.
        seed: of the held-out poses; training draws never coincide with them.
        repeats: timed calls of each solver.
    """
    drawn = draw_ik(chain, data, rng.key(seed, "held-out poses") % 2**63, 0, Rows.all(poses))
    pose = forward(chain, drawn.q_target.double())
    results, all_errors = [], {}
    for name, solve in named.items():
        q = solve(drawn.q_reference, pose)
        seconds = sorted(_time(solve, drawn.q_reference, pose) for _ in range(repeats))[repeats // 2]
        errors = pose_errors(chain, q, pose)
        all_errors[name] = errors
        results.append(_summary(name, errors, seconds / poses * 1e6))
    return results, all_errors


def write_report(
    folder: Path,
    results: Sequence[SolverResult],
    errors: Mapping[str, PoseErrors],
    curves: Curves,
    facts: Mapping[str, Any],
) -> list[Path]:
    """Write report.json, report.md and the plots error_cdf.png, loss.png and error_by_steps.png.

    Args:
        folder: the run's folder.
        results: as from `compare`.
        errors: as from `compare`.
        curves: the course of the training.
        facts: what else the report states: robot, seed, times, versions.

    Returns:
        The files written.
    """
    report = {"facts": dict(facts), "results": [asdict(result) for result in results]}
    written = [folder / "report.json", folder / "report.md"]
    write_atomically(written[0], json.dumps(report, indent=2) + "\n")
    write_atomically(written[1], _markdown(results, facts))
    return [*written, *_plots(folder, results, errors, curves)]


def table(results: Sequence[SolverResult]) -> tuple[list[str], list[list[str]]]:
    """Column titles and formatted rows."""
    titles = [
        "solver", "mean mm", "median mm", "p99 mm", "mean deg", "median deg", "p99 deg",
        "5 mm, 5 deg", "1 mm, 0.1 deg", "us/pose",
    ]  # fmt: skip
    rows = []
    for r in results:
        errors = (
            r.position_mean_mm, r.position_median_mm, r.position_p99_mm,
            r.rotation_mean_deg, r.rotation_median_deg, r.rotation_p99_deg,
        )  # fmt: skip
        shares = (f"{100 * x:.2f} %" for x in (r.within_5mm_5deg, r.within_1mm_01deg))
        rows.append([r.solver, *map(_figure, errors), *shares, _figure(r.microseconds_per_pose)])
    return titles, rows


def _figure(x: float) -> str:
    return f"{x:.3f}" if x < 10 else f"{x:.2f}" if x < 100 else f"{x:.0f}"


def _refine(chain: Chain, q: Tensor, pose: Tensor, steps: int) -> Tensor:
    with torch.no_grad():
        for _ in range(steps):
            q = least_squares_step(chain, q, pose, DAMPING)
    return q


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


def _markdown(results: Sequence[SolverResult], facts: Mapping[str, Any]) -> str:
    titles, rows = table(results)
    lines = ["# Inverse kinematics: held-out poses", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += [
        "",
        "Errors are those of the pose by forward kinematics in float64. Least-squares (LM) steps are damped, "
        f"lambda^2 = {DAMPING**2:.0e}, and clipped to the joint limits.",
        "",
        "![error](error_cdf.png)",
        "![loss](loss.png)",
        "![error by steps](error_by_steps.png)",
        "",
    ]
    return "\n".join(lines)


def _plots(
    folder: Path,
    results: Sequence[SolverResult],
    errors: Mapping[str, PoseErrors],
    curves: Curves,
) -> list[Path]:
    # The object interface needs no display and leaves matplotlib's global state alone.
    from matplotlib.figure import Figure

    written = []

    def save(figure: Figure, name: str) -> None:
        written.append(folder / name)
        figure.savefig(written[-1], dpi=130)

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    shown = [name for name in errors if name not in ("network, 2 steps", "network, 4 steps")]
    for name in shown:
        style = "-" if name.startswith("network") else "--"
        share = torch.linspace(0, 1, len(errors[name].position), dtype=torch.float64)
        left.plot((errors[name].position * 1e3).sort().values, share, style, label=name, linewidth=1.4)
        right.plot(torch.rad2deg(errors[name].rotation).sort().values, share, style, linewidth=1.4)
    for axes, unit, tolerance in ((left, "position error [mm]", 5.0), (right, "rotation error [deg]", 5.0)):
        axes.set_xscale("log")
        axes.set_xlim(1e-4, 3e2)
        axes.axvline(tolerance, color="0.6", linewidth=0.8)
        axes.set_xlabel(unit)
        axes.grid(alpha=0.3)
    left.set_ylabel("share of held-out poses")
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    save(figure, "error_cdf.png")

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, curve, label in zip(
        figure.subplots(1, 2),
        curves,
        # The spread of solutions along a redundant arm's null space is a floor that no network lowers.
        ("training: squared error [rad²], unweighted", "validation: position error of one step [mm]"),
        strict=True,
    ):
        axes.plot([step for step, _ in curve], [value for _, value in curve], ".-", linewidth=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    save(figure, "loss.png")

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    by_name = {result.solver: result for result in results}
    for label, points in (
        ("least squares", {0: "do nothing", 1: "1 least-squares step", 2: "2 least-squares steps",
                           3: "3 least-squares steps"}),
        ("network", {0: "do nothing", 1: "network, 1 step", 2: "network, 2 steps", 4: "network, 4 steps"}),
        ("network, then LM", {1: "network, 1 step", 2: "network + 1 LM step", 3: "network + 2 LM steps"}),
    ):  # fmt: skip
        points = {step: by_name[name] for step, name in points.items() if name in by_name}
        median = [max(result.position_median_mm, 1e-6) for result in points.values()]
        axes.plot(list(points), median, "o-", label=label, linewidth=1.4)
    axes.set_yscale("log")
    axes.set_xticks(range(5))
    axes.set_xlabel("steps")
    axes.set_ylabel("median position error [mm]")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, "error_by_steps.png")
    return written
