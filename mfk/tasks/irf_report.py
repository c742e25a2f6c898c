"""The report of an emulator: tables by world, shock, variable and split."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfk.core.files import write_atomically
from mfk.tasks.irf_measure import ResponseRow, SplitRow
from mfk.tasks.report_tables import markdown, print_rows, strict


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
            r.world, r.split, r.shock, r.variable, f"{r.nrmse:.4f}", f"{r.iae:.2e}",
            # Of what is 0 no sign can be right.
            "-" if math.isnan(r.sign) else f"{100 * r.sign:.1f} %",
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
        "IAE: sum over periods of the absolute error, in units of the observable; sign: of the exact numbers",
        "in periods 0 to 2 that are not 0, if any; HF: share of the energy in cycles of at most six periods.",
        "report.json has the error by period.",
        "",
    ]
    written = [folder / "report.json", folder / "report.md"]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(written[0], json.dumps(strict(report), indent=1, allow_nan=False) + "\n")
    write_atomically(written[1], "\n".join(lines))
    return written
