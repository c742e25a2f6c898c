"""The report of an inverse-kinematics run: a table against numerical baselines, and its plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mfk.core.files import write_atomically
from mfk.tasks.ik import PoseErrors
from mfk.tasks.ik_compare import FALLING, SolverResult
from mfk.tasks.ik_solve import DAMPING
from mfk.tasks.ik_uncertainty import Calibration, calibration_markdown
from mfk.tasks.report_tables import markdown, print_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Curves(NamedTuple):
    """The course of a training, as (step, value) pairs."""

    loss: list[tuple[int, float]]  # unweighted squared error of the training rows, rad^2
    validation: list[tuple[int, float]]  # mean position error of one network step, mm


def write_report(
    folder: Path,
    results: Sequence[SolverResult],
    errors: Mapping[str, PoseErrors],
    targets: Tensor,
    curves: Curves,
    facts: Mapping[str, Any],
    uncertainty: tuple[int, Mapping[str, Calibration]] | None = None,
) -> list[Path]:
    """Write report.json, report.md and the plots error_cdf, loss, error_by_steps and workspace (.png).

    Args:
        folder: the run's folder.
        results: as from `compare`.
        errors: as from `compare`.
        targets: the held-out poses that the errors are of, [rows, 7] = x y z [m], qw qx qy qz.
        curves: the course of the training.
        facts: what else the report states: robot, seed, times, versions.
        uncertainty: of an ensemble: its number of members, and `calibrations`.

    Returns:
        The files written.
    """
    report: dict[str, Any] = {"facts": dict(facts), "results": [asdict(result) for result in results]}
    if uncertainty is not None:
        members, found = uncertainty
        report["uncertainty"] = {"members": members} | {name: asdict(c) for name, c in found.items()}
    written = [folder / "report.json", folder / "report.md"]
    write_atomically(written[0], json.dumps(report, indent=2) + "\n")
    write_atomically(written[1], _markdown(results, facts, uncertainty))
    return [*written, *_plots(folder, results, errors, targets, curves)]


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


def print_table(results: Sequence[SolverResult], title: str) -> None:
    """Print the table on the terminal."""
    print_rows(*table(results), title, width=105)


def _figure(x: float) -> str:
    return f"{x:.3f}" if x < 10 else f"{x:.2f}" if x < 100 else f"{x:.0f}"


def _markdown(
    results: Sequence[SolverResult],
    facts: Mapping[str, Any],
    uncertainty: tuple[int, Mapping[str, Calibration]] | None,
) -> str:
    lines = ["# Inverse kinematics: held-out poses", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", *markdown(*table(results))]
    lines += [
        "",
        "Errors are those of the pose by forward kinematics in float64. Least-squares (LM) steps are damped, "
        f"lambda = {DAMPING} (falling: {', '.join(map(str, FALLING))}), and clipped to the joint limits.",
        *([] if uncertainty is None else calibration_markdown(*uncertainty)),
        "",
        "![error](error_cdf.png)",
        "![loss](loss.png)",
        "![error by steps](error_by_steps.png)",
        "![workspace](workspace.png)",
        "",
    ]
    return "\n".join(lines)


def _plots(
    folder: Path,
    results: Sequence[SolverResult],
    errors: Mapping[str, PoseErrors],
    targets: Tensor,
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
        style = "-" if name.startswith(("network", "ensemble")) else "--"
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
    save(_workspace(errors["network, 1 step"], targets), "workspace.png")
    return written


def _workspace(errors: PoseErrors, targets: Tensor) -> Figure:
    """Where in the workspace the errors are: target positions [rows, 7] from the side and from above."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(11, 5.1), layout="compressed")
    panels = figure.subplots(1, 2)
    millimetres = errors.position * 1e3
    # A few poses are far better or worse than the others; they get the colours of the ends.
    low, high = millimetres.clamp(min=1e-6).quantile(millimetres.new_tensor((0.02, 0.98))).tolist()
    scale = LogNorm(low, max(high, 1.01 * low), clip=True)
    # A panel flattens the workspace: no small error shall hide a large one behind it.
    order = millimetres.argsort()
    x, y, z = targets[order, :3].unbind(-1)
    # One scale for both panels, the base in the picture.
    ranges = [(min(float(v.min()), 0.0), max(float(v.max()), 0.0)) for v in (x, y, z)]
    half = 0.53 * max(upper - lower for lower, upper in ranges)
    limits = [((lower + upper) / 2 - half, (lower + upper) / 2 + half) for lower, upper in ranges]
    for axes, title, up, name, span in (
        (panels[0], "side view", z, "z", limits[2]),
        (panels[1], "top view", y, "y", limits[1]),
    ):
        axes.scatter(x, up, c=millimetres[order], norm=scale, cmap="viridis", s=8, linewidths=0)
        axes.plot(0, 0, "P", color="black", markeredgecolor="white", markersize=10)
        axes.annotate(
            "base",
            (0, 0),
            (8, 5),
            textcoords="offset points",
            fontsize=8,
            bbox=dict(fc="white", ec="none", pad=1),
        )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("x [m]")
        axes.set_ylabel(f"{name} [m]")
        axes.set(xlim=limits[0], ylim=span, aspect="equal")
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.colorbar(
        panels[0].collections[0],
        ax=panels,
        extend="both",
        ticks=LogLocator(subs=(1, 2, 5)),
        format="{x:g}",
        label="position error of one network step [mm]",
    ).ax.minorticks_off()
    figure.suptitle(f"{len(targets):,} held-out target positions, large errors in front", fontsize=11)
    return figure
