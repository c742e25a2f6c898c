"""The report of a stick-figure model: next frames by action beside what needs no learning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfk.core.files import write_atomically
from mfk.tasks.report_tables import markdown, print_rows, strict
from mfk.tasks.stick_measure import ActionRow


def table(rows: Sequence[ActionRow]) -> tuple[list[str], list[list[str]]]:
    """Column titles and formatted rows."""
    titles = ["action", "frames", "persistence", "constant velocity", "model", "model / best", "recognised"]
    shown = [
        [
            r.action, f"{r.frames:,}", *(f"{x:.2e}" for x in (r.persistence, r.velocity, r.model)),
            f"{r.model / min(r.persistence, r.velocity):.3f}" if min(r.persistence, r.velocity) > 0 else "-",
            "-" if r.accuracy is None else f"{100 * r.accuracy:.1f} %",
        ]
        for r in rows
    ]  # fmt: skip
    return titles, shown


def print_table(rows: Sequence[ActionRow], title: str) -> None:
    """Print the table on the terminal."""
    print_rows(*table(rows), title)


def write_report(folder: Path, rows: Sequence[ActionRow], facts: Mapping[str, Any]) -> list[Path]:
    """Write report.json and report.md into `folder`; the files written."""
    report = {"facts": dict(facts), "results": [r._asdict() for r in rows]}
    lines = [
        "# Stick figures: held-out clips",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
    ]
    lines += markdown(*table(rows))
    lines += [
        "",
        "Squared errors of the next frame's numbers, in units squared (1 unit = 0.68 m), given",
        "the true frames before it. Actions are recognised from these alone: neither text nor actions told.",
        "",
    ]
    written = [folder / "report.json", folder / "report.md"]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(written[0], json.dumps(strict(report), indent=2, allow_nan=False) + "\n")
    write_atomically(written[1], "\n".join(lines))
    return written
