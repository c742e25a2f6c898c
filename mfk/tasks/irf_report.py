"""The report of an emulator: tables by world, shock, variable and split, and pictures of responses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfk.core.files import write_atomically
from mfk.core.types import Params, Tree
from mfk.data.worlds import OBSERVABLES
from mfk.tasks.irf_data import IRFData
from mfk.tasks.irf_measure import ResponseRow, SplitRow, emulated
from mfk.tasks.irf_net import IRFNets
from mfk.tasks.report_tables import markdown, print_rows, strict

_SHOWN = ("test_interpolation", "test_extrapolation_corner")


def split_table(rows: Sequence[SplitRow]) -> tuple[list[str], list[list[str]]]:
    """Column titles and formatted rows, of each world and split."""
    titles = ["world", "split", "samples", "NRMSE", "worst", "gap", "flagged", "covered"]
    shown = [
        [
            r.world, r.split, f"{r.samples:,}", f"{r.nrmse:.4f}", f"{r.worst:.4f}", f"{r.gap:+.0f} %",
            f"{100 * r.flagged:.1f} %", "-" if r.covered is None else f"{100 * r.covered:.1f} %",
        ]
        for r in rows
    ]  # fmt: skip
    return titles, shown


def response_table(rows: Sequence[ResponseRow]) -> tuple[list[str], list[list[str]]]:
    """Column titles and formatted rows, of each world, split, shock and variable."""
    titles = ["world", "split", "shock", "variable", "NRMSE", "IAE", "sign", "HF exact", "HF model"]
    shown = [
        [
            r.world, r.split, r.shock, r.variable, f"{r.nrmse:.4f}", f"{r.iae:.2e}", f"{100 * r.sign:.1f} %",
            f"{r.hf_true:.4f}", f"{r.hf_model:.4f}",
        ]
        for r in rows
    ]  # fmt: skip
    return titles, shown


def print_table(rows: Sequence[SplitRow], title: str) -> None:
    """Print the table of worlds and splits on the terminal."""
    print_rows(*split_table(rows), title)


def write_report(
    folder: Path, splits: Sequence[SplitRow], rows: Sequence[ResponseRow], facts: Mapping[str, Any]
) -> list[Path]:
    """Write report.json and report.md into `folder`; the files written."""
    report = {
        "facts": dict(facts),
        "splits": [r._asdict() for r in splits],
        "results": [r._asdict() for r in rows],
    }
    lines = ["# Impulse responses: held-out economies", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", *markdown(*split_table(splits)), ""]
    lines += [
        "NRMSE: mean over economies of the root mean square over periods, in deviations of the exact",
        "responses of a shock and variable over economies and periods; gap: to the interpolation; flagged:",
        "economies that the emulator says are out of its range; covered: numbers within two deviations of an",
        "ensemble's mean.",
        "",
        *markdown(*response_table(rows)),
        "",
        "IAE: sum over periods of the absolute error, in units of the observable; sign: of periods 0 to 2;",
        "HF: share of the energy in cycles of at most six periods. report.json has the error by period.",
        "",
    ]
    written = [folder / "report.json", folder / "report.md"]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(written[0], json.dumps(strict(report), indent=1, allow_nan=False) + "\n")
    write_atomically(written[1], "\n".join(lines))
    return written


def draw_responses(
    folder: Path, nets: IRFNets, params: Params, state: Tree, data: IRFData, count: int = 3
) -> list[Path]:
    """Draw exact and emulated responses of the first economies of two splits, responses_<world>.png each.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    k = nets.config.shock
    for world in nets.worlds:
        names = world.shocks.names if k is None else (world.shocks.names[k],)
        figure = Figure(figsize=(3.2 * len(OBSERVABLES), 2.3 * len(names)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(names), len(OBSERVABLES), squeeze=False, sharex=True)
        for style, split in zip(("C0", "C3"), _SHOWN, strict=True):
            samples = data.samples[split][world.name]
            made = emulated(nets, params, state, world, samples.theta[:count])
            truth = samples.irf[:count] if k is None else samples.irf[:count, k : k + 1]
            for s in range(len(names)):
                for v in range(len(OBSERVABLES)):
                    axis = axes[s][v]
                    axis.plot(truth[:, s, :, v].T.numpy(), color=style, alpha=0.35, linewidth=2.5)
                    axis.plot(made[:, s, :, v].T.numpy(), color=style, linewidth=0.9)
        for s, shock in enumerate(names):
            axes[s][0].set_ylabel(shock)
        for v, variable in enumerate(OBSERVABLES):
            axes[0][v].set_title(variable, fontsize=9)
            axes[-1][v].set_xlabel("period")
        figure.suptitle(f"{world.name}: exact (broad) and emulated (thin); corner in red", fontsize=9)
        path = folder / f"responses_{world.name}.png"
        figure.savefig(path, dpi=110)
        written.append(path)
    return written
