"""The report of an emulator: tables by world, shock, variable and split; pictures of responses, estimates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

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
    titles = ["world", "split", "samples", "NRMSE", "worst", "gap", "flagged"]
    shown = [
        [
            r.world, r.split, f"{r.samples:,}", f"{r.nrmse:.4f}", f"{r.worst:.4f}", f"{r.gap:+.0f} %",
            f"{100 * r.flagged:.1f} %",
        ]
        for r in rows
    ]  # fmt: skip
    covered = [r.covered for r in rows if r.covered is not None]
    if covered:  # of an ensemble, and then in all rows
        titles += ["in 2 sd", "bars, sd", "in bars"]
        for row, r, share in zip(shown, rows, covered, strict=True):
            row += [f"{100 * share:.1f} %", f"{r.factor:.2f}", f"{100 * (r.covered_by_bars or 0):.1f} %"]
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
        "economies that the emulator says are out of its range. Of an ensemble, in 2 sd: numbers within two",
        "of its deviations; bars: the deviations that hold 95 % of the validation economies' numbers; in",
        "bars: those of this split within so many.",
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


def draw_estimates(
    path: Path, response: Tensor, deviation: Tensor, fitted: Mapping[str, Tensor], words: str
) -> Path:
    """Draw measured responses with bands of two deviations, and what was fitted to them.

    Args:
        path: PNG file.
        response: measured, [H + 1, V].
        deviation: of it, [H + 1, V]; inf where nothing was measured.
        fitted: responses [H + 1, V] by name.
        words: the title.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(OBSERVABLES), 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(OBSERVABLES), squeeze=False)[0]
    periods = list(range(len(response)))
    for v, variable in enumerate(OBSERVABLES):
        middle, band = 100 * response[:, v], 200 * deviation[:, v].nan_to_num(0.0, posinf=0.0)
        axes[v].fill_between(periods, (middle - band).numpy(), (middle + band).numpy(), alpha=0.2)
        axes[v].plot(periods, middle.numpy(), "k", linewidth=1.0, label="measured")
        for k, (name, made) in enumerate(fitted.items()):
            style = {"linewidth": 2.5 - 1.3 * k, "color": f"C{k}", "linestyle": "-" if k == 0 else "--"}
            axes[v].plot(periods, 100 * made[:, v].numpy(), label=f"exact, through the {name}", **style)
        axes[v].axhline(0, color="0.7", linewidth=0.6)
        axes[v].set_title(f"{variable}, %", fontsize=9)
        axes[v].set_xlabel("quarter")
    axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle(words, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
